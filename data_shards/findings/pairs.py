"""The shape of pairs: how many positives and negatives a query has, what weighs how much, where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_shards.findings.finding import EXAMPLES, Example, Finding, Places, Severity
from data_shards.findings.lengths import Lengths, Weights
from data_shards.samples import Pair

UNEVEN_SHARE = 0.1
"""Weights that leave less than this of the data in effect are a warning."""

_MOST_SOURCES = 100  # told one by one; a dataset with a source a sample would fill the memory

_ADVICE: dict[str, tuple[Severity, str]] = {
    "pair_without_positive": ("fatal", "the loss needs a positive for each query: drop these"),
    "weightless_pair": ("warning", "weight or scores are 0, so that the loss does not see it: drop these"),
    "scores_not_one_each": ("warning", "other than one score for each positive; the rest count as 1"),
    "negative_is_positive": ("warning", "a given negative says the same as a positive of its query: drop it"),
    "repeated_negative": ("note", "a pair has the same negative more than once: it counts as often"),
}


class PairShape:
    """Takes pairs, batch by batch."""

    def __init__(self, places: Places) -> None:
        """Begin empty."""
        self._places = places
        self._pairs = self._negatives = self._with_teacher = 0
        self._per_query = {"positives_per_query": Lengths(), "negatives_per_query": Lengths()}
        self._weights, self._scores = Weights(), Weights()
        self._sources: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[Example]] = {name: [] for name in _ADVICE}

    def look(self, pairs: Sequence[Pair], begin: int) -> None:
        """Take a batch whose first sample has the number `begin`."""
        self._pairs += len(pairs)
        self._with_teacher += sum(pair.has_teacher for pair in pairs)
        self._per_query["positives_per_query"].add(len(pair.positives) for pair in pairs)
        self._per_query["negatives_per_query"].add(len(pair.negatives) for pair in pairs)
        for at, pair in enumerate(pairs, begin):
            self._look_at(pair, at)
            source = pair.source if pair.source in self._sources or len(self._sources) < _MOST_SOURCES else "(others)"
            self._sources[source] += 1
        weights = np.array([pair.weight for pair in pairs], dtype=np.float64)
        scores = np.array([score for pair in pairs for score in pair.scores], dtype=np.float64)
        self._weights.add(weights[weights > 0])
        self._scores.add(scores[scores > 0])

    def findings(self, max_empty_share: float) -> list[Finding]:
        """Return what was seen at all; a greater share of pairs that weigh nothing is fatal."""
        found = []
        for name, (severity, advice) in _ADVICE.items():
            ruined = name == "weightless_pair" and self._counts[name] > max_empty_share * self._pairs
            limit = f" (fatal above checks.max_empty_share = {max_empty_share:g})" if ruined else ""
            negatives = name.endswith(("_positive", "_negative")) and name != "pair_without_positive"
            if self._counts[name]:
                found.append(
                    Finding(
                        name=name,
                        severity="fatal" if ruined else severity,
                        count=self._counts[name],
                        of=self._negatives if negatives else self._pairs,
                        unit="negatives" if negatives else "pairs",
                        advice=advice + limit,
                        examples=tuple(self._examples[name]),
                    )
                )
        if self._weights.effective_share < UNEVEN_SHARE:
            effective = round(self._weights.effective_share * self._weights.count)
            found.append(
                Finding(
                    name="uneven_weights",
                    severity="warning",
                    count=self._weights.count - effective,
                    of=self._weights.count,
                    unit="pairs",
                    advice="so many pairs hardly count beside the heaviest; take roots or logarithms of the weights",
                )
            )
        if 0 < self._with_teacher < self._pairs:
            found.append(
                Finding(
                    name="pair_without_teacher",
                    severity="warning",
                    count=self._pairs - self._with_teacher,
                    of=self._pairs,
                    unit="pairs",
                    advice="others have a teacher's score for every passage: distilling wants them for all pairs",
                )
            )
        return found

    def numbers(self) -> dict[str, Any]:
        """Return counts per query; weights, scores and a teacher's scores where there are any; and sources."""
        numbers: dict[str, Any] = {name: lengths.by_value() for name, lengths in self._per_query.items()}
        weights = self._weights.describe()
        if self._weights.count and (weights["min"], weights["max"]) != (1.0, 1.0):
            numbers["weights"] = weights
        if self._scores.count:
            numbers["scores"] = self._scores.describe()
        if self._with_teacher:
            numbers["with_teacher"] = self._with_teacher
        return {**numbers, "sources": dict(sorted(self._sources.items(), key=lambda row: (-row[1], row[0])))}

    def _look_at(self, pair: Pair, number: int) -> None:
        self._negatives += len(pair.negatives)
        if not pair.positives:
            self._note("pair_without_positive", number, pair)
        elif not any(pair.relevance(at) for at in range(len(pair.positives))):
            self._note("weightless_pair", number, pair)
        if len(pair.scores) not in (0, len(pair.positives)):
            self._note("scores_not_one_each", number, pair)
        if not pair.negatives:
            return
        positives = {passage.content for passage in pair.positives}
        negatives = Counter(passage.content for passage in pair.negatives)
        for content, times in negatives.items():
            if content in positives:
                self._note("negative_is_positive", number, pair, content, times)
            if times > 1:
                self._note("repeated_negative", number, pair, content, times - 1)

    def _note(self, name: str, number: int, pair: Pair, text: str | None = None, times: int = 1) -> None:
        self._counts[name] += times
        if len(self._examples[name]) < EXAMPLES:
            told = pair.query if text is None else text
            self._examples[name].append(self._places.example(number, pair.query_id, told))
