"""Rows of text files: cut anywhere, every row is read once; each mistake is named by its line in the whole file."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from data_shards.errors import UserError
from data_shards.rows import csv_rows, jsonl_rows, line_borders, read_jsonl, tsv_rows


def lines_of(path: Path, piece_bytes: int) -> list[int]:
    """Read a JSONL file piece by piece; return the `n` of each row."""
    borders = line_borders(path, piece_bytes)
    return [row.values["n"] for begin, end in pairwise(borders) for row in jsonl_rows(path, begin, end)]


@pytest.mark.parametrize("piece_bytes", [1, 10, 11, 100, 10_000])
@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_file_in_pieces_is_the_whole_file(tmp_path: Path, piece_bytes: int, ending: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps({"n": n, "x": "é" * (n % 7)}, ensure_ascii=False) for n in range(50)) + ending
    )
    assert lines_of(path, piece_bytes) == list(range(50))
    borders = line_borders(path, piece_bytes)
    assert (borders[0], borders[-1]) == (0, path.stat().st_size)
    assert len(borders) > 40 or piece_bytes > 30


def test_borders_of_an_empty_file_and_of_one_long_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    assert line_borders(path, 10) == [0]
    path.write_text('{"n": 1, "x": "' + "y" * 500 + '"}')
    assert line_borders(path, 10) == [0, path.stat().st_size]


def test_a_mistake_in_a_later_piece_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n\n{"n": 3}\nbroken\n{"n": 5}\n')
    begin = path.read_text().index("broken")
    broken, last = jsonl_rows(path, begin)
    assert (broken.number, broken.place, last.place) == (1, 4, 5)
    assert "a.jsonl, line 4: oh" in str(broken.error("oh"))
    assert broken.raw == b"broken\n"


def test_what_only_the_standard_library_reads_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": NaN}\r\n{"n": 2}\r\n')
    first, second = read_jsonl(path)
    assert first.values["n"] != first.values["n"]
    assert second.values == {"n": 2}


def test_text_that_is_no_utf_8_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"n": "é"}\n{"n": 2}\n'.encode("latin-1"))
    bad, good = jsonl_rows(path)
    assert bad.problem == (
        "not UTF-8 text (invalid continuation byte at byte 7 of the line); it looks like WINDOWS-1252, "
        "convert the file with `iconv -f WINDOWS-1252 -t UTF-8`"
    )
    assert good.values == {"n": 2}
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: not UTF-8"):
        list(read_jsonl(path))


def test_an_object_that_is_nested_too_deep_is_one_bad_row(tmp_path: Path) -> None:
    """The quick decoder has an error of its own for it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": ' + b"[" * 100_000 + b'\n{"n": 2}\n')
    bad, good = jsonl_rows(path)
    assert bad.problem == "not JSON (nested too deep)"
    assert good.values == {"n": 2}


def test_a_row_of_a_csv_that_is_no_utf_8_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffn,x\r\n1,é\r\n".encode() + 'no,"caf\xe9\nau lait"\r\n3,x\r\n'.encode("latin-1"))
    first, bad, third = csv_rows(path)
    assert (first.values, third.values) == ({"n": "1", "x": "é"}, {"n": "3", "x": "x"})
    assert bad.problem.startswith("not UTF-8 text; it looks like WINDOWS-1252, convert the file with `iconv -f WIN")
    assert (bad.raw, bad.place) == (b"no,caf\xe9\nau lait", 4)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("größe,x\n1,2\n".encode("latin-1"), r"in the header line\); it looks like WINDOWS-1252, convert"),
        (
            "größe,x\n1,2\n".encode("utf-16"),
            r"in the header line\); it looks like UTF-16, convert the file with `iconv",
        ),
        ("вопрос,ответ\n1,2\n".encode("cp1251"), r"in the header line\); convert the file with `iconv -f ENCODING"),
    ],
)
def test_a_header_that_is_no_utf_8_is_one_line_with_the_fix(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """Nothing in the file can be told by name then."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 text \(.*{message}"):
        list((tsv_rows if name == "a.tsv" else csv_rows)(tmp_path / name))


def test_a_line_that_is_far_too_long_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.rows._LINE_BYTES", 20)
    monkeypatch.setattr("data_shards.rows._COUNT_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": "' + "x" * 95 + '"}\n{"n": 3}\n')
    first, long, third = jsonl_rows(path)
    assert (first.values, third.values, third.place) == ({"n": 1}, {"n": 3}, 3)
    assert "which is no row" in long.problem
    assert len(long.raw) == 10


def test_the_header_of_a_tsv_counts_for_every_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("\ufeffquery\tpositive\r\na\tb\r\n\r\nc\td\r\ne\n")
    rows = list(tsv_rows(path))
    assert [row.values for row in rows] == [
        {"query": "a", "positive": "b"},
        {"query": "c", "positive": "d"},
        {},
    ]
    assert rows[2].problem == "1 columns, the header line has 2"
    begin = path.read_bytes().index(b"c\t")
    assert [row.place for row in tsv_rows(path, begin)] == [4, 5]
    assert next(tsv_rows(path, begin)).values == {"query": "c", "positive": "d"}


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_a_column_that_comes_twice_is_refused(tmp_path: Path, name: str) -> None:
    mark = "\t" if name == "a.tsv" else ","
    (tmp_path / name).write_text(mark.join(["q", "q"]) + "\n" + mark.join(["1", "2"]))
    with pytest.raises(UserError, match="names the column 'q' twice; rename one"):
        list((tsv_rows if name == "a.tsv" else csv_rows)(tmp_path / name))


def test_a_gzip_file_cut_short_is_an_error_and_no_end(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"n": 1}\n' * 10_000)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-10])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is a damaged gzip file"):
        list(jsonl_rows(tmp_path / "a.jsonl.gz"))
