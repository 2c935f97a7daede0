"""One open shard: any sample by its row, or all of them forward, every byte compared with its checksum.

Reading is safe from many threads (`pread` keeps no position), and across a fork.
"""

from __future__ import annotations

import logging
import os
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import sha256_file
from data_shards.errors import ShardCorruptError
from data_shards.manifest import ShardEntry
from data_shards.samples import Pair
from data_shards.sidecar import (
    load_crcs,
    load_offsets,
    read_positives,
    save_if_possible,
    sidecar_path,
)
from data_shards.tar import plain_json, read_span, scan_crcs, scan_offsets, span_key

MAX_SAMPLE_BYTES = 64 << 20
"""A larger one is taken for damage, or for an attempt on the memory."""

_READ_BYTES = 4 << 20

_log = logging.getLogger(__name__)


class ShardReader:
    """One open tar; with a manifest's entry it is checked against that, without one it may be any WebDataset."""

    def __init__(
        self, path: Path, entry: ShardEntry | None = None, verify: bool = False, tolerant: bool = False
    ) -> None:
        """Open a shard and its sidecars.

        Args:
            path: the tar.
            entry: what the manifest says of it.
            verify: read the whole file once and compare its checksum with the entry's.
            tolerant: accept another size than the entry's, for the sake of the samples that are sound: the sidecars
                tell which are. Without these a damaged shard is refused as a whole.

        Raises:
            ShardCorruptError: the shard is not there, not what the entry says, or damaged.
        """
        if not path.is_file():
            named = ", though the manifest names it" if entry else ""
            raise ShardCorruptError(path, 0, f"the shard is missing{named}; copy the dataset again or make it anew")
        self.path, self._entry, self._tolerant = path, entry, tolerant
        size = path.stat().st_size
        if entry is not None and size != entry.bytes and not tolerant:
            raise ShardCorruptError(path, size, f"the file ends here, the manifest says at {entry.bytes}")
        self._is_verified = False
        offsets = load_offsets(path, entry, self._verify)
        self._check_count(offsets)
        if verify:
            self._verify()
        self._use(offsets, load_crcs(path, offsets, entry, self._verify))
        self._mending, self._sidecars_compared = Lock(), False
        self._positives: NDArray[np.int64] | None = None
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
        return self.payloads([row])[0]

    def payloads(self, rows: Sequence[int]) -> list[bytes]:
        """Return the JSON of some samples, in the order asked for; for what it raises see `payload`."""
        if len(rows) and not (min(rows) >= 0 and max(rows) < len(self)):
            raise IndexError(f"rows {min(rows)} to {max(rows)} of {self.path}, which has {len(self)}")
        # Training reads in this loop: all names in it are local ones.
        pread, crc32, descriptor, borders, crcs = os.pread, zlib.crc32, self._descriptor, self._borders, self._crcs
        found = []
        for row in rows:
            begin = borders[row]
            if (size := borders[row + 1] - begin) <= MAX_SAMPLE_BYTES:
                span = pread(descriptor, size, begin)
                if crc32(span) == crcs[row]:
                    found.append(plain_json(span) or self._json_of(span, begin))
                    continue
            begin, span = self._second_look(row)
            found.append(self._json_of(span, begin))
            borders, crcs = self._borders, self._crcs  # which may have been mended
        return found

    def key(self, row: int) -> str:
        """Return one sample's key."""
        begin, span = self._span(row)
        return span_key(span, self.path, begin)

    def __iter__(self) -> Iterator[bytes]:
        """Yield every sample's JSON, reading forward in large blocks."""
        row = 0
        while row < len(self):
            first = self._borders[row]
            last = int(np.searchsorted(self.offsets, first + _READ_BYTES, side="right")) - 1
            stop = min(max(last, row + 1), len(self))
            size = self._borders[stop] - first
            block = os.pread(self._descriptor, size, first) if size <= max(_READ_BYTES, MAX_SAMPLE_BYTES) else b""
            borders = self._borders[row : stop + 1].tolist()
            for begin, end, crc in zip(borders[:-1], borders[1:], self._crcs[row:stop].tolist(), strict=True):
                span = block[begin - first : end - first]
                if zlib.crc32(span) != crc:
                    stop = row + borders.index(begin)
                    begin, span = self._second_look(stop)
                    yield self._json_of(span, begin)
                    stop += 1
                    break  # the borders may have been mended
                yield plain_json(span) or self._json_of(span, begin)
            row = stop

    def positive_hashes(self) -> NDArray[np.int64]:
        """Return the hash of each pair's first positive; 0 for one that has none, or is no training sample.

        Raises:
            ShardCorruptError: a sample is damaged; where that is tolerated its hash is 0.
        """
        path, sha256 = sidecar_path(self.path, "pos"), self._entry.sha256 if self._entry else None
        if self._positives is None and path.is_file():
            self._positives = read_positives(path, len(self), sha256)
        if self._positives is None:
            self._positives, is_whole = self._hash_positives()
            if is_whole:
                save_if_possible(self.path, "pos", self._positives, sha256)
        return self._positives

    def _hash_positives(self) -> tuple[NDArray[np.int64], bool]:
        """Return the hashes, and whether no sample is damaged."""
        hashes, is_whole = np.zeros(len(self), dtype=np.int64), True
        for row in range(len(self)):
            try:
                hashes[row] = Pair.from_json(self.payload(row)).first_positive_hash
            except ShardCorruptError:
                if not self._tolerant:
                    raise
                is_whole = False
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # who reads the sample itself will hear of it
        return hashes, is_whole

    def _span(self, row: int) -> tuple[int, bytes]:
        """Return where a sample begins, and its bytes."""
        if not 0 <= row < len(self._crcs):
            raise IndexError(f"row {row} of {self.path}, which has {len(self)}")
        begin, end = self._borders[row], self._borders[row + 1]
        if end - begin <= MAX_SAMPLE_BYTES:
            span = os.pread(self._descriptor, end - begin, begin)
            if zlib.crc32(span) == self._crcs[row]:
                return begin, span
        return self._second_look(row)

    def _second_look(self, row: int) -> tuple[int, bytes]:
        """Return what `_span` does of a sample that looks damaged, where it is the sidecars that are wrong.

        Raises:
            ShardCorruptError: the shard is damaged.
        """
        self._mend_sidecars()
        begin, end = self._borders[row], self._borders[row + 1]
        if end - begin > MAX_SAMPLE_BYTES:
            what = f"a sample of {end - begin:,} bytes, more than {MAX_SAMPLE_BYTES:,}; leave it out or chunk it"
            raise ShardCorruptError(self.path, begin, what)
        span = os.pread(self._descriptor, end - begin, begin)
        if zlib.crc32(span) != self._crcs[row]:
            raise self._damage(begin, span, end - begin)
        return begin, span

    def _mend_sidecars(self) -> None:
        """Make the sidecars anew, once, where the shard is what its manifest says: then it is they that are wrong."""
        with self._mending:
            if self._sidecars_compared or self._entry is None:
                return
            self._sidecars_compared = True
            try:
                self._verify()
            except ShardCorruptError:
                return  # the damage is the shard's own
            offsets = scan_offsets(self.path)
            self._check_count(offsets)
            crcs = scan_crcs(self.path, offsets)
            if np.array_equal(offsets, self.offsets) and np.array_equal(crcs, self._crcs):
                return  # the sample is merely too large
            _log.warning("the sidecars of %s are of another shard, or damaged; they are made anew", self.path)
            save_if_possible(self.path, "idx", offsets)
            save_if_possible(self.path, "crc", crcs, self._entry.sha256)
            self._use(offsets, crcs)

    def _use(self, offsets: NDArray[np.uint64], crcs: NDArray[np.uint32]) -> None:
        self.offsets = offsets
        # Indexing a memoryview gives a plain int at once; a numpy scalar would cost more than the `pread`.
        self._borders, self._crcs = offsets.data, crcs.data

    def _verify(self) -> None:
        """Compare the whole file with its checksum in the manifest, once."""
        if self._entry is None or self._is_verified:
            return
        if (found := sha256_file(self.path)) != self._entry.sha256:
            raise ShardCorruptError(self.path, 0, f"its sha256 is {found}, the manifest says {self._entry.sha256}")
        self._is_verified = True

    def _check_count(self, offsets: NDArray[np.uint64]) -> None:
        if self._entry is not None and len(offsets) - 1 != self._entry.samples:
            what = f"{len(offsets) - 1} samples, the manifest says {self._entry.samples}"
            raise ShardCorruptError(self.path, int(offsets[-1]), what)

    def _damage(self, begin: int, span: bytes, size: int) -> ShardCorruptError:
        """Say what is wrong with a span whose checksum does not match: its length or its header, if these show it."""
        if len(span) != size:
            what = f"wanted {size} bytes, the file gave {len(span)}: truncated"
            return ShardCorruptError(self.path, begin, what)
        try:
            read_span(span, self.path, begin)
        except ShardCorruptError as error:
            return error
        what = "the sample's bytes do not match its checksum in the .crc sidecar: flipped bits, or another's sidecar"
        return ShardCorruptError(self.path, begin, what)

    def _json_of(self, span: bytes, begin: int) -> bytes:
        sample = read_span(span, self.path, begin)
        if "json" not in sample:
            raise ShardCorruptError(self.path, begin, f"wanted a .json member, came {', '.join(sorted(sample))}")
        return sample["json"]
