"""Rows of Parquet files and of Arrow streams, which are what Hugging Face's `datasets` saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from data_shards.rows import Row

_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20  # a column is read through this, so that a large row group is never in memory as a whole


def parquet_rows(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet file, or of its row groups from `begin` to before `end`.

    Raises:
        UserError: the file is missing or damaged.
    """
    from pyarrow import parquet

    with _readable(path, "Parquet file"), parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
        groups = range(begin, file.num_row_groups if end is None else end)
        number = sum(file.metadata.row_group(group).num_rows for group in range(begin))
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(groups)):
            yield from _batch_rows(batch, path, number)
            number += batch.num_rows


def parquet_borders(path: Path, piece_bytes: int) -> list[int]:
    """Cut a Parquet file's row groups into runs of about a size in memory; return where they begin, and the end.

    Raises:
        UserError: the file is missing or damaged.
    """
    from pyarrow import parquet

    borders, size = [0], 0
    with _readable(path, "Parquet file"), parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            size += file.metadata.row_group(group).total_byte_size
            if size >= piece_bytes or group == file.num_row_groups - 1:
                borders.append(group + 1)
                size = 0
    return borders


def arrow_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow stream.

    Raises:
        UserError: the file is missing or damaged.
    """
    from pyarrow import ipc, memory_map

    number = 0
    with _readable(path, "Arrow stream"), memory_map(str(path)) as source, ipc.open_stream(source) as stream:
        for batch in stream:
            for begin in range(0, batch.num_rows, _BATCH_ROWS):
                piece = batch.slice(begin, _BATCH_ROWS)
                yield from _batch_rows(piece, path, number)
                number += piece.num_rows


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable {what}: {str(error).splitlines()[0]}") from None


def _batch_rows(batch: Any, path: Path, number: int) -> Iterator[Row]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # one of them is no text: Parquet does not look at what it is given
        yield from _one_by_one(batch, path, number)
        return
    for values in rows:
        number += 1
        yield Row(values, path, number, "row")


def _one_by_one(batch: Any, path: Path, number: int) -> Iterator[Row]:
    for at in range(batch.num_rows):
        try:
            values = batch.slice(at, 1).to_pylist()[0]
            yield Row(values, path, number + at + 1, "row")
        except UnicodeDecodeError as error:
            yield Row({}, path, number + at + 1, "row", problem=f"not UTF-8 text ({error.reason})", raw=error.object)
