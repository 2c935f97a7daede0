"""The end of a quickstart, as a person reads it."""

from __future__ import annotations

from launch.quickstart_show import show

RESULT = {
    "seconds": 301.4,
    "steps": 162,
    "world_size": 2,
    "metrics": {
        "bm25": {"ndcg@10": 0.2736, "mrr@10": 0.2305, "recall@100": 0.6734},
        "trained": {"ndcg@10": 0.2851, "mrr@10": 0.2447, "recall@100": 0.6873},
    },
    "index": {"factory": "IVF64,SQ8", "ntotal": 6524, "recall@10": 0.9569},
    "examples": [
        {"query": "found", "relevant": ["a"], "hits": [{"id": "a", "score": 0.5, "relevant": True}]},
        {"query": "missed", "relevant": ["b", "c"], "hits": [{"id": "x", "score": 0.25, "relevant": False}]},
    ],
    "report": "out/report.html",
    "snapshot": "out/run/snapshots/final",
    "index_dir": "out/index",
    "wandb_dir": "out/run/wandb",
}


def test_metrics_stand_in_a_table() -> None:
    lines = show(RESULT).splitlines()
    assert lines[1].split() == ["nDCG@10", "MRR@10", "Recall@100"]
    assert lines[2].split() == ["bm25", "0.274", "0.231", "0.673"]
    assert lines[3].split() == ["trained", "0.285", "0.245", "0.687"]
    assert len({len(line) for line in lines[1:4]}) == 1


def test_right_answers_are_marked_and_missed_ones_named() -> None:
    text = show(RESULT)
    assert "“found”\n  ✓ 0.500  a\n“missed”\n    0.250  x\n    wanted b, c\n" in text
    assert "index IVF64,SQ8 over 6524 vectors, recall@10 0.957 against exact search" in text
    assert text.endswith("W&B      out/run/wandb")
