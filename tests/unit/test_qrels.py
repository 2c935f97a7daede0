"""Judgements and BEIR folders."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from data_shards.qrels import read_qrels
from data_shards.samples import Passage

JUDGED = {"q1": {"d1": 1, "d 2": 0}, "q2": {"d1": 2}}


def test_beir_judgements_are_read(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td 2\t0\n\nq2\td1\t2\n")
    assert read_qrels(path) == JUDGED
    path.write_text("q1\td1\t1\nq1\td 2\t0\r\nq2\td1\t2\n")  # without a header
    assert read_qrels(path) == JUDGED


def test_trec_judgements_are_read(tmp_path: Path) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text("q1 0 d1 1\nq1\tQ0\td2\t-1\n")
    assert read_qrels(path) == {"q1": {"d1": 1, "d2": -1}}


def test_gzip_is_taken_by_its_name(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "test.tsv.gz", "wt") as file:
        file.write("q1\td1\t1\n")
    assert read_qrels(tmp_path / "test.tsv.gz") == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1\td1\t1\nq1\td2\n", "line 2: wanted query, passage and grade, came 'q1\\\\td2'"),
        ("q1\td1\t1\nq1\td2\thigh\n", "line 2: grade 'high' is no whole number"),
        ("q1\td1\t1\nq1\td1\t2\n", "line 2: q1 and d1 are judged 2, before 1"),
        ("query-id\tcorpus-id\tscore\n", "holds no judgement"),
        ("", "holds no judgement"),
    ],
)
def test_a_malformed_judgement_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "test.tsv").write_text(text)
    with pytest.raises(UserError, match=f"test.tsv.* {message}"):
        read_qrels(tmp_path / "test.tsv")


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tsv does not exist"):
        read_qrels(tmp_path / "none.tsv")
    packed = gzip.compress(b"q1\td1\t1\n" * 1000)
    (tmp_path / "a.tsv.gz").write_bytes(packed[:-20])
    (tmp_path / "b.tsv.gz").write_bytes(b"no gzip at all")
    for name in ("a", "b"):
        with pytest.raises(UserError, match=rf"{name}\.tsv\.gz is a damaged gzip file"):
            read_qrels(tmp_path / f"{name}.tsv.gz")
    (tmp_path / "latin.tsv").write_bytes("q1\tdé\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.tsv is not UTF-8 text \(.*\); it looks like WINDOWS-1252"):
        read_qrels(tmp_path / "latin.tsv")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.write('{"_id": "d1", "title": "One", "text": "first"}\n{"_id": 2, "text": "second"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "which is first?"}\n')
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    with gzip.open(folder / "qrels" / "test.tsv.gz", "wt") as file:
        file.write("q1\t2\t1\n")
    return folder


def test_a_beir_folder_is_read_plain_or_packed(beir: Path) -> None:
    folder = BeirFolder(beir)
    assert list(folder.corpus()) == [Passage(id="d1", title="One", text="first"), Passage(id="2", text="second")]
    assert folder.queries() == {"q1": "which is first?"}
    assert folder.splits == ["test", "train"]
    assert folder.qrels("test") == {"q1": {"2": 1}}


def test_an_unknown_split_is_named_with_those_there_are(beir: Path) -> None:
    with pytest.raises(UserError, match="has no split 'dev'; there are: test, train"):
        BeirFolder(beir).qrels("dev")


@pytest.mark.parametrize("part", ["corpus.jsonl.gz", "queries.jsonl"])
def test_a_missing_part_is_named(beir: Path, part: str) -> None:
    (beir / part).unlink()
    with pytest.raises(UserError, match=f"has no {part.removesuffix('.gz')} or .*; wanted a BEIR folder"):
        BeirFolder(beir)


def test_a_folder_without_judgements_is_refused(beir: Path) -> None:
    for path in (beir / "qrels").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"has no qrels/SPLIT\.tsv"):
        BeirFolder(beir)
    with pytest.raises(UserError, match="nowhere is no folder"):
        BeirFolder(beir / "nowhere")


@pytest.mark.parametrize("row", [{"text": "x"}, {"_id": "d3"}, {"_id": "d3", "text": 5}, {"_id": "d", "text": None}])
def test_a_row_without_id_or_text_is_named(beir: Path, row: dict[str, object]) -> None:
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n' + json.dumps(row))
    with gzip.open(beir / "corpus.jsonl.gz", "wt") as file:
        file.write(json.dumps(row))
    with pytest.raises(UserError, match=r"queries\.jsonl, line 2: wanted `_id` and `text` of a query"):
        BeirFolder(beir).queries()
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz, line 1: wanted `_id` and `text`"):
        list(BeirFolder(beir).corpus())
