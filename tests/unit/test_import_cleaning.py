"""The steps of `[cleaning]` inside an import: what each takes away is counted, over parts and segments too."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.importing.config import ImportConfig
from data_shards.importing.importers import ImportTools, import_dataset
from data_shards.manifest import Manifest
from data_shards.reader import PairDataset
from tests.unit.import_helpers import backwards, imported, jsonl

LONG = "the quick brown fox jumps over the lazy dog while seven bored wizards brew very potent potions near town"


def test_texts_are_repaired_before_anything_is_compared(tmp_path: Path) -> None:
    rows = [
        {"query": "how  to\u00a0list", "positive": "schÃ¶n"},
        {"query": "how to list", "positive": "schön"},
        {"query": "\u200b", "positive": "x"},
    ]
    pairs = imported("pairs", [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out")
    assert [(pair.query, pair.positives[0].text) for pair in pairs] == [("how to list", "schön")]
    report = Manifest.load(tmp_path / "out").report
    assert (report["unicode"], report["repeated_positive"], report["blank_query"]) == (1, 1, 1)


def test_length_limits_drop_and_count(tmp_path: Path) -> None:
    rows = [
        {"query": "one two three", "positive": ["one two", "one two three four five"]},
        {"query": "one", "positive": "one two"},
        {"query": "one two", "positive": "one two three four five", "negative": "one"},
    ]
    cleaning = CleaningConfig(query_min_length=2, passage_max_length=4)
    config = ImportConfig(cleaning=cleaning)
    pairs = imported("pairs", [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out", config)
    assert [(pair.query, len(pair.positives)) for pair in pairs] == [("one two three", 1)]
    report = Manifest.load(tmp_path / "out").report
    assert (report["query_too_short"], report["passage_too_long"], report["pair_without_positive"]) == (1, 2, 1)


def test_near_duplicates_are_found_over_parts_and_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.importing.segments.SEGMENT_ROWS", 2)
    one = jsonl(tmp_path / "one.jsonl", [{"id": f"a{n}", "text": f"{n} " * 20} for n in range(3)] + [{"text": LONG}])
    two = jsonl(
        tmp_path / "two.jsonl", [{"id": "near", "text": LONG + " today"}, {"id": "far", "text": "other words"}]
    )
    config = ImportConfig(cleaning=CleaningConfig(near_duplicates=True))
    tools = ImportTools(run_parts=backwards)
    manifest = import_dataset("corpus", [one, two], tmp_path / "out", config, tools)
    assert (manifest.samples, manifest.report["near_duplicate"]) == (5, 1)
    plain = import_dataset("corpus", [one, two], tmp_path / "plain", None, tools)
    assert plain.samples == 6


def test_pairs_are_nearly_the_same_by_their_queries_and_only_with_one_positive(tmp_path: Path) -> None:
    """A page that answers many questions keeps them all."""
    rows = [
        {"query": LONG, "positive": "the page"},
        {"query": LONG + " today", "positive": "the page"},
        {"query": LONG + " today", "positive": "another page"},
        {"query": "something else entirely that is asked of it", "positive": "the page"},
    ]
    config = ImportConfig(cleaning=CleaningConfig(near_duplicates=True))
    manifest = import_dataset("pairs", [jsonl(tmp_path / "p.jsonl", rows)], tmp_path / "out", config)
    assert (manifest.samples, manifest.report["near_duplicate"]) == (3, 1)
    assert [pair.positives[0].text for pair in PairDataset(tmp_path / "out")] == [
        "the page",
        "another page",
        "the page",
    ]


def test_long_documents_become_passages_with_ids_that_lead_back(tmp_path: Path) -> None:
    text = " ".join(f"This is sentence number {n} of the text." for n in range(20))
    config = ImportConfig(cleaning=CleaningConfig(chunk_tokens=40, chunk_overlap_tokens=8))
    path = jsonl(tmp_path / "in.jsonl", [{"id": "long", "text": text}, {"id": "short", "text": "short"}])
    passages = imported("corpus", [path], tmp_path / "out", config)
    assert passages[-1].id == "short#0000"
    assert [passage.id for passage in passages[:-1]] == [f"long#{n:04d}" for n in range(len(passages) - 1)]
    report = Manifest.load(tmp_path / "out").report
    assert (report["documents_cut"], report["chunks_added"]) == (1, len(passages) - 2)
    assert (report["passages_read"], report["passages_kept"]) == (2, len(passages))


def test_evaluation_queries_do_not_train_and_their_change_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "eval.txt").write_text("How to list files?\n")
    rows = [{"query": "how to list files", "positive": "ls"}, {"query": "how to move files", "positive": "mv"}]
    path = jsonl(tmp_path / "in.jsonl", rows)
    config = ImportConfig(cleaning=CleaningConfig(decontaminate=(str(tmp_path / "eval.txt"),)))
    pairs = imported("pairs", [path], tmp_path / "out", config)
    assert [pair.query for pair in pairs] == ["how to move files"]
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.report["evaluation_query"] == 1
    assert manifest.made_by["settings"]["cleaning"]["decontaminate"] == ["eval.txt"]
    (tmp_path / "eval.txt").write_text("How to move files?\n")
    assert [pair.query for pair in imported("pairs", [path], tmp_path / "two", config)] == ["how to list files"]
    assert Manifest.load(tmp_path / "two").made_by["settings_hash"] != manifest.made_by["settings_hash"]


def test_limits_in_tokens_need_a_tokenizer(tmp_path: Path) -> None:
    config = ImportConfig(cleaning=CleaningConfig(length_unit="tokens", query_max_length=4))
    path = jsonl(tmp_path / "in.jsonl", [{"query": "abcdef", "positive": "x"}, {"query": "abc", "positive": "x"}])
    with pytest.raises(UserError, match=r"name a tokenizer folder in cleaning\.tokenizer"):
        import_dataset("pairs", [path], tmp_path / "out", config)
    manifest = import_dataset("pairs", [path], tmp_path / "out", config, ImportTools(count_tokens=len))
    assert manifest.report["query_too_long"] == 1
