"""The dev metrics, and every bit that they come from, are the same on 1, 2, 3 and 4 ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.collate import Chunk
from encoder.snapshot import load_encoder, save_snapshot
from tests.distributed.ranks import run_ranks
from tests.unit.tiny import tiny_encoder
from train import dev_search
from train.dev import DevConfig, DevSet

QUERIES, PASSAGES = 70, 90
METRICS = ("nDCG@10", "MRR@10", "Recall@20")
Outcome = dict[str, Any]


def write_beir(folder: Path) -> Path:
    """Texts of uneven length; each query has the answer of its number, and now and then the next one's."""
    words = [
        "read",
        "the",
        "raw",
        "data",
        "of",
        "a",
        "file",
        "sort",
        "open",
        "socket",
        "wait",
        "server",
        "parse",
        "day",
    ]
    (folder / "qrels").mkdir(parents=True)
    for name, letter, count in (("corpus", "p", PASSAGES), ("queries", "q", QUERIES)):
        rows = [
            {"_id": f"{letter}{k}", "text": " ".join(words[(k * j + j) % len(words)] for j in range(1 + k % 9))}
            for k in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [f"q{k}\tp{k + j}\t1" for k in range(QUERIES) for j in range(1 + k % 2)]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return folder


def evaluate_in_groups(folder: Path, beir: Path, snapshot: Path) -> dict[int, Outcome]:
    """Run in a rank: evaluate in a group of the first 1, 2, 3 and 4 ranks, each as a process group of its own."""
    dev_search._BLOCK_QUERIES, dev_search._BLOCK_PASSAGES = 32, 40  # several blocks; fewer of queries than ranks
    found = {}
    for world in range(1, 5):
        if (rank := int(os.environ["RANK"])) >= world:
            continue
        method = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world)
        found[world] = _evaluate(beir, snapshot)
        dist.destroy_process_group()
    return found


def _evaluate(beir: Path, snapshot: Path) -> Outcome:
    model = load_encoder(snapshot).eval()
    calls: list[int] = []

    def encode(chunk: Chunk, side: str) -> Tensor:
        calls.append(len(chunk.rows))
        # As a sharded engine does: a rank that makes fewer calls would leave the others waiting.
        dist.all_reduce(torch.zeros(1))
        return model(chunk.input_ids, chunk.attention_mask)

    dev = DevSet(DevConfig(data=str(beir), metrics=METRICS))
    values = dev.evaluate(encode, model, device=torch.device("cpu"), tokens_per_chunk=400)
    assert dev._dealt is not None
    counted = len(calls)
    with torch.no_grad():
        query, passage = (dev_search.embed_on_all_ranks(encode, dealt, torch.device("cpu")) for dealt in dev._dealt)
        score, place = dev_search.nearest_on_all_ranks(query, passage, 20)
    assert dev.evaluate(encode, model, device=torch.device("cpu"), tokens_per_chunk=400) == values
    return {"values": values, "calls": counted, "bits": [t.numpy() for t in (query, passage, score, place)]}


def reference(beir: Path, snapshot: Path) -> list[list[int]]:
    """Return each query's order of the passages, text by text and in float64."""
    model = load_encoder(snapshot).eval().double()

    def vectors(name: str, side: Any) -> Tensor:
        texts = [json.loads(line)["text"] for line in (beir / f"{name}.jsonl").read_text().splitlines()]
        ids = [torch.tensor(model.tokenize([text], side)) for text in texts]
        with torch.no_grad():
            return torch.cat([model(row, torch.ones_like(row)) for row in ids])

    scores = vectors("queries", "query") @ vectors("corpus", "passage").T
    return [row.argsort(descending=True, stable=True).tolist() for row in scores]


@pytest.mark.distributed
def test_the_dev_metrics_are_the_same_bits_on_any_number_of_ranks(tmp_path: Path) -> None:
    beir, snapshot = write_beir(tmp_path / "beir"), tmp_path / "snapshot"
    save_snapshot(tiny_encoder(), snapshot)
    ranks = run_ranks(evaluate_in_groups, 4, tmp_path, tmp_path, beir, snapshot)
    alone = ranks[0][1]
    orders = reference(beir, snapshot)
    best = sum(1 / (1 + min(order.index(k + j) for j in range(1 + k % 2))) for k, order in enumerate(orders))
    assert alone["values"]["mrr@10"] == pytest.approx(best / QUERIES, abs=0.02)
    assert 0.1 < alone["values"]["ndcg@10"] < 1, "a metric at its end would be equal by itself"
    assert alone["calls"] % 4 != 0, "the chunks should not come out even on four ranks"
    for world in range(2, 5):
        found = [rank[world] for rank in ranks[:world]]
        assert {outcome["calls"] for outcome in found} == {found[0]["calls"]}
        assert found[0]["calls"] < alone["calls"], "the work is dealt out"
        for outcome in found:
            assert outcome["values"] == alone["values"]
            assert all((a == b).all() for a, b in zip(outcome["bits"], alone["bits"], strict=True))
