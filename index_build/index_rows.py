"""The rows that an index is made of, read a bounded block at a time: vectors, ids and hashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.errors import UserError
from index_build.embedding_part import part_files
from index_build.embedding_set import EmbeddingSet

BLOCK_BYTES = 32 << 20
"""Of float32 vectors that are in memory at a time."""

_ID_COLUMNS = ("id", "id_hash", "exact_hash")
_ID_ROWS = 65_536

Bools = NDArray[np.bool_]
Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]


class IndexedRows:
    """Those rows of an embedding set that an index holds."""

    def __init__(self, vectors: EmbeddingSet, living: Bools | None = None) -> None:
        """Take a set and which of its rows count; all, where it is not said."""
        self._vectors = vectors
        self._living = living
        self.dim = vectors.dim
        self.rows = vectors.rows if living is None else int(living.sum())

    def blocks(self) -> Iterator[tuple[Int64s, Float32s]]:
        """Yield (row numbers, their vectors), in order."""
        for first, block in row_blocks(self._vectors, 0, self._vectors.rows):
            numbers = np.arange(first, first + len(block), dtype=np.int64)
            if self._living is not None:
                there = self._living[first : first + len(block)]
                numbers, block = numbers[there], block[there]
            if len(numbers):
                yield numbers, block

    def gather(self, rows: Int64s) -> Float32s:
        """Return the vectors of some rows, by their number in the set."""
        return gather(self._vectors, rows)

    def sample(self, places: Int64s) -> Int64s:
        """Return the row numbers of the n-th rows that count."""
        if self._living is None:
            return places
        found: Int64s = np.flatnonzero(self._living)[places]
        return found


def row_blocks(vectors: EmbeddingSet, first: int, stop: int) -> Iterator[tuple[int, Float32s]]:
    """Yield (number of the first row, float32 [n, dim]) of a range of rows, in order."""
    step = block_rows(vectors.dim)
    for begin in range(first, stop, step):
        yield begin, vectors.span(begin, min(begin + step, stop))


def gather(vectors: EmbeddingSet, rows: Int64s) -> Float32s:
    """Return the vectors of any rows.

    A set's files are mapped into memory while they are read: in small pieces, so that what was mapped is given back.
    """
    step = block_rows(vectors.dim)
    if len(rows) <= step:
        return vectors.gather(rows)
    found = np.empty((len(rows), vectors.dim), dtype=np.float32)
    for begin in range(0, len(rows), step):
        found[begin : begin + step] = vectors.gather(rows[begin : begin + step])
    return found


def block_rows(dim: int) -> int:
    """Return how many vectors are read at a time."""
    return max(256, BLOCK_BYTES // (4 * dim))


def write_ids(path: Path, vectors: EmbeddingSet) -> None:
    """Write id and hashes of every row, as the set's parts have them."""
    fields = [pa.field("id", pa.string()), *(pa.field(name, pa.int64()) for name in _ID_COLUMNS[1:])]
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd") as writer:
        for part in range(len(vectors.parts)):
            for batch in _batches(part_files(vectors.folder, part).ids, _ID_COLUMNS):
                writer.write_batch(batch.select(list(_ID_COLUMNS)).cast(pa.schema(fields)))


def id_blocks(path: Path) -> Iterator[tuple[int, list[str], Int64s]]:
    """Yield (number of the first row, ids, their hashes) through an `ids.parquet` or a part's ids."""
    first = 0
    for batch in _batches(path, _ID_COLUMNS[:2]):
        yield first, batch.column("id").to_pylist(), batch.column("id_hash").to_numpy()
        first += batch.num_rows


def hash_columns(*paths: Path) -> tuple[Int64s, Int64s]:
    """Return the hashes of ids and of what the encoder read, 16 bytes a row; no id is read."""
    ids, contents = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for path in paths:
        for batch in _batches(path, _ID_COLUMNS[1:]):
            ids.append(batch.column("id_hash").to_numpy())
            contents.append(batch.column("exact_hash").to_numpy())
    return np.concatenate(ids), np.concatenate(contents)


def set_hash_columns(vectors: EmbeddingSet) -> tuple[Int64s, Int64s]:
    """Return the same of an embedding set."""
    return hash_columns(*(part_files(vectors.folder, part).ids for part in range(len(vectors.parts))))


def set_hash_blocks(vectors: EmbeddingSet) -> Iterator[tuple[int, Int64s]]:
    """Yield (number of the first row, id hashes) through an embedding set."""
    first = 0
    for part in range(len(vectors.parts)):
        for batch in _batches(part_files(vectors.folder, part).ids, ("id_hash",)):
            yield first, batch.column("id_hash").to_numpy()
            first += batch.num_rows


def _batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        if missing := set(columns) - set(file.schema_arrow.names):
            raise UserError(f"{path} has no {min(missing)}: an earlier dipole wrote it; embed and index anew")
        yield from file.iter_batches(batch_size=_ID_ROWS, columns=list(columns))
