"""Parquet files as a corpus, with no conversion: read where they lie, by rows of bounded number.

A unit of work is a file, or those of its rows that one worker takes at a time. Remote files come through the same
bounded cache as shards; of those that are only counted, nothing but the footer is fetched.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.checksums import remembered_sha256
from data_shards.corpora import Ordinals, Unit
from data_shards.errors import ShardCorruptError, UserError
from data_shards.importing.columns import ID_COLUMNS, TEXT_COLUMNS, passage_of
from data_shards.reader import Location
from data_shards.rows import Row
from data_shards.samples import Passage
from data_shards.storage import CacheConfig, LocalFolder, Storage

UNIT_ROWS = 16_384
"""Most passages of a unit: what a worker holds in memory, and what a killed one loses."""

_FOOTERS_AT_ONCE = 8
_FOOTER_BYTES = 1 << 16  # mostly enough; a longer one is fetched again
_BATCH_ROWS = 4_096
_BUFFER_BYTES = 1 << 20
_TABLES_KEPT = 8
_MAGIC = b"PAR1"

Int64s = NDArray[np.int64]


class _File(NamedTuple):
    name: str
    groups: tuple[int, ...]
    """Rows of each row group."""
    columns: tuple[str, ...]
    """Those that make a passage."""

    @property
    def rows(self) -> int:
        return sum(self.groups)


class _Piece(NamedTuple):
    """A unit's rows."""

    file: int
    begin: int
    end: int


class ParquetCorpus:
    """Passages in Parquet files, in the order of the files' names."""

    def __init__(self, storage: Storage, names: Sequence[str], location: Location, cache: CacheConfig | None) -> None:
        """Read the footers.

        Args:
            storage: holds the files.
            names: of the files.
            location: as the user gave it, to open the same again.
            cache: where remote files are kept, and checksums of local ones remembered.

        Raises:
            UserError: a file is not there, is no Parquet file, or has no text.
        """
        self._storage = storage
        self._arguments = (location, cache)
        self._memory = (cache or CacheConfig()).folder / "checksums"
        single = f"/{names[0]}" if len(names) == 1 and str(location).rstrip("/").endswith(names[0]) else ""
        self.location = f"{storage.location.rstrip('/')}{single}"
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
            self._files = list(threads.map(self._footer, names))
        self._pieces = [piece for number, file in enumerate(self._files) for piece in _cut(number, file.groups)]
        self._ends = np.cumsum([file.rows for file in self._files], dtype=np.int64)
        self._tables: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Open anew in another process."""
        from data_shards.corpora import open_corpus

        return open_corpus, self._arguments

    def __len__(self) -> int:
        """Return how many passages there are."""
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[Passage]:
        """Yield every passage, in order."""
        for piece in self._pieces:
            yield from self._read(piece)

    @cached_property
    def _checksums(self) -> list[str]:
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
            return list(threads.map(self._checksum, [file.name for file in self._files]))

    @cached_property
    def units(self) -> list[Unit]:
        """See `Corpus`."""
        return [
            Unit(self._name(piece), piece.end - piece.begin, self._checksums[piece.file]) for piece in self._pieces
        ]

    @cached_property
    def dataset_id(self) -> str:
        """See `Corpus`; of names and places it knows nothing."""
        content = "\n".join(["parquet corpus", *self._checksums])
        return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"

    def read_unit(self, number: int) -> list[Passage]:
        """See `Corpus`."""
        piece, unit = self._pieces[number], self.units[number]
        name = self._files[piece.file].name
        if (found := self._checksum(name)) != unit.checksum:
            what = f"it was {unit.checksum} and is {found}: it has changed meanwhile; run the command again"
            raise ShardCorruptError(Path(self._path(name)), 0, what)
        passages = list(self._read(piece))
        if len(passages) != unit.passages:
            raise ShardCorruptError(
                Path(self._path(name)), 0, f"{len(passages)} rows, its footer says {unit.passages}"
            )
        return passages

    def passages(self, ordinals: Ordinals) -> list[Passage]:
        """See `Corpus`. Reads whole row groups and keeps the last few: files of small row groups answer sooner."""
        wanted = np.asarray(ordinals, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"ordinals {wanted.min()} to {wanted.max()} of {len(self)} passages in {self.location}")
        owners = np.searchsorted(self._ends, wanted, side="right").tolist()
        found: list[Passage | None] = [None] * len(wanted)
        places: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for at, (owner, ordinal) in enumerate(zip(owners, wanted.tolist(), strict=True)):
            file = self._files[owner]
            row = ordinal - int(self._ends[owner]) + file.rows
            borders = np.cumsum(file.groups)
            group = int(np.searchsorted(borders, row, side="right"))
            places.setdefault((owner, group), []).append((at, row - int(borders[group]) + file.groups[group]))
        for (owner, group), rows in places.items():
            table = self._group(owner, group)
            first = sum(self._files[owner].groups[:group])
            for at, row in rows:
                values = table.slice(row, 1).to_pylist()[0]
                found[at] = self._passage(values, self._files[owner].name, first + row)
        return [passage for passage in found if passage is not None]

    def _read(self, piece: _Piece) -> Iterator[Passage]:
        """Yield a unit's passages: its row groups are read in batches, and what lies outside is passed over."""
        file = self._files[piece.file]
        borders = [0, *np.cumsum(file.groups).tolist()]
        groups = [g for g in range(len(file.groups)) if borders[g] < piece.end and borders[g + 1] > piece.begin]
        if not groups:
            return
        row = borders[groups[0]]
        with self._opened(file.name) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=list(file.columns)):
                rows = batch.to_pylist()
                begin, end = max(piece.begin - row, 0), min(piece.end - row, batch.num_rows)
                if begin < end:
                    for at in range(begin, end):
                        yield self._passage(rows[at], file.name, row + at)
                row += batch.num_rows
                if row >= piece.end:
                    return

    def _group(self, file: int, group: int) -> Any:
        with self._lock:
            if (table := self._tables.pop((file, group), None)) is None:
                name = self._files[file].name
                with self._opened(name) as opened:
                    table = opened.read_row_group(group, columns=list(self._files[file].columns))
                while len(self._tables) >= _TABLES_KEPT:
                    self._tables.popitem(last=False)
            self._tables[file, group] = table
            return table

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """Yield an open file; what is wrong with it shows while it is read."""
        from pyarrow import ArrowException, parquet

        try:
            with self._storage.hold(name) as path:  # until it is open: others wait for the same file
                file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES)
            with file:
                yield file
        except UnicodeDecodeError as error:
            raise ShardCorruptError(Path(self._path(name)), 0, f"a row is not UTF-8 text ({error.reason})") from None
        except (ArrowException, OSError) as error:
            what = f"it is no readable Parquet file: {str(error).splitlines()[0]}"
            raise ShardCorruptError(Path(self._path(name)), 0, what) from None

    def _passage(self, values: dict[str, Any], name: str, row: int) -> Passage:
        return passage_of(values, Row(values, Path(self._path(name)), row + 1, "row"))

    def _footer(self, name: str) -> _File:
        from pyarrow import ArrowException, parquet

        path = self._path(name)
        size = _FOOTER_BYTES
        while True:
            tail = self._storage.tail(name, size)
            if tail[-4:] != _MAGIC:
                raise UserError(f"{path} is no Parquet file: it does not end in {_MAGIC.decode()}; fetch it again")
            if (wanted := int.from_bytes(tail[-8:-4], "little") + 8) <= len(tail) or len(tail) < size:
                break
            size = wanted
        try:
            footer = parquet.read_metadata(io.BytesIO(tail))
        except (ArrowException, OSError) as error:
            raise UserError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None
        there = footer.schema.to_arrow_schema().names
        text = next((column for column in TEXT_COLUMNS if column in there), None)
        if text is None:
            raise UserError(
                f"{path} has no text (looked for {', '.join(TEXT_COLUMNS)}); there are: {', '.join(there)}; rename "
                "its column, or make shards of it: `dipole shards corpus --columns.text NAME`"
            )
        names = [column for column in (*ID_COLUMNS, "title") if column in there] + [text]
        groups = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        return _File(name, groups, tuple(dict.fromkeys(names)))

    def _checksum(self, name: str) -> str:
        if isinstance(self._storage, LocalFolder):
            return remembered_sha256(self._storage.local(name), self._memory)
        return self._storage.tag(name)

    def _name(self, piece: _Piece) -> str:
        file = self._files[piece.file]
        return file.name if piece.end - piece.begin == file.rows else f"{file.name} rows {piece.begin} to {piece.end}"

    def _path(self, name: str) -> str:
        return f"{self._storage.location.rstrip('/')}/{name}"


def _cut(file: int, groups: Sequence[int]) -> Iterator[_Piece]:
    """Cut a file into runs of row groups of bounded rows; a row group that is too large by itself into rows."""
    begin = end = 0
    for rows in groups:
        if end > begin and end + rows - begin > UNIT_ROWS:
            yield _Piece(file, begin, end)
            begin = end
        end += rows
        while end - begin > UNIT_ROWS:
            yield _Piece(file, begin, begin + UNIT_ROWS)
            begin += UNIT_ROWS
    if end > begin:
        yield _Piece(file, begin, end)
