"""Reading shards: any sample by its number, or all of them forward, with every header verified.

What a shard promises in its manifest and its sidecar is checked when it is opened; what is damaged later on raises
`ShardCorruptError` with shard and offset. Reading is safe from many threads (`pread` keeps no position), and across
a fork.
"""

from __future__ import annotations

import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import sha256_file
from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import Manifest, ShardEntry
from data_shards.samples import Pair, Passage
from data_shards.sidecar import load_sidecar
from data_shards.tar import BLOCK_BYTES, plain_sizes, read_span, span_key

_READ_BYTES = 4 << 20
_OPEN_SHARDS = 64  # two megabytes of offsets and one descriptor each, at the most

Ordinals = Sequence[int] | NDArray[np.int64]


class ShardReader:
    """One open tar; with a manifest's entry it is checked against that, without one it may be any WebDataset."""

    def __init__(self, path: Path, entry: ShardEntry | None = None, verify: bool = False) -> None:
        """Open a shard and its sidecar.

        Args:
            path: the tar.
            entry: what the manifest says of it.
            verify: read the whole file once and compare its checksum with the entry's.

        Raises:
            ShardCorruptError: the shard is not what the entry says, or is damaged.
            UserError: it is not there.
        """
        if not path.is_file():
            named = ", though the manifest names it" if entry else ""
            raise UserError(f"shard {path} is missing{named}; copy the dataset again or make it anew")
        self.path = path
        size = path.stat().st_size
        if entry is not None and size != entry.bytes:
            raise ShardCorruptError(path, size, f"the file ends here, the manifest says at {entry.bytes}")
        self.offsets = load_sidecar(path)
        if entry is not None and len(self) != entry.samples:
            raise ShardCorruptError(
                path, int(self.offsets[-1]), f"{len(self)} samples, the manifest says {entry.samples}"
            )
        if verify and entry is not None and (found := sha256_file(path)) != entry.sha256:
            raise ShardCorruptError(path, 0, f"its sha256 is {found}, the manifest says {entry.sha256}")
        self._descriptor = os.open(path, os.O_RDONLY)
        # Closed when nobody refers to the reader any more: never under a thread that is reading.
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.offsets) - 1

    def sample(self, row: int) -> dict[str, bytes]:
        """Return one sample: payload by extension."""
        begin, span = self._span(row)
        return read_span(span, self.path, begin)

    def payload(self, row: int) -> bytes:
        """Return one sample's JSON.

        Raises:
            ShardCorruptError: it is damaged, or has no `.json` member.
        """
        begin, span = self._span(row)
        return self._json_of(span, begin)

    def key(self, row: int) -> str:
        """Return one sample's key."""
        begin, span = self._span(row)
        return span_key(span, self.path, begin)

    def __iter__(self) -> Iterator[bytes]:
        """Yield every sample's JSON, reading forward in large blocks."""
        row = 0
        while row < len(self):
            begin = int(self.offsets[row])
            last = int(np.searchsorted(self.offsets, begin + _READ_BYTES, side="right")) - 1
            stop = min(max(last, row + 1), len(self))
            borders = self.offsets[row : stop + 1].astype(np.int64) - begin
            block = self._read(begin, int(borders[-1]))
            starts = borders[:-1]
            sizes = plain_sizes(block, starts, borders[1:])
            for start, size, end in zip(starts.tolist(), sizes.tolist(), borders[1:].tolist(), strict=True):
                if size < 0:
                    yield self._json_of(block[start:end], begin + start)
                else:
                    yield block[start + BLOCK_BYTES : start + BLOCK_BYTES + size]
            row = stop

    def _span(self, row: int) -> tuple[int, bytes]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {self.path}, which has {len(self)}")
        begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return begin, self._read(begin, end - begin)

    def _read(self, begin: int, size: int) -> bytes:
        block = os.pread(self._descriptor, size, begin)
        if len(block) != size:
            what = f"wanted {size} bytes, the file gave {len(block)}: truncated while it was read"
            raise ShardCorruptError(self.path, begin, what)
        return block

    def _json_of(self, span: bytes, begin: int) -> bytes:
        sample = read_span(span, self.path, begin)
        if "json" not in sample:
            raise ShardCorruptError(self.path, begin, f"wanted a .json member, came {', '.join(sorted(sample))}")
        return sample["json"]


class _ShardSet:
    """The shards of a dataset, numbered through: sample `ordinal` is row `row` of shard `shard`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._ends = np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def reader(self, shard: int) -> ShardReader:
        """Return an open shard; the least recently used one is let go."""
        with self._lock:
            reader = self._open.pop(shard, None)
            if reader is None:
                entry = self.manifest.shards[shard]
                reader = ShardReader(self.folder / entry.path, entry)
                while len(self._open) >= _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open[shard] = reader
            return reader

    def locate(self, ordinals: Ordinals) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        wanted = np.asarray(ordinals, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"ordinals {wanted.min()} to {wanted.max()} of {len(self)} samples in {self.folder}")
        shards = np.searchsorted(self._ends, wanted, side="right").astype(np.int64)
        begins = np.concatenate([[0], self._ends[:-1]])
        return shards, wanted - begins[shards]

    def payloads(self, ordinals: Ordinals) -> Iterator[tuple[ShardReader, int, bytes]]:
        """Yield (reader, row, JSON) in the order asked for."""
        shards, rows = self.locate(ordinals)
        readers = {shard: self.reader(shard) for shard in np.unique(shards).tolist()}
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            yield readers[shard], row, readers[shard].payload(row)


class PairDataset:
    """A dataset of pairs: training samples by ordinal."""

    def __init__(self, folder: Path | str) -> None:
        """Read the manifest; shards are opened when they are first needed.

        Raises:
            UserError: the folder is no dataset of pairs.
        """
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder, "pairs")
        self.dataset_id = self.manifest.dataset_id
        self.shard_stems = [shard.stem for shard in self.manifest.shards]
        self._shards = _ShardSet(self.folder, self.manifest)

    def __reduce__(self) -> tuple[type[PairDataset], tuple[Path]]:
        """Open anew in another process."""
        return type(self), (self.folder,)

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Pair]:
        """Yield every pair, in order."""
        for shard in range(len(self.manifest.shards)):
            reader = self._shards.reader(shard)
            for row, payload in enumerate(reader):
                yield _pair(payload, reader, row)

    def pair(self, ordinal: int) -> Pair:
        """Return one pair."""
        return self.pairs([ordinal])[0]

    def pairs(self, ordinals: Ordinals) -> list[Pair]:
        """Return pairs in the order asked for.

        Raises:
            IndexError: an ordinal is not below the number of samples.
            ShardCorruptError: a shard is damaged.
        """
        return [_pair(payload, reader, row) for reader, row, payload in self._shards.payloads(ordinals)]

    def locate(self, ordinals: Ordinals) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the index of the shard (into `shard_stems`) and the row within it, for each ordinal."""
        return self._shards.locate(ordinals)


class CorpusDataset:
    """A dataset of passages."""

    def __init__(self, folder: Path | str) -> None:
        """Read the manifest; shards are opened when they are first needed.

        Raises:
            UserError: the folder is no corpus.
        """
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder, "corpus")
        self.dataset_id = self.manifest.dataset_id
        self.shard_paths = [self.folder / shard.path for shard in self.manifest.shards]
        self._shards = _ShardSet(self.folder, self.manifest)

    def __reduce__(self) -> tuple[type[CorpusDataset], tuple[Path]]:
        """Open anew in another process."""
        return type(self), (self.folder,)

    def __len__(self) -> int:
        """Return how many passages there are."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Passage]:
        """Yield every passage, in order."""
        for shard in range(len(self.shard_paths)):
            yield from self.iter_shard(shard)

    def iter_shard(self, shard: int) -> Iterator[Passage]:
        """Yield the passages of one shard, in order."""
        reader = self._shards.reader(shard)
        for row, payload in enumerate(reader):
            yield _passage(payload, reader, row)

    def passages(self, ordinals: Ordinals) -> list[Passage]:
        """Return passages in the order asked for.

        Raises:
            IndexError: an ordinal is not below the number of passages.
            ShardCorruptError: a shard is damaged.
        """
        return [_passage(payload, reader, row) for reader, row, payload in self._shards.payloads(ordinals)]


def open_dataset(folder: Path) -> PairDataset | CorpusDataset:
    """Open a dataset of either kind.

    Raises:
        UserError: the folder is no dataset.
    """
    kind: Literal["pairs", "corpus"] = Manifest.load(folder).kind
    return PairDataset(folder) if kind == "pairs" else CorpusDataset(folder)


def _pair(payload: bytes, reader: ShardReader, row: int) -> Pair:
    try:
        return Pair.from_json(payload)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_sample("training sample", error, reader, row) from None


def _passage(payload: bytes, reader: ShardReader, row: int) -> Passage:
    try:
        return Passage.from_dict(json.loads(payload))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_sample("passage", error, reader, row) from None


def _not_a_sample(wanted: str, error: Exception, reader: ShardReader, row: int) -> ShardCorruptError:
    what = f"row {row} holds no {wanted} ({type(error).__name__}: {error})"
    return ShardCorruptError(reader.path, int(reader.offsets[row]), what)
