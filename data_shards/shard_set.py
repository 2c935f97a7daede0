"""The shards of one dataset or of several, numbered through: ordinal -> shard and row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import ShardCorruptError
from data_shards.manifest import Manifest, ShardEntry
from data_shards.quarantine import Quarantine
from data_shards.samples import NOT_PLAIN, Pair, Passage, decode_pair, decode_passage
from data_shards.shard_reader import ShardReader
from data_shards.sidecar import read_positives
from data_shards.storage import LocalFolder, Storage

_OPEN_SHARDS = 128  # three megabytes of sidecars and one descriptor each, at the most; two for each of 64 lanes
_HASHES_KEPT = 256  # half a megabyte each
_AT_ONCE = 16  # samples that are read before they are decoded: what is read is then still in the processor's cache

Int64s = NDArray[np.int64]
Ordinals = Sequence[int] | Int64s


class Stored(NamedTuple):
    """A dataset and where it lies."""

    storage: Storage
    manifest: Manifest


Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Form(Generic[Sample]):
    """How a sample is made of its JSON."""

    name: str
    """For messages."""
    quick: Callable[[bytes], Sample]
    """For what Dipole writes; raises `NOT_PLAIN` at anything else."""
    tolerant: Callable[[bytes], Sample]
    """For what others write."""


PAIRS = Form("training sample", decode_pair, Pair.from_json)
PASSAGES = Form("passage", decode_passage, Passage.from_json)

# What decoding raises at JSON of another shape, and reading at damage (a `ShardCorruptError` is a ValueError).
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)


class ShardSet(Generic[Sample]):
    """Opens shards when they are first needed and lets go of the least recently used."""

    def __init__(self, datasets: Sequence[Stored], form: Form[Sample], quarantine: Quarantine | None = None) -> None:
        """Number the shards through, dataset after dataset.

        Args:
            datasets: at least one.
            form: of the samples.
            quarantine: where damages are written down and skipped; without it they raise.
        """
        self.quarantine = quarantine
        self._form = form
        self._location = ", ".join(dataset.storage.location for dataset in datasets)
        self._shards: list[tuple[Storage, ShardEntry]] = [
            (dataset.storage, entry) for dataset in datasets for entry in dataset.manifest.shards
        ]
        self._ends = np.cumsum([entry.samples for _, entry in self._shards], dtype=np.int64)
        self._open: OrderedDict[int, ShardReader | ShardCorruptError] = OrderedDict()
        self._hashes: OrderedDict[int, Int64s] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Return how many samples there are."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def reader(self, shard: int) -> ShardReader:
        """Return an open shard.

        Raises:
            ShardCorruptError: it is missing or damaged as a whole.
        """
        with self._lock:
            found = self._open.pop(shard, None)
        if found is None:  # not under the lock: a remote shard may take minutes, and others are read meanwhile
            found = self._opened(shard)
        with self._lock:
            while len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[shard] = found
        if isinstance(found, ShardCorruptError):
            raise found
        return found

    def locate(self, ordinals: Ordinals) -> tuple[Int64s, Int64s]:
        """Return shard and row of each ordinal.

        Raises:
            IndexError: an ordinal is not below the number of samples.
        """
        wanted = np.asarray(ordinals, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"ordinals {wanted.min()} to {wanted.max()} of {len(self)} samples in {self._location}")
        shards = np.searchsorted(self._ends, wanted, side="right").astype(np.int64)
        begins = np.concatenate([[0], self._ends[:-1]])
        return shards, wanted - begins[shards]

    def read(self, ordinals: Ordinals) -> tuple[Int64s, list[Sample]]:
        """Return samples in the order asked for; those in quarantine are left out.

        Returns:
            The place of each sample among `ordinals`, and the samples.
        """
        shards, rows = self.locate(ordinals)
        readers = {shard: self._reader_or_none(shard) for shard in np.unique(shards).tolist()}
        samples: list[Sample] = []
        lost: list[int] = []
        # Neighbours mostly lie in one shard: the order sorts a batch by lane.
        borders = [*(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(rows)]
        wanted, begin = rows.tolist(), 0
        for end in borders if wanted else ():
            if (reader := readers[int(shards[begin])]) is None:
                lost += range(begin, end)
            else:
                for at in range(begin, end, _AT_ONCE):
                    part = wanted[at : min(at + _AT_ONCE, end)]
                    lost += [at + place for place in self._read_rows(reader, part, samples)]
            begin = end
        return np.delete(np.arange(len(rows)), lost), samples

    def _read_rows(self, reader: ShardReader, rows: list[int], samples: list[Sample]) -> list[int]:
        """Append a shard's samples; return the places of those rows that are in quarantine instead."""
        try:
            samples += [*map(self._form.quick, reader.payloads(rows))]  # all of them, or none
            return []
        except (*NOT_PLAIN, *_UNREADABLE):
            pass  # one by one, to see which
        lost: list[int] = []
        for at, row in enumerate(rows):
            try:
                samples.append(self._form.tolerant(reader.payload(row)))
            except _UNREADABLE as error:
                self.skip(self._damage(error, reader, row), row)
                lost.append(at)
        return lost

    def forward(self, shard: int) -> Iterator[Sample]:
        """Yield a shard's samples in order; those in quarantine are left out."""
        reader = self._reader_or_none(shard)
        if reader is None:
            return
        decode = self._form.quick
        # With a quarantine one by one: a damaged sample must not take its block along.
        payloads = iter(reader) if self.quarantine is None else self._sound_payloads(reader)
        for row, payload in enumerate(payloads):
            if payload is not None:
                try:
                    sample = decode(payload)
                except NOT_PLAIN:
                    try:
                        sample = self._form.tolerant(payload)
                    except _UNREADABLE as error:
                        self.skip(self._damage(error, reader, row), row)
                        continue
                yield sample

    def _sound_payloads(self, reader: ShardReader) -> Iterator[bytes | None]:
        for row in range(len(reader)):
            try:
                yield reader.payload(row)
            except ShardCorruptError as error:
                self.skip(error, row)
                yield None

    def skip(self, error: ShardCorruptError, row: int | None) -> None:
        """Write a damage down.

        Raises:
            ShardCorruptError: there is no quarantine.
        """
        if self.quarantine is None:
            raise error
        self.quarantine.add(error, row)

    def positive_hashes(self, ordinals: Int64s) -> Int64s:
        """Return the hash of the first positive of each pair; 0 where its shard is out of reach.

        Where the dataset has the `.pos` sidecars, the shards themselves are not needed: every rank asks this for
        the whole global batch, and reads its own part alone.
        """
        shards, rows = self.locate(ordinals)
        hashes = np.zeros(len(rows), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            hashes[here] = self._positives(shard)[rows[here]]
        return hashes

    def prefetch(self, ordinals: Int64s) -> None:
        """Ask the storages for the shards of some ordinals, in the order in which they come up."""
        shards, first = np.unique(self.locate(ordinals)[0], return_index=True)
        wanted: dict[int, tuple[Storage, list[tuple[str, int | None, str | None]]]] = {}
        for shard in shards[np.argsort(first)].tolist():
            storage, entry = self._shards[shard]
            wanted.setdefault(id(storage), (storage, []))[1].append((entry.path, entry.bytes, entry.sha256))
        for storage, names in wanted.values():
            storage.prefetch(names)

    def _positives(self, shard: int) -> Int64s:
        with self._lock:
            found = self._hashes.pop(shard, None)
        if found is None:
            storage, entry = self._shards[shard]
            path = storage.try_local(f"{entry.path}.pos")
            found = read_positives(path, entry.samples, entry.sha256) if path else None
            if found is None:
                reader = self._reader_or_none(shard)
                found = np.zeros(entry.samples, dtype=np.int64) if reader is None else reader.positive_hashes()
        with self._lock:
            while len(self._hashes) >= _HASHES_KEPT:
                self._hashes.popitem(last=False)
            self._hashes[shard] = found
        return found

    def _opened(self, shard: int) -> ShardReader | ShardCorruptError:
        storage, entry = self._shards[shard]
        tolerant = self.quarantine is not None
        try:
            if isinstance(storage, LocalFolder):
                return ShardReader(storage.folder / entry.path, entry, tolerant=tolerant)
            with storage.hold(entry.path, size=entry.bytes, sha256=entry.sha256) as path:
                return ShardReader(path, entry, tolerant=tolerant)
        except ShardCorruptError as error:
            return error

    def _reader_or_none(self, shard: int) -> ShardReader | None:
        try:
            return self.reader(shard)
        except ShardCorruptError as error:
            self.skip(error, None)
            return None

    def _damage(self, error: Exception, reader: ShardReader, row: int) -> ShardCorruptError:
        if isinstance(error, ShardCorruptError):
            return error
        what = f"row {row} holds no {self._form.name} ({type(error).__name__}: {error})"
        return ShardCorruptError(reader.path, int(reader.offsets[row]), what)
