"""Imports for tests, and the forms in which the same few rows can be written."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data_shards.importing.config import ImportConfig
from data_shards.importing.importers import import_dataset
from data_shards.manifest import Kind
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.tar import write_tar


def imported(kind: Kind, inputs: Sequence[Path], out: Path, config: ImportConfig | None = None) -> list[Any]:
    """Import, and return the samples."""
    import_dataset(kind, inputs, out, config)
    return list(PairDataset(out) if kind == "pairs" else CorpusDataset(out))


def jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows, and return the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def saved_dataset(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Lay out a folder as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows of texts in the form that the name's ending says."""
    kind = path.name.partition(".")[2]
    if kind.startswith("jsonl") or kind == "ndjson":
        content = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    elif kind in ("tsv", "csv"):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, csv.excel_tab if kind == "tsv" else csv.excel)
            writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif kind == "tar":
        write_tar(path, [(f"{n:03d}.json", json.dumps(row).encode()) for n, row in enumerate(rows)])
    elif kind == "txt.tar":
        members = [(f"{n:03d}.{name}.txt", text.encode()) for n, row in enumerate(rows) for name, text in row.items()]
        write_tar(path, members)
    elif kind == "saved":
        saved_dataset(path, rows)
    elif kind == "splits":
        saved_dataset(path / "train", rows)
        saved_dataset(path / "test", rows[:1])
        (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    elif kind == "folder":
        (path / "data").mkdir(parents=True)
        write_rows(path / "data" / "train-00000-of-00002.parquet", rows[:2])
        write_rows(path / "data" / "train-00001-of-00002.parquet", rows[2:])
        write_rows(path / "data" / "test-00000-of-00001.parquet", rows[:1])
        (path / "README.md").write_text("train on this")
    return path


FORMS = (*("jsonl", "ndjson", "jsonl.gz", "tsv", "csv", "parquet", "tar", "txt.tar", "saved", "splits", "folder"),)


def backwards(job: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Do the last part first, as no pool would."""
    return map(job, reversed(items))
