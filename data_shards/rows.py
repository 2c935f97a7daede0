"""Rows of the files that people keep data in: JSONL, TSV, CSV, Parquet, Hugging Face datasets saved on disk.

Each row remembers its file and line, so that a mistake in it can be named.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from data_shards.atomic import read_json
from data_shards.errors import UserError

_BATCH_ROWS = 1024
_CELL_BYTES = 64 << 20  # the csv module's own limit, 128 kB, is less than some passages


class Row(NamedTuple):
    """One row and where it came from."""

    values: dict[str, Any]
    path: Path
    number: int
    unit: str = "line"

    def error(self, what: str) -> UserError:
        """Return an error that names the row."""
        return UserError(f"{self.path}, {self.unit} {self.number}: {what}")


def read_rows(path: Path, split: str = "train") -> Iterator[Row]:
    """Yield the rows of a file or of a saved dataset, by its name's ending.

    Args:
        path: `.jsonl`, `.tsv` or `.csv` (each also as `.gz`), `.parquet`, or a folder made by `save_to_disk`.
        split: which part of a saved dataset that has several.

    Raises:
        UserError: the file is missing, of no known kind, or damaged; a row of it is malformed.
    """
    if not path.exists():
        raise UserError(f"input {path} does not exist")
    if path.is_dir():
        return _read_saved_dataset(path, split)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending in (".jsonl", ".ndjson"):
        return read_jsonl(path)
    if ending == ".tsv":
        return _read_table(path, _Tsv)
    if ending == ".csv":
        return _read_table(path, _Csv)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    raise UserError(f"input {path} is of no known kind; wanted .jsonl, .tsv, .csv (or these .gz), .parquet, a folder")


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 text, plain or gzip by its name; a byte order mark is passed over.

    Raises:
        UserError: it is missing, damaged or no UTF-8, also where that shows only while it is read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield cast(TextIO, file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch it again") from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; empty lines are passed over.

    Raises:
        UserError: a line is no JSON object; the message names it.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                raise Row({}, path, number).error(f"not JSON ({error.msg} at column {error.colno})") from None
            row = Row(values, path, number)
            if not isinstance(values, dict):
                raise row.error(f"wanted a JSON object, came {type(values).__name__}")
            if "\\ud" in line.lower() and not _is_encodable(values):
                raise row.error("it holds half a surrogate pair (\\ud800 to \\udfff), which is no text")
            yield row


def _is_encodable(values: Any) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class _Csv(csv.excel):
    strict = True  # an unclosed quote is an error, not a cell to the end of the file


class _Tsv(csv.excel_tab):
    quoting = csv.QUOTE_NONE  # TSV as it is found holds stray quotes


def _read_table(path: Path, dialect: type[csv.Dialect]) -> Iterator[Row]:
    csv.field_size_limit(_CELL_BYTES)
    with open_text(path, newline="") as file:
        reader = csv.reader(file, dialect)
        try:
            header = next(reader, None) or []
            for cells in reader:
                row = Row(dict(zip(header, cells, strict=False)), path, reader.line_num)
                if cells and len(cells) != len(header):
                    raise row.error(f"{len(cells)} columns, the header line has {len(header)}")
                if cells:
                    yield row
        except csv.Error as error:
            raise Row({}, path, reader.line_num).error(f"malformed table ({error})") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, path, number, "row")
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}") from None


def _read_saved_dataset(folder: Path, split: str) -> Iterator[Row]:
    """Read what `datasets` saves: Arrow streams, named in `state.json`; several splits have a folder each."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits", [])
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}; there are: {', '.join(map(str, splits))}")
        folder = folder / split
    if not (folder / "state.json").is_file():
        raise UserError(f"input folder {folder} is neither a BEIR folder nor a dataset saved with save_to_disk")
    from pyarrow import ArrowException, ipc, memory_map

    for part in read_json(folder / "state.json").get("_data_files", []):
        path = folder / Path(str(part["filename"])).name
        number = 0
        try:
            with memory_map(str(path)) as source, ipc.open_stream(source) as stream:
                for batch in stream:
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(values, path, number, "row")
        except (ArrowException, OSError) as error:
            raise UserError(f"{path} is no readable Arrow stream: {str(error).splitlines()[0]}") from None
