"""A malformed row stops the import, or is set aside with its place and its reason, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.importing.config import ImportConfig, InputConfig
from data_shards.importing.importers import QUARANTINE_NAME, import_dataset
from data_shards.manifest import Manifest
from data_shards.tar import write_tar
from tests.unit.import_helpers import imported, jsonl

ASIDE = ImportConfig(input=InputConfig(on_error="quarantine"))


def quarantined(folder: Path) -> list[dict[str, Any]]:
    """Return the entries, and see that the report counts them."""
    rows = [json.loads(line) for line in (folder / QUARANTINE_NAME).read_text(encoding="utf-8").splitlines()]
    assert Manifest.load(folder).report["quarantined"] == len(rows)
    return rows


def test_malformed_rows_are_set_aside_and_the_rest_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'{"query": "q1", "positive": "a"}\n'
        b'{"query": "q2"\n'
        b'{"query": 5, "positive": "a"}\n'
        b'{"query": "\xe9"}\n'
        b'{"query": "q5", "positive": "b"}\n'
    )
    pairs = imported("pairs", [path], tmp_path / "out", ASIDE)
    assert [pair.query for pair in pairs] == ["q1", "q5"]
    first, second, third = quarantined(tmp_path / "out")
    assert first["file"] == "in.jsonl"
    assert (first["line"], first["raw"]) == (2, '{"query": "q2"')
    assert first["reason"].startswith("not JSON (")
    assert (second["line"], second["reason"]) == (3, "the query is of type int, wanted text")
    assert json.loads(second["raw"]) == {"query": 5, "positive": "a"}
    assert (third["line"], third["raw"]) == (4, '{"query": "\ufffd"}')
    assert Manifest.load(tmp_path / "out").report["pairs_read"] == 2
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: not JSON"):
        import_dataset("pairs", [path], tmp_path / "stopped")


def test_a_raw_row_is_cut_to_two_kilobytes(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"query": "q", "positive": "a"}, {"query": "é" * 3000}])
    imported("pairs", [path], tmp_path / "out", ASIDE)
    (row,) = quarantined(tmp_path / "out")
    assert 1500 < len(row["raw"].encode()) <= 2051


def test_without_a_malformed_row_there_is_no_quarantine_file(tmp_path: Path) -> None:
    imported("pairs", [jsonl(tmp_path / "in.jsonl", [{"query": "q", "positive": "a"}])], tmp_path / "out", ASIDE)
    assert not (tmp_path / "out" / QUARANTINE_NAME).exists()
    assert "quarantined" not in Manifest.load(tmp_path / "out").report


def test_rows_of_a_table_and_of_a_beir_folder_too(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("query\tpositive\nq\tp\nq\tp\tmore\n")
    imported("pairs", [tmp_path / "in.tsv"], tmp_path / "table", ASIDE)
    assert [row["reason"] for row in quarantined(tmp_path / "table")] == ["3 columns, the header line has 2"]
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n{"_id": "d2"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "q"}\nbroken\n')
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\nq1\td2\t1\n")
    imported("pairs", [folder], tmp_path / "joined", ASIDE)
    found = [(row["file"], row["line"]) for row in quarantined(tmp_path / "joined")]
    assert found == [("beir/queries.jsonl", 2), ("beir/corpus.jsonl", 2)]
    imported("corpus", [folder], tmp_path / "corpus", ASIDE)
    assert [row["file"] for row in quarantined(tmp_path / "corpus")] == ["beir/corpus.jsonl"]


def test_ids_of_a_beir_folder_that_name_two_texts_are_set_aside_but_the_first(tmp_path: Path) -> None:
    """Only of what is judged: nothing else comes into the pairs. The same text again is no harm."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    passages = [("d1", "a"), ("d1", "a"), ("d1", "other"), ("d2", "b"), ("d2", "not judged"), (None, "no id")]
    jsonl(folder / "corpus.jsonl", [{"_id": name, "text": text} for name, text in passages])
    queries = [("q1", "first"), ("q1", "first"), ("q1", "second"), ("q2", "x"), ("q2", "y"), ("", "no id")]
    jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries])
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    (pair,) = imported("pairs", [folder], tmp_path / "out", ASIDE)
    assert (pair.query, [passage.text for passage in pair.positives]) == ("first", ["a"])
    found = [(row["file"], row["line"], row["reason"]) for row in quarantined(tmp_path / "out")]
    assert found == [
        ("beir/queries.jsonl", 3, "the id 'q1' names another query before"),
        ("beir/queries.jsonl", 6, "wanted `_id` and `text` of a query"),
        ("beir/corpus.jsonl", 3, "the id 'd1' names another passage before"),
        ("beir/corpus.jsonl", 6, "wanted `_id` and `text` of a passage"),
    ]
    with pytest.raises(UserError, match=r"queries\.jsonl, line 3: the id 'q1' names another query before"):
        import_dataset("pairs", [folder], tmp_path / "stopped")


def test_a_sample_of_a_tar_that_is_nested_too_deep_is_set_aside(tmp_path: Path) -> None:
    deep = b'{"query": ' + b"[" * 100_000
    write_tar(tmp_path / "in.tar", [("1.json", b'{"query": "q", "positive": "a"}'), ("2.json", deep)])
    assert len(imported("pairs", [tmp_path / "in.tar"], tmp_path / "out", ASIDE)) == 1
    (row,) = quarantined(tmp_path / "out")
    assert (row["sample"], "recursion" in row["reason"]) == (2, True)


def test_what_is_set_aside_takes_no_near_duplicate_along(tmp_path: Path) -> None:
    """It would be the first of its group, the others would go for its sake, and nothing of the text were left."""
    words = [f"word{at}" for at in range(60)]
    rows = [
        {"id": "1", "text": "something else"},
        {"id": "1", "text": " ".join(words)},
        {"id": "2", "text": " ".join([*words[:-1], "changed"])},
        {"id": "3", "text": " ".join([*words[:-1], "again"])},
    ]
    config = ImportConfig(input=ASIDE.input, cleaning=CleaningConfig(near_duplicates=True))
    found = imported("corpus", [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out", config)
    assert [passage.id for passage in found] == ["1", "2"]
    report = Manifest.load(tmp_path / "out").report
    assert (report["quarantined"], report["near_duplicate"]) == (1, 1)


def test_an_id_that_names_two_passages_is_set_aside_but_the_first(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "one.jsonl", [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}])
    second = jsonl(tmp_path / "two.jsonl", [{"id": "1", "text": "a"}, {"id": "1", "text": "other"}])
    found = imported("corpus", [first, second], tmp_path / "out", ASIDE)
    assert [(passage.id, passage.text) for passage in found] == [("1", "a"), ("2", "b")]
    (row,) = quarantined(tmp_path / "out")
    assert (row["file"], row["reason"]) == ("two.jsonl", "the id '1' names another passage before")
    assert json.loads(row["raw"])["text"] == "other"
    assert Manifest.load(tmp_path / "out").report["repeated_passage"] == 1
    with pytest.raises(UserError, match=r"two\.jsonl: two different passages have the id '1'; ids must be unique"):
        import_dataset("corpus", [first, second], tmp_path / "stopped")


@pytest.mark.parametrize("name", ["in.csv", "in.tsv"])
def test_rows_of_a_table_in_another_encoding_are_set_aside(tmp_path: Path, name: str) -> None:
    """As a spreadsheet of the nineties writes it: what is ASCII is imported."""
    mark = "," if name == "in.csv" else "\t"
    rows = [["query", "positive"], ["q1", "plain"], ["q2", "café crème"], ["q3", "plain too"]]
    (tmp_path / name).write_bytes("\r\n".join(mark.join(row) for row in rows).encode("latin-1"))
    pairs = imported("pairs", [tmp_path / name], tmp_path / "out", ASIDE)
    assert [pair.query for pair in pairs] == ["q1", "q3"]
    (row,) = quarantined(tmp_path / "out")
    assert (row["line"], row["raw"]) == (3, f"q2{mark}caf\ufffd cr\ufffdme")
    with pytest.raises(UserError, match=rf"{name}, line 3: not UTF-8 text.*; it looks like WINDOWS-1252, convert"):
        import_dataset("pairs", [tmp_path / name], tmp_path / "stopped")


def test_a_file_that_is_damaged_as_a_whole_still_stops(tmp_path: Path) -> None:
    """Behind an open quote all rows are missing: one line in a quarantine file would hide that."""
    (tmp_path / "in.csv").write_text('query,positive\nq,p\nq,"never closed\nq,p\n')
    with pytest.raises(UserError, match=r"in\.csv, line 4: malformed table"):
        import_dataset("pairs", [tmp_path / "in.csv"], tmp_path / "out", ASIDE)
