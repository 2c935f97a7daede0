"""Rows of the text files that people keep data in: JSONL, TSV and CSV, plain or gzip.

A row remembers its file and line, so that a mistake in it can be named. The `…_rows` functions yield a malformed
line as a row that holds its problem, so that the reader decides whether one stops everything; a file that is damaged
as a whole raises. Plain JSONL and TSV can be read from any line's beginning, so that many may share a large file.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

import msgspec

from data_shards.encodings import not_utf8, undecoded
from data_shards.errors import UserError

_LINE_BYTES = 64 << 20  # also of a cell: the csv module's own limit, 128 kB, is less than some passages
_COUNT_BYTES = 1 << 20
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some programs put before UTF-8


class RowError(UserError):
    """One row is malformed; the rest of its file may be sound."""

    what = ""
    """The mistake alone, without the place."""


class Row(NamedTuple):
    """One row and where it came from."""

    values: dict[str, Any]
    path: Path
    number: int
    unit: str = "line"
    base: int = 0
    """Bytes of the file before the piece in which `number` counts."""
    problem: str = ""
    """What is wrong with it, if something is; `values` is empty then."""
    raw: bytes = b""
    """A malformed row as it stands in the file."""

    @property
    def place(self) -> int:
        """Its number in the whole file."""
        return self.number + (_lines_before(self.path, self.base) if self.base else 0)

    def error(self, what: str) -> RowError:
        """Return an error that names the row."""
        error = RowError(f"{self.path}, {self.unit} {self.place}: {what}")
        error.what = what
        return error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file's bytes, plain or gzip by its name.

    Raises:
        UserError: it is missing, or a damaged gzip, also where that shows only while it is read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch it again") from None


@contextmanager
def open_text(path: Path, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 text, plain or gzip by its name; a byte order mark is passed over.

    Args:
        path: the file.
        newline: as `open` takes it.
        errors: as `open` takes it: what becomes of bytes that are no UTF-8.

    Raises:
        UserError: it is missing, damaged or no UTF-8, also where that shows only while it is read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=newline, errors=errors) as file:
            yield cast(TextIO, file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is {not_utf8(error.object, error.reason)}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch it again") from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; empty lines are passed over.

    Raises:
        UserError: a line is no JSON object; the message names it.
    """
    for row in jsonl_rows(path):
        if row.problem:
            raise row.error(row.problem)
        yield row


def jsonl_rows(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """Yield the rows of a JSONL file, or of its lines between two bytes.

    Raises:
        UserError: the file is missing or damaged.
    """
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in _lines(path, begin, end):
        if len(line) > _LINE_BYTES:
            yield Row({}, path, number, base=begin, problem=_TOO_LONG, raw=line[:_COUNT_BYTES])
            continue
        try:
            yield Row(decode(line), path, number, base=begin)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if line.strip():
                yield _slowly(line, path, number, begin)


def tsv_rows(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """Yield the rows of a TSV file, or of its lines between two bytes; quotes stand for themselves.

    Raises:
        UserError: the file is missing or damaged, or its header line does not name columns.
    """
    header = _header(path)
    for number, line in _lines(path, begin, end):
        if (begin == 0 and number == 1) or not line.strip(b"\r\n"):
            continue
        if len(line) > _LINE_BYTES:
            yield Row({}, path, number, base=begin, problem=_TOO_LONG, raw=line[:_COUNT_BYTES])
            continue
        try:
            cells = line.rstrip(b"\r\n").decode().split("\t")
        except UnicodeDecodeError as error:
            yield Row({}, path, number, base=begin, problem=not_utf8(line, error.reason), raw=line)
            continue
        if len(cells) != len(header):
            problem = _uneven(cells, header)
            yield Row({}, path, number, base=begin, problem=problem, raw=line)
        else:
            yield Row(dict(zip(header, cells, strict=True)), path, number, base=begin)


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file; cells may hold line breaks, so it is read as a whole.

    Raises:
        UserError: the file is missing or damaged, a quote is never closed, or its header does not name columns.
    """
    csv.field_size_limit(_LINE_BYTES)
    with open_text(path, newline="", errors="surrogateescape") as file:
        reader = csv.reader(file, _Csv)
        try:
            header = next(reader, None)
            if header is None:
                return
            if (raw := undecoded(header)) is not None:
                raise UserError(f"{path} is {not_utf8(raw, 'in the header line')}")
            _check_header(header, path)
            for cells in reader:
                if cells:
                    yield _csv_row(cells, header, path, reader.line_num)
        except csv.Error as error:
            # Not to be set aside as one row: behind an open quote, all the rest of the file is missing.
            raise UserError(f"{path}, line {reader.line_num}: malformed table ({error})") from None


def line_borders(path: Path, piece_bytes: int) -> list[int]:
    """Cut a plain file at lines' beginnings into pieces of about a size; return where they begin and the end."""
    size = path.stat().st_size
    borders = [0]
    with open(path, "rb") as file:
        while (wanted := borders[-1] + piece_bytes) < size:
            file.seek(wanted)
            while (piece := file.readline(_COUNT_BYTES)) and not piece.endswith(b"\n"):
                continue
            borders.append(file.tell())
    if borders[-1] < size:
        borders.append(size)
    return borders


def _csv_row(cells: list[str], header: list[str], path: Path, number: int) -> Row:
    if (raw := undecoded(cells)) is not None:
        return Row({}, path, number, problem=not_utf8(raw), raw=raw)
    if len(cells) != len(header):
        return Row({}, path, number, problem=_uneven(cells, header), raw=",".join(cells).encode())
    return Row(dict(zip(header, cells, strict=True)), path, number)


class _Csv(csv.excel):
    strict = True  # an unclosed quote is an error, not a cell to the end of the file


_TOO_LONG = f"it has more than {_LINE_BYTES >> 20} MiB, which is no row"


def _lines(path: Path, begin: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line); of one that is too long only the beginning, one byte more than allowed."""
    with opened(path) as file:
        file.seek(begin)
        position, number = begin, 0
        while (end is None or position < end) and (line := file.readline(_LINE_BYTES + 1)):
            number += 1
            position += len(line)
            piece = line
            while len(piece) > _COUNT_BYTES and not piece.endswith(b"\n"):
                piece = file.readline(_LINE_BYTES + 1)
                position += len(piece)
            yield number, line.removeprefix(_MARK) if begin == 0 and number == 1 else line


def _slowly(line: bytes, path: Path, number: int, begin: int) -> Row:
    """Read what the fast decoder refused: it may be NaN, which the standard library takes, or a mistake to name."""
    try:
        values = json.loads(line.decode().rstrip("\r\n"))
        json.dumps(values, ensure_ascii=False).encode()
        if isinstance(values, dict):
            return Row(values, path, number, base=begin)
        problem = f"wanted a JSON object, came {type(values).__name__}"
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})"
    except UnicodeEncodeError:
        problem = "it holds half a surrogate pair (\\ud800 to \\udfff), which is no text"
    except UnicodeDecodeError as error:
        problem = not_utf8(line, f"{error.reason} at byte {error.start} of the line")
    except RecursionError:
        problem = "not JSON (nested too deep)"
    return Row({}, path, number, base=begin, problem=problem, raw=line)


def _header(path: Path) -> list[str]:
    with opened(path) as file:
        line = file.readline(_COUNT_BYTES).removeprefix(_MARK)
    try:
        header = line.rstrip(b"\r\n").decode().split("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is {not_utf8(line, f'{error.reason} in the header line')}") from None
    _check_header(header, path)
    return header


def _check_header(header: list[str], path: Path) -> None:
    if len(set(header)) != len(header):
        name = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path}: the header line names the column {name!r} twice; rename one")


def _uneven(cells: list[str], header: list[str]) -> str:
    return f"{len(cells)} columns, the header line has {len(header)}"


@lru_cache(maxsize=64)
def _lines_before(path: Path, position: int) -> int:
    """Count the lines of a plain file before a byte: only ever asked for when one has to be named."""
    lines = 0
    with open(path, "rb") as file:
        while position > 0 and (block := file.read(min(position, _COUNT_BYTES))):
            lines += block.count(b"\n")
            position -= len(block)
    return lines
