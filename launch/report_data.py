"""What a report shows, read and put into words: no layout here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.tracker import read_metrics

METRIC_NAMES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100"}
"""Every metric of `result["metrics"]`, as people write it."""

SYSTEM_NAMES = {
    "untrained": "untrained",
    "bm25": "BM25",
    "no_refresh": "trained, no refresh",
    "trained": "trained",
}
"""Every system that a report compares, in the order of its bars."""

_TELLABLE_DIFFERENCE = 0.01
"""Smaller differences in nDCG@10 between two single runs are not told from chance where no interval is given."""


@dataclass(frozen=True, kw_only=True)
class History:
    """The events of one run's `metrics.jsonl`, each kind in the order of its steps."""

    steps: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    refreshes: list[dict[str, Any]]


def read_history(path: Path) -> History:
    """Read `metrics.jsonl`; without one the history is empty."""
    by_event: dict[str, list[dict[str, Any]]] = {"step": [], "dev": [], "refresh": []}
    for row in read_metrics(path):
        if row["event"] in by_event:
            by_event[row["event"]].append(row)
    return History(steps=by_event["step"], dev=by_event["dev"], refreshes=by_event["refresh"])


def oldest_use(history: History, version: int) -> int | None:
    """Return how many steps after its snapshot a negatives version was last trained on, or None if it never was."""
    ages = [
        row["negatives_age_steps"]
        for row in history.steps
        if row.get("negatives_version") == version and row.get("negatives_age_steps") is not None
    ]
    return max(ages, default=None)


def duration(seconds: float) -> str:
    """Write seconds as a person would: `48 s`, `4 min 12 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def separation(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Return the chance that a random positive scores above a random negative, ties counting half (ROC AUC)."""
    positives, negatives = np.asarray(positive, dtype=np.float64), np.sort(np.asarray(negative, dtype=np.float64))
    below = np.searchsorted(negatives, positives, side="left")
    below_or_equal = np.searchsorted(negatives, positives, side="right")
    return float(np.mean(below + below_or_equal) / (2 * len(negatives)))


def summary(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Say in one sentence how the trained encoder compares with the untrained one and with BM25."""
    if "trained" not in metrics:
        return "This run has not been evaluated."
    trained = metrics["trained"]["ndcg@10"]
    parts = []
    if untrained := metrics.get("untrained", {}).get("ndcg@10"):
        parts.append(f"reaches {trained / untrained:.1f} times the nDCG@10 of the untrained one")
    if bm25 := metrics.get("bm25", {}).get("ndcg@10"):
        ratio = trained / bm25
        place = "is level with" if 0.97 <= ratio <= 1.03 else "ranks above" if ratio > 1 else "stays below"
        parts.append(f"{place} BM25")
    return f"The trained encoder {' and '.join(parts) or f'reaches nDCG@10 {trained:.3f}'}."


def refresh_verdict(result: Mapping[str, Any], history: History) -> tuple[str, str]:
    """Say whether the mined negatives earned their place: a short heading, and the reason.

    Args:
        result: `metrics.no_refresh` is the same training without a refresh; `comparison.interval`, if given, the
            95% interval of the difference in nDCG@10, trained minus no_refresh, over the test queries.
        history: its refreshes say what mining cost.
    """
    metrics = result.get("metrics", {})
    spent = sum(sum(row.get("seconds", {}).values()) for row in history.refreshes)
    cost = f"The refreshes took {duration(spent)} of work." if history.refreshes else "There was no refresh."
    if "no_refresh" not in metrics or "trained" not in metrics:
        return (
            "Not compared",
            f"{cost} Whether the mined negatives helped is not known from this run: that takes the same training "
            "once more without them, as the quickstart’s compare option does. With small encoders trained from "
            "scratch they often do not help.",
        )
    trained, plain = metrics["trained"]["ndcg@10"], metrics["no_refresh"]["ndcg@10"]
    difference = trained - plain
    interval = result.get("comparison", {}).get("interval")
    told_apart = not interval[0] <= 0 <= interval[1] if interval else abs(difference) >= _TELLABLE_DIFFERENCE
    numbers = f"nDCG@10 is {trained:.3f} with refreshes and {plain:.3f} in the same training without them"
    spread = (
        f"a difference of {_signed(difference)}, 95% interval {_signed(interval[0])} to {_signed(interval[1])}"
        if interval
        else f"a difference of {_signed(difference)}, from one run each"
    )
    if not told_apart:
        heading, reason = "They made no difference that can be told from chance", "They did not earn their time here."
    elif difference > 0:
        heading, reason = "They helped", "Whether they earn their time depends on what else it could be spent on."
    else:
        heading, reason = "They hurt", "Many of them are likely unlabelled right answers; deeper ranks may be safer."
    return heading, f"{numbers}: {spread}. {cost} {reason}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def missed(example: Mapping[str, Any]) -> bool:
    """Tell whether none of an example's hits is a right one."""
    return not any(hit["relevant"] for hit in example["hits"])


def known_systems(metrics: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    """Return the systems that were evaluated, in the order of the bars; unknown ones come last."""
    known = [name for name in SYSTEM_NAMES if name in metrics]
    return known + sorted(set(metrics) - set(known))
