"""The dev metric by hand, and a corpus that is the same whatever the order of its file."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from data_shards.errors import UserError
from data_shards.samples import Passage
from encoder.model import Encoder
from tests.unit.tiny import TEXTS, tiny_encoder
from train.dev import DevConfig, DevSet


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table[input_ids[:, 0]]


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


def evaluate(folder: Path) -> float:
    encoder = cast(Encoder, OneWordOneVector())
    return DevSet(DevConfig(data=str(folder))).evaluate(encoder, precision="float32", tokens_per_batch=8)


def test_ndcg_by_hand(tmp_path: Path) -> None:
    """Query "east" finds e, ne, n, w; its answers are ne (grade 1) and n (grade 2). Query "north" finds n first."""
    corpus = {"e": "east", "ne": "north-east", "n": "north", "w": "west"}
    queries = {"q1": "east", "q2": "north", "q3": "west"}
    folder = write_beir(tmp_path / "beir", corpus, queries, [("q1", "ne", 1), ("q1", "n", 2), ("q2", "n", 1)])
    first = (1 / log2(3) + 2 / log2(4)) / (2 / log2(2) + 1 / log2(3))
    assert evaluate(folder) == pytest.approx((first + 1) / 2, abs=1e-9)


def test_an_answer_that_is_not_found_counts_as_zero(tmp_path: Path) -> None:
    """Eleven passages stand nearer to "east" than "west" does: it is not among the ten."""
    corpus = {f"e{k}": "east" for k in range(11)} | {"w": "west"}
    folder = write_beir(tmp_path / "beir", corpus, {"q": "east"}, [("q", "w", 1)])
    assert evaluate(folder) == 0


def test_dropout_is_off_and_the_mode_comes_back(tmp_path: Path) -> None:
    encoder = tiny_encoder(dropout=0.5)
    texts = {f"p{k}": text for k, text in enumerate(TEXTS)}
    judged = [(name, name, 1) for name in texts]
    folder = write_beir(tmp_path / "beir", texts, texts, judged)
    encoder.train()
    value = DevSet(DevConfig(data=str(folder))).evaluate(encoder, precision="float32", tokens_per_batch=64)
    assert value == pytest.approx(1.0), "each text finds itself"
    assert encoder.training


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
