"""Evaluation queries are found in training data, and no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.decontamination import Decontaminator
from data_shards.errors import UserError

LONG = "which of the many small islands in the north sea were settled first and by whom exactly"


def knows(tmp_path: Path, *texts: str, **settings: object) -> Decontaminator:
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    return Decontaminator(CleaningConfig(decontaminate=(str(path),), **settings))


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A folder with a passage that is relevant in test, one in train, one nowhere."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [("d1", "Title", "relevant in test"), ("d2", "", "relevant in train"), ("d3", "", "never relevant")]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"_id": key, "title": title, "text": text}) + "\n" for key, title, text in corpus)
    queries = [("q1", "a query of test"), ("q2", "a query of train")]
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in queries)
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td3\t0\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    return folder


def test_a_query_is_found_whatever_its_case_width_and_punctuation(tmp_path):
    known = knows(tmp_path, "How to sort a list?", "日本語の質問")
    for text in ("how to sort a list", "  HOW to sort, a LIST!!", "Ｈｏｗ to sort a list", "日本語の質問？"):
        assert known.hits(text), text
    for text in ("how to sort a list in python", "sort a list", "how to sort a set", "a list to sort how", "", "?!"):
        assert not known.hits(text), text


def test_long_texts_are_found_by_thirteen_words_in_a_row(tmp_path):
    known = knows(tmp_path, LONG)
    words = LONG.split()
    assert len(words) == 17
    assert known.hits(f"please tell me {LONG} thank you")
    assert known.hits(" ".join(["so", *words[2:15], "then"]))
    assert not known.hits(" ".join(["so", *words[2:14], "then"]))
    assert not known.hits(" ".join(words[:12]))


def test_the_number_of_words_can_be_set(tmp_path):
    known = knows(tmp_path, LONG, decontaminate_words=5)
    assert known.hits("the north sea were settled")
    assert not known.hits("the north sea were")


def test_an_instruction_before_every_query_is_no_evidence(tmp_path):
    prompt = "given the following question from a user find the passage in the encyclopedia that answers it"
    known = knows(tmp_path, *(f"{prompt} question number {number}" for number in range(11)))
    assert known.hits(f"{prompt} question number 7")
    assert not known.hits(f"{prompt} what is the highest mountain")
    fewer = knows(tmp_path, *(f"{prompt} question number {number}" for number in range(10)))
    assert fewer.hits(f"{prompt} what is the highest mountain")


def test_of_a_beir_folder_only_the_named_split_counts(beir):
    known = Decontaminator(CleaningConfig(decontaminate=(f"{beir}:test",)))
    assert known.hits("A query of test.")
    assert not known.hits("a query of train")
    both = Decontaminator(CleaningConfig(decontaminate=(f"{beir}:test", f"{beir}:train")))
    assert both.hits("a query of train")


def test_positives_of_evaluation_queries_are_known_apart(beir):
    known = Decontaminator(CleaningConfig(decontaminate=(f"{beir}:test",)))
    assert known.hits_positive("title: Relevant in test")
    assert not known.hits_positive("relevant in test")
    assert not known.hits_positive("relevant in train")
    assert not known.hits_positive("never relevant")
    assert not known.hits("Title relevant in test")
    config = CleaningConfig(decontaminate=(f"{beir}:test",), decontaminate_positives="ignore")
    assert not Decontaminator(config).hits_positive("Title relevant in test")


def test_queries_may_come_from_jsonl(tmp_path):
    path = tmp_path / "queries.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"query": "first one"}\n{"text": "second one"}\n')
    known = Decontaminator(CleaningConfig(decontaminate=(str(path),)))
    assert [known.hits(text) for text in ("first one", "Second one", "third one")] == [True, True, False]


def test_without_evaluation_data_nothing_hits():
    known = Decontaminator(CleaningConfig())
    assert not known.hits("anything")
    assert not known.hits_positive("anything")


def test_mistakes_are_named(tmp_path, beir):
    def message(place: str) -> str:
        with pytest.raises(UserError) as raised:
            Decontaminator(CleaningConfig(decontaminate=(place,)))
        return str(raised.value)

    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"query": "x"}\n{"answer": "y"}\n')
    (tmp_path / "queries.csv").write_text("a,b")
    assert message(f"{tmp_path}/nowhere:test").endswith(
        "does not exist; wanted FOLDER:SPLIT of a BEIR folder, or a .txt or .jsonl file"
    )
    assert "has no split 'dev'; there are: test, train" in message(f"{beir}:dev")
    assert message(str(tmp_path / "empty.txt")).endswith("empty.txt holds no query")
    assert "bad.jsonl, line 2: no evaluation query (looked for query, text" in message(str(tmp_path / "bad.jsonl"))
    assert "queries.csv is neither .txt nor .jsonl" in message(str(tmp_path / "queries.csv"))
