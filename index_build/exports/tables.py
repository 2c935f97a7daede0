"""Parquet and Lance: tables of ids, vectors and texts, there whole or not at all."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.atomic import atomic_dir
from data_shards.errors import UserError
from index_build.exports.rows import Batch, ExportRows

_ROWS_AT_ONCE = 16_384
_ROWS_PER_FILE = 1 << 20


def to_parquet(rows: ExportRows, out: Path) -> None:
    """Write a folder of Parquet files with the columns `id`, `vector` and, with texts, `title` and `text`.

    Raises:
        UserError: the folder is there already.
    """
    _refuse_existing(out)
    with atomic_dir(out) as folder:
        batches = _record_batches(rows)
        for number in itertools.count():
            if not _write_file(folder / f"part-{number:06d}.parquet", batches, _schema(rows)):
                break
        found = sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))
        _compare(found, rows, out)


def _write_file(path: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> bool:
    """Write the next batches, until the file is full; return whether there were any."""
    first = next(batches, None)
    if first is None:
        return False
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        writer.write_batch(first)
        written = first.num_rows
        while written < _ROWS_PER_FILE and (batch := next(batches, None)) is not None:
            writer.write_batch(batch)
            written += batch.num_rows
    return True


def to_lance(rows: ExportRows, out: Path) -> None:
    """Write a Lance dataset with the same columns.

    Raises:
        UserError: Lance is not installed, or the folder is there already.
    """
    try:
        lance = importlib.import_module("lance")
    except ImportError:
        raise UserError("export to lance needs pylance: pip install 'dipole[lance]'") from None
    _refuse_existing(out)
    with atomic_dir(out) as folder:
        reader = pa.RecordBatchReader.from_batches(_schema(rows), _record_batches(rows))
        made = lance.write_dataset(reader, str(folder), mode="overwrite", max_rows_per_file=_ROWS_PER_FILE)
        _compare(made.count_rows(), rows, out)


def _record_batches(rows: ExportRows) -> Iterator[pa.RecordBatch]:
    schema = _schema(rows)
    for batch in rows.batches(_ROWS_AT_ONCE):
        yield pa.RecordBatch.from_arrays(_columns(batch, schema), schema=schema)


def _columns(batch: Batch, schema: pa.Schema) -> list[pa.Array]:
    kind = schema.field("vector").type
    values = np.ascontiguousarray(batch.vectors, dtype=kind.value_type.to_pandas_dtype()).reshape(-1)
    columns: list[pa.Array] = [
        pa.array(batch.ids, pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(values, kind.value_type), kind.list_size),
    ]
    if batch.titles is not None:
        columns += [pa.array(batch.titles, pa.string()), pa.array(batch.texts, pa.string())]
    return columns


def _schema(rows: ExportRows) -> pa.Schema:
    """Vectors stay float16 where they are kept so; what is kept shorter comes out as float32."""
    value = pa.float16() if rows.vectors.kept == "float16" else pa.float32()
    fields = [pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(value, rows.vectors.dim))]
    texts = [pa.field("title", pa.string()), pa.field("text", pa.string())] if rows.has_texts else []
    origin = {"snapshot": rows.vectors.snapshot["hash"], "embedding_set": rows.vectors.hash}
    return pa.schema([*fields, *texts], metadata=origin)


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out, or remove it")


def _compare(found: int, rows: ExportRows, out: Path) -> None:
    if found != len(rows):
        raise UserError(f"{out} came to {found} rows, wanted {len(rows)}; nothing is left of it, try again")
