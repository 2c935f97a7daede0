"""The dev metric by hand, and a corpus that is the same whatever the order of its file."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from data_shards.collate import Chunk
from data_shards.errors import UserError
from data_shards.samples import Passage
from encoder.model import Encoder
from train import dev_search
from train.dev import Best, DevConfig, DevSet
from train.dev_search import nearest_on_all_ranks
from train.health import TrainingDivergedError


class OneWordOneVector(nn.Module):
    """An encoder whose vectors are known: each text is one word, each word has its vector in the plane."""

    dim = 2
    words = ("<pad>", "east", "north-east", "north", "west")
    vectors = ((0.0, 0.0), (1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (-1.0, 0.0))

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(self.vectors))
        self.tokenizer = type("Tokenizer", (), {"pad_token_id": 0})

    def tokenize(self, texts: Sequence[str], side: str, max_tokens: int | None = None) -> list[list[int]]:
        return [[self.words.index(text)] for text in texts]

    def encode(self, chunk: Chunk, side: str) -> Tensor:
        return self.table[chunk.input_ids[:, 0]]


def write_beir(
    folder: Path, corpus: dict[str, str], queries: dict[str, str], qrels: list[tuple[str, str, int]]
) -> Path:
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in corpus.items())
    with open(folder / "queries.jsonl", "w") as file:
        file.writelines(json.dumps({"_id": name, "text": text}) + "\n" for name, text in queries.items())
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(lines) + "\n")
    return folder


def evaluate(folder: Path, **settings: Any) -> dict[str, float]:
    model = OneWordOneVector()
    dev = DevSet(DevConfig(data=str(folder), **settings))
    return dev.evaluate(model.encode, cast(Encoder, model), device=torch.device("cpu"), tokens_per_chunk=8)


def test_ndcg_by_hand(tmp_path: Path) -> None:
    """Query "east" finds e, ne, n, w; its answers are ne (grade 1) and n (grade 2). Query "north" finds n first."""
    corpus = {"e": "east", "ne": "north-east", "n": "north", "w": "west"}
    queries = {"q1": "east", "q2": "north", "q3": "west"}
    folder = write_beir(tmp_path / "beir", corpus, queries, [("q1", "ne", 1), ("q1", "n", 2), ("q2", "n", 1)])
    first = (1 / log2(3) + 2 / log2(4)) / (2 / log2(2) + 1 / log2(3))
    assert evaluate(folder) == {"ndcg@10": pytest.approx((first + 1) / 2, abs=1e-9)}


def test_an_answer_that_is_not_found_counts_as_zero(tmp_path: Path) -> None:
    """Eleven passages stand nearer to "east" than "west" does: it is not among the ten."""
    corpus = {f"e{k}": "east" for k in range(11)} | {"w": "west"}
    folder = write_beir(tmp_path / "beir", corpus, {"q": "east"}, [("q", "w", 1)])
    assert evaluate(folder) == {"ndcg@10": 0}


def test_all_that_is_asked_for_is_measured_and_the_first_decides(tmp_path: Path) -> None:
    """Query "east" finds e first; its only answer is n, third of four."""
    corpus = {"e": "east", "ne": "north-east", "n": "north", "w": "west"}
    folder = write_beir(tmp_path / "beir", corpus, {"q": "east"}, [("q", "n", 1)])
    found = evaluate(folder, metrics=("MRR@10", "Recall@2", "recall@3", "nDCG@100"))
    assert list(found) == ["mrr@10", "recall@2", "recall@3", "ndcg@100"]
    assert list(found.values()) == [pytest.approx(1 / 3), 0, 1, pytest.approx(1 / log2(4))]


def test_a_query_with_nothing_to_find_does_not_count(tmp_path: Path) -> None:
    folder = write_beir(
        tmp_path / "beir", {"e": "east", "w": "west"}, {"q1": "east", "q2": "west"}, [("q1", "e", 1), ("q2", "e", 0)]
    )
    assert evaluate(folder) == {"ndcg@10": 1}


def test_of_equal_scores_the_smaller_id_comes_first(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", {"b": "east", "a": "east"}, {"q": "east"}, [("q", "b", 1)])
    assert evaluate(folder, metrics=("MRR@10",)) == {"mrr@10": 0.5}


def test_scores_are_float32_also_in_autocast(tmp_path: Path) -> None:
    """In bfloat16 the two passages have equal scores, and the wrong one would come first by its id."""
    query = torch.tensor([[1.0, 1.0]])
    passages = torch.tensor([[0.5, 0.5], [0.5, 0.5001]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len((query @ passages.T).unique()) == 1
        scores, places = nearest_on_all_ranks(query, passages, 2)
    assert scores.dtype == torch.float32
    assert places.tolist() == [[1, 0]]


def test_blocks_of_passages_are_merged_as_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    query, passage = torch.randn(150, 4, generator=draw), torch.randn(101, 4, generator=draw)
    scores, places = nearest_on_all_ranks(query, passage, 10)
    wanted = torch.stack([(passage * row).sum(1) for row in query]).argsort(dim=1, descending=True)[:, :10]
    assert torch.equal(places, wanted)
    assert torch.allclose(scores, (query[:, None] * passage[places]).sum(-1), atol=1e-6)
    monkeypatch.setattr(dev_search, "_BLOCK_PASSAGES", 7)
    assert torch.equal(nearest_on_all_ranks(query, passage, 10)[1], wanted)


def test_vectors_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", {"e": "east"}, {"q": "east"}, [("q", "e", 1)])
    model = OneWordOneVector()
    with pytest.raises(TrainingDivergedError, match="query vectors that hold NaN or infinity; lower optimizer"):
        DevSet(DevConfig(data=str(folder))).evaluate(
            lambda chunk, side: model.encode(chunk, side) * torch.nan,
            cast(Encoder, model),
            device=torch.device("cpu"),
            tokens_per_chunk=8,
        )


def passages(dev: DevSet) -> list[Passage]:
    return dev._passages


def test_a_bounded_corpus_holds_the_judged_and_is_the_same_in_any_order_of_the_file(tmp_path: Path) -> None:
    """1,300 passages: more than are kept at once, so that the running selection is exercised."""
    names = [f"p{k}" for k in range(1300)]
    judged = [("q1", "p7", 1), ("q2", "p1200", 1), ("q2", "p3", 0)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        folder = write_beir(
            tmp_path / str(seed), {name: f"text {name}" for name in names}, {"q1": "a", "q2": "b"}, judged
        )
        chosen = passages(DevSet(DevConfig(data=str(folder), max_passages=40)))
        assert len(chosen) == 40
        found.append({passage.id: passage.text for passage in chosen})
    assert found[0] == found[1] == found[2]
    assert {"p7", "p1200", "p3"} <= found[0].keys()
    everything = passages(DevSet(DevConfig(data=str(folder), max_passages=5000)))
    assert sorted(passage.id for passage in everything) == sorted(names)


def test_judged_passages_stay_even_beyond_the_bound(tmp_path: Path) -> None:
    corpus = {f"p{k}": f"text {k}" for k in range(9)}
    folder = write_beir(tmp_path / "beir", corpus, {"q": "a"}, [("q", f"p{k}", 1) for k in range(5)])
    chosen = passages(DevSet(DevConfig(data=str(folder), max_passages=2)))
    assert sorted(passage.id for passage in chosen) == [f"p{k}" for k in range(5)]


def test_fewer_queries_are_the_same_ones_in_any_order(tmp_path: Path) -> None:
    names = [f"q{k}" for k in range(30)]
    chosen = []
    for seed in range(2):
        random.Random(seed).shuffle(names)
        folder = write_beir(
            tmp_path / str(seed), {"p": "x"}, dict.fromkeys(names, "x"), [(name, "p", 1) for name in names]
        )
        chosen.append(list(DevSet(DevConfig(data=str(folder), max_queries=7))._queries))
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 7


def test_a_split_without_a_known_query_is_refused(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", {"p": "x"}, {"q": "x"}, [("other", "p", 1)])
    with pytest.raises(UserError, match="beir has no query with a judgement in split dev"):
        DevSet(DevConfig(data=str(folder)))
    with pytest.raises(UserError, match="has no split 'test'; there are: dev"):
        DevSet(DevConfig(data=str(folder), split="test"))


@pytest.mark.parametrize("name", ["every_steps", "max_queries", "max_passages"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"dev\.{name} must be at least 1, came 0"):
        DevConfig(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nDCG", "nDCG@0", "nDCG@ten", "bleu@4", "__import__('os')@1", "Recall@10001"])
def test_a_metric_that_there_is_not_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UserError, match=r"dev\.metrics holds .*; wanted one of nDCG, MRR, Recall.* such as nDCG@10"):
        DevConfig(metrics=("nDCG@10", name))


def test_at_least_one_metric_is_needed_to_choose_the_best_step() -> None:
    with pytest.raises(UserError, match=r"dev\.metrics is empty; name at least one"):
        DevConfig(metrics=())


def after(values: Sequence[float], *, min_gain: float = 0.0) -> Best:
    best = Best()
    for step, value in enumerate(values):
        best = best.after(value, step, min_gain=min_gain)
    return best


@pytest.mark.parametrize(
    ("values", "min_gain", "wanted"),
    [
        ([0.5], 0.0, (0.5, 0, 0)),
        ([0.0], 0.0, (0.0, 0, 0)),
        ([0.5, 0.4, 0.5], 0.0, (0.5, 0, 2)),
        ([0.5, 0.4, 0.75, 0.7], 0.0, (0.75, 2, 1)),
        ([0.5, 0.625, 0.75], 0.25, (0.75, 2, 2)),
        ([0.5, 0.625, 0.875, 0.8], 0.25, (0.875, 2, 1)),
    ],
    ids=["first", "zero is a value", "equal is no gain", "a gain", "small gains", "a gain of just so much"],
)
def test_best_step_and_evaluations_without_gain(
    values: list[float], min_gain: float, wanted: tuple[float, int, int]
) -> None:
    best = after(values, min_gain=min_gain)
    assert (best.value, best.step, best.evals_without_gain) == wanted


def test_a_run_stops_after_so_many_evaluations_without_gain_and_never_by_default() -> None:
    patient = DevConfig(stop_after_evals=2)
    assert [after([0.5, 0.4, 0.4][:n]).says_stop(patient) for n in range(4)] == [False, False, False, True]
    assert not after([0.5] + [0.4] * 99).says_stop(DevConfig())


def test_the_best_of_a_resumed_run_is_that_of_one_that_was_left_alone() -> None:
    """What a checkpoint keeps is all that it follows from."""
    half = after([0.5, 0.4])
    again = Best(value=half.value, step=half.step, evals_without_gain=half.evals_without_gain)
    assert again.after(0.45, 2, min_gain=0.0) == after([0.5, 0.4, 0.45])


@pytest.mark.parametrize("name", ["stop_after_evals", "min_gain"])
def test_limits_below_zero_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"dev\.stop_after_evals and dev\.min_gain must be 0 or more"):
        DevConfig(**{name: -1})  # type: ignore[arg-type]
