"""What a quickstart prints for a person at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100"}


def show(result: Mapping[str, Any]) -> str:
    """Return the metrics as a table, the index, the examples with the right answers marked, and where things are."""
    lines = ["", f"{'':<12}" + "".join(f"{name:>12}" for name in _METRICS.values())]
    for system, values in result["metrics"].items():
        lines.append(f"{system:<12}" + "".join(f"{values[metric]:>12.3f}" for metric in _METRICS))
    index = result["index"]
    recall = next(f"{name} {value:.3f}" for name, value in index.items() if name.startswith("recall@"))
    lines += ["", f"index {index['factory']} over {index['ntotal']} vectors, {recall} against exact search", ""]
    for example in result["examples"]:
        lines.append(f"“{example['query']}”")
        for hit in example["hits"]:
            lines.append(f"  {'✓' if hit['relevant'] else ' '} {hit['score']:.3f}  {hit['id']}")
        if not any(hit["relevant"] for hit in example["hits"]):
            lines.append(f"    wanted {', '.join(example['relevant'])}")
    lines += ["", f"{result['steps']} steps on {result['world_size']} ranks, {result['seconds']:.0f} s in all"]
    places = {"report": "report", "snapshot": "encoder", "index_dir": "index", "wandb_dir": "W&B"}
    return "\n".join([*lines, *(f"{label:<8} {result[name]}" for name, label in places.items())])
