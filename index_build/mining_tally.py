"""What a refresh has found, in numbers and in a sample of queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_shards.samples import Pair, Passage
from index_build.candidates import Block
from index_build.filters import Float32s, Int64s, Verdict, count_verdicts
from index_build.sieve import Judged

SAMPLE_QUERIES = 20
_SAMPLE_CHARACTERS = 300
_SAMPLE_PASSAGES = 10
_DIGITS = 4
_FALSE = (Verdict.DUPLICATE, Verdict.NEAR_DUPLICATE)

# Axes: Q queries, K candidates of each, W negatives wanted of each.


class Tally:
    """Adds up the blocks of one version."""

    def __init__(self, queries: int, per_query: int) -> None:
        """Begin with nothing found."""
        self.rows: Int64s = np.full((queries, per_query), -1, dtype=np.int64)
        """[Q, W]: what was drawn, best first."""
        self.scores: Float32s = np.zeros((queries, per_query), dtype=np.float32)
        """[Q, W]"""
        self.teacher: Float32s = np.full((queries, per_query), np.nan, dtype=np.float32)
        """[Q, W], NaN where no teacher was asked."""
        self.counts: Counter[str] = Counter({v.name.lower(): 0 for v in Verdict if v != Verdict.ABSENT})
        self._positive = np.zeros(queries, dtype=np.float64)
        self._own: dict[int, list[float]] = {}
        self._window = self._window_false = 0
        spread = np.linspace(0, queries - 1, min(queries, SAMPLE_QUERIES)).astype(np.int64)
        self.sampled: list[int] = np.unique(spread).tolist()
        """Numbers of the queries that are shown."""

    def add(self, start: int, block: Block, judged: Judged, chosen: Int64s) -> None:
        """Add a block whose first query is number `start`; `chosen` are positions [Q, W]."""
        queries, there = slice(start, start + len(chosen)), chosen >= 0
        at = np.maximum(chosen, 0)
        self.rows[queries] = np.where(there, np.take_along_axis(judged.rows, at, 1), -1)
        self.scores[queries] = np.where(there, np.take_along_axis(judged.scores, at, 1), 0)
        self.teacher[queries] = np.where(there, np.take_along_axis(judged.teacher, at, 1), np.nan)
        self.counts.update(count_verdicts(judged.verdicts))
        self._positive[queries] = [float(own.mean()) if len(own) else 0.0 for own in judged.positives]
        self._window += int(judged.in_window.sum())
        self._window_false += int((np.isin(judged.verdicts, _FALSE) & judged.in_window).sum())
        for number in self.sampled:
            if start <= number < queries.stop:
                self._own[number] = judged.positives[number - start].tolist()

    @property
    def positive_score(self) -> float:
        """Mean over the queries of the mean score of their positives."""
        return float(self._positive.mean()) if len(self._positive) else 0.0

    @property
    def negative_score(self) -> float:
        """Mean score of what was drawn; 0 where nothing was."""
        there = self.rows >= 0
        return float(self.scores[there].mean()) if there.any() else 0.0

    def statistics(self) -> dict[str, Any]:
        """Return what a manifest says besides filters, scores and seconds."""
        there = self.rows >= 0
        each = there.sum(axis=1)
        gaps = (self._positive[:, None] - self.scores)[there]
        asked = self.counts["teacher"] + self.counts["kept"] + self.counts["overused"]
        by_teacher = bool(np.isfinite(self.teacher).any() or self.counts["teacher"])
        false, of = (self.counts["teacher"], asked) if by_teacher else (self._window_false, self._window)
        return {
            "queries": len(self.rows),
            "queries_with_negatives": int((each > 0).sum()),
            "negatives_per_query": _rounded(each.mean() if len(each) else 0.0),
            "without_negatives_share": _rounded((each == 0).mean() if len(each) else 0.0),
            "gap": _rounded(gaps.mean() if len(gaps) else 0.0),
            "false_negative_share": _rounded(false / max(of, 1)),
            "false_negatives_by": "teacher" if by_teacher else "duplicates",
        }

    def sample(self, pairs: Sequence[Pair], texts: dict[int, Passage]) -> list[dict[str, Any]]:
        """Return the sampled queries with their passages, texts cut short.

        Args:
            pairs: of `sampled`.
            texts: passages by row, all that were drawn for them.
        """
        shown = []
        for number, pair in zip(self.sampled, pairs, strict=True):
            scores = [*self._own.get(number, ()), *[None] * len(pair.positives)]
            positives = [
                {**_shown(passage), "score": None if score is None else _rounded(score)}
                for passage, score in zip(pair.positives, scores, strict=False)
            ]
            found = zip(
                self.rows[number].tolist(), self.scores[number].tolist(), self.teacher[number].tolist(), strict=True
            )
            negatives = [
                {
                    **_shown(texts[row]),
                    "score": _rounded(score),
                    **({"teacher": _rounded(teacher)} if np.isfinite(teacher) else {}),
                }
                for row, score, teacher in found
                if row >= 0
            ]
            shown.append(
                {
                    "query_id": pair.query_id,
                    "query": pair.query[:_SAMPLE_CHARACTERS],
                    "positives": positives[:_SAMPLE_PASSAGES],
                    "negatives": negatives[:_SAMPLE_PASSAGES],
                }
            )
        return shown


def _shown(passage: Passage) -> dict[str, str]:
    return {name: value[:_SAMPLE_CHARACTERS] for name, value in passage.to_dict().items()}


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)
