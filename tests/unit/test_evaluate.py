"""Metrics by hand, runs by exact search, mistakes by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.samples import Passage
from encoder.embed import embed_texts
from encoder.model import Encoder, EncoderSettings, ScratchConfig, scratch_encoder
from index_build.bm25 import bm25_run
from index_build.evaluate import dense_run, evaluate_beir, evaluate_run

CORPUS = [
    Passage(id="d1", title="Cats", text="Cats sleep most of the day."),
    Passage(id="d2", title="Dogs", text="Dogs bark at the mailman."),
    Passage(id="d3", title="Fish", text="Fish swim in the sea, and sleep with open eyes."),
    Passage(id="d4", title="Birds", text="Birds sing in the morning."),
]


def test_metrics_by_hand() -> None:
    """q1 finds its passage at rank 2, q2 both of its at ranks 1 and 3; q3 finds nothing, q4 is not in the run.

    nDCG: 1/log2(3) = 0.6309; (1 + 1/2) / (1 + 1/log2(3)) = 0.9197; 0; 0.
    """
    qrels = {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}, "q3": {"a": 1}, "q4": {"b": 1}}
    run = {"q1": {"x": 0.9, "a": 0.8}, "q2": {"b": -0.1, "y": -0.2, "c": -0.3}, "q3": {}}
    found = evaluate_run(run, qrels)
    ndcg = (1 / math.log2(3) + 1.5 / (1 + 1 / math.log2(3))) / 4
    assert found == pytest.approx({"ndcg@10": ndcg, "mrr@10": (0.5 + 1) / 4, "recall@100": (1 + 1) / 4})


def test_metrics_stop_at_their_depth() -> None:
    """The right passage at rank 11 counts for recall@100 alone; at rank 101 for nothing."""
    ranked = {f"x{rank}": -float(rank) for rank in range(1, 150)}
    assert evaluate_run({"q": {**ranked, "a": -10.5}}, {"q": {"a": 1}}) == {
        "ndcg@10": 0, "mrr@10": 0, "recall@100": 1,
    }  # fmt: skip
    assert evaluate_run({"q": {**ranked, "a": -100.5}}, {"q": {"a": 1}})["recall@100"] == 0


def test_a_query_without_a_relevant_passage_does_not_count() -> None:
    run = {"q1": {"a": 1.0}, "q2": {"a": 1.0}}
    assert evaluate_run(run, {"q1": {"a": 1}, "q2": {"a": 0}})["mrr@10"] == 1.0
    with pytest.raises(UserError, match="no query has a relevant passage"):
        evaluate_run(run, {"q2": {"a": 0}})


def test_bm25_ranks_by_terms_and_leaves_out_what_shares_none() -> None:
    run = bm25_run({"q1": "sleeping cat", "q2": "zebra"}, CORPUS)
    assert list(run["q1"]) == ["d1", "d3"]  # stems: sleep, cat; d3 only sleeps
    assert run["q1"]["d1"] > run["q1"]["d3"] > 0
    assert run["q2"] == {}


def test_bm25_scores_are_lucenes() -> None:
    """Of N = 2 passages of 2 terms each, one has the term, once, and both are of average length.

    ln(1 + (N - n + 0.5) / (n + 0.5)) * tf / (tf + k1) = ln(2) / 1.9 with k1 = 0.9.
    """
    corpus = [Passage(id="a", text="red apple"), Passage(id="b", text="green pear")]
    assert bm25_run({"q": "apple"}, corpus) == {"q": {"a": pytest.approx(math.log(2) / 1.9, rel=1e-5)}}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    config = ScratchConfig(layers=1, width=16, heads=2, vocab_size=300)
    texts = [passage.content for passage in CORPUS]
    return scratch_encoder(config, EncoderSettings(max_tokens=32), texts, seed=0).eval()


def test_dense_run_is_exact_whatever_the_block(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {"q1": "sleep", "q2": "birds"}
    vectors = embed_texts(encoder, [passage.content for passage in CORPUS], side="passage")
    expected = embed_texts(encoder, list(queries.values()), side="query") @ vectors.T
    for block in (2, 100):
        monkeypatch.setattr("index_build.evaluate._BLOCK_PASSAGES", block)
        done: list[int] = []
        run = dense_run(encoder, queries, iter(CORPUS), 3, progress=done.append)
        assert done[-1] == 4
        for at, query in enumerate(queries):
            best = np.argsort(-expected[at])[:3]
            assert list(run[query]) == [CORPUS[row].id for row in best]
            assert list(run[query].values()) == pytest.approx(expected[at][best].tolist(), abs=1e-5)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    rows = [{"_id": passage.id, "title": passage.title, "text": passage.text} for passage in CORPUS]
    tmp_path.joinpath("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [
        {"_id": "q1", "text": "barking dog"},
        {"_id": "q2", "text": "singing bird"},
        {"_id": "q3", "text": "x"},
    ]
    tmp_path.joinpath("queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    tmp_path.joinpath("qrels").mkdir()
    tmp_path.joinpath("qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td4\t1\n")
    return tmp_path


def test_a_beir_folder_is_evaluated_beside_its_baselines(encoder: Encoder, beir: Path) -> None:
    found = evaluate_beir(encoder, beir, "test", ["bm25", "untrained"])
    assert list(found) == ["model", "untrained", "bm25"]
    assert found["bm25"] == {"ndcg@10": 1.0, "mrr@10": 1.0, "recall@100": 1.0}
    assert found["model"]["recall@100"] == found["untrained"]["recall@100"] == 1.0  # four passages, all found
    assert evaluate_beir(None, beir, "test", ["bm25"]) == {"bm25": found["bm25"]}


def test_mistakes_are_named(encoder: Encoder, beir: Path) -> None:
    with pytest.raises(UserError, match="no split 'dev'; there are: test"):
        evaluate_beir(encoder, beir, "dev")
    with pytest.raises(UserError, match="no baseline 'bm52'; there are: bm25, untrained"):
        evaluate_beir(encoder, beir, "test", ["bm52"])
    with pytest.raises(UserError, match="'untrained' takes its architecture from a model"):
        evaluate_beir(None, beir, "test", ["untrained"])
    beir.joinpath("qrels/odd.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td2\t1\n")
    with pytest.raises(UserError, match="split odd judges query 'q9'.*does not hold"):
        evaluate_beir(encoder, beir, "odd")


def test_equal_scores_are_broken_one_way_for_every_metric() -> None:
    """The library's nDCG puts the larger id first, its MRR the smaller: one run, two rankings."""
    tied = {"q": {"b": 1.0, "a": 1.0}}
    assert evaluate_run(tied, {"q": {"a": 1}})["ndcg@10"] == pytest.approx(1.0)
    assert evaluate_run(tied, {"q": {"a": 1}})["mrr@10"] == pytest.approx(1.0)
    assert evaluate_run(tied, {"q": {"b": 1}})["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert evaluate_run(tied, {"q": {"b": 1}})["mrr@10"] == pytest.approx(0.5)
