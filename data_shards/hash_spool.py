"""Hashes of any number of rows, grouped by key in bounded memory.

Rows are collected, sorted in memory a million at a time, and written one after another to a temporary file that has
no name, so that nothing is left of it however the process ends. They are read back a range of keys at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError

ROWS_IN_MEMORY = 1 << 20
"""16 to 20 MB; so much is held before it is written out, and about so much is read back at a time."""
UNKNOWN_PLACE = np.iinfo(np.uint32).max
"""Stands for the number of a sample beyond four thousand million: still counted, no longer shown."""

_FINEST = 1024  # ranges of keys that can be read separately
_BORDERS = np.arange(_FINEST, dtype=np.uint64) << np.uint64(54)

Rows = NDArray[np.void]


class HashSpool:
    """Rows of (key, value, place): hash, something to tell rows of one key apart, and the number of the sample."""

    def __init__(self, *, wide: bool = False, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        """Begin empty.

        Args:
            wide: keep values at 64 bits, 20 bytes a row; else at 32 bits, 16 bytes a row: enough to tell apart the
                few values that one key has.
            rows_in_memory: see `ROWS_IN_MEMORY`.
        """
        self._dtype = np.dtype([("key", "<u8"), ("value", "<u8" if wide else "<u4"), ("place", "<u4")])
        self._limit = rows_in_memory
        self._waiting: list[Rows] = []
        self._waiting_rows = 0
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, NDArray[np.int64]]] = []  # begin in the file, borders of the ranges within
        self.rows = 0
        """How many came."""

    def add(self, keys: NDArray[np.uint64], values: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        """Take rows.

        Raises:
            UserError: there is no room left for the temporary file.
        """
        rows = np.empty(len(keys), dtype=self._dtype)
        rows["key"] = keys
        rows["value"] = values if self._dtype["value"].itemsize == 8 else values & np.uint64(0xFFFFFFFF)
        rows["place"] = np.minimum(places, UNKNOWN_PLACE)
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        self.rows += len(rows)
        if self._waiting_rows >= self._limit:
            self._write()

    def groups(self, *partners: HashSpool) -> Iterator[tuple[Rows, ...]]:
        """Yield all rows by ranges of keys, each range sorted by key, value and place; no more can be added then.

        Args:
            partners: other spools; their rows of the same range are yielded beside these.
        """
        spools = (self, *partners)
        for spool in spools:
            if spool._runs or spool._waiting_rows > spool._limit:
                spool._write()
        most = max(spool.rows for spool in spools)
        step = _FINEST
        while step > 1 and most * step > self._limit * _FINEST:
            step //= 2
        for first in range(0, _FINEST, step):
            yield tuple(spool._range(first, first + step) for spool in spools)

    def _write(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        rows = rows[np.argsort(rows["key"], kind="stable")]
        self._waiting, self._waiting_rows = [], 0
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="dipole-")
            begin = self._file.seek(0, os.SEEK_END)
            self._file.write(rows.tobytes())
            self._file.flush()
        except OSError as error:
            place = tempfile.gettempdir()
            raise UserError(
                f"no room for temporary files in {place} ({error}); point TMPDIR at a larger disk"
            ) from None
        borders = np.append(np.searchsorted(rows["key"], _BORDERS), len(rows)).astype(np.int64)
        self._runs.append((begin, borders))

    def _range(self, first: int, stop: int) -> Rows:
        """Return the rows whose key lies in some of the finest ranges, sorted."""
        pieces: list[Any] = [np.empty(0, dtype=self._dtype)]
        for begin, borders in self._runs:
            assert self._file is not None
            low, high = int(borders[first]), int(borders[stop])
            size = self._dtype.itemsize
            block = os.pread(self._file.fileno(), (high - low) * size, begin + low * size)
            pieces.append(np.frombuffer(block, dtype=self._dtype))
        for rows in self._waiting:
            low_key = rows["key"] >> np.uint64(54)
            pieces.append(rows[(low_key >= first) & (low_key < stop)])
        rows = np.concatenate(pieces)
        return rows[np.lexsort((rows["place"], rows["value"], rows["key"]))]
