"""Which candidates of a query may serve as its negatives: pure functions over arrays.

A neighbour that is near a query and not among its positives is either a hard negative or a positive that nobody has
marked. Known positives and their textual duplicates are always dropped; rank and margins drop what is likely one.
All queries of a block are judged at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.samples import text_hash
from index_build.embedding_set import RowHashes

_NO_TEXT = text_hash("")

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]

# Axes: Q queries of a block, K candidates of each, N values of all queries in a row.


class Verdict(IntEnum):
    """What became of a candidate; the first reason that applies."""

    KEPT = 0
    KNOWN_POSITIVE = 1
    DUPLICATE = 2
    RANK = 3
    MARGIN = 4
    CEILING = 5
    REPEATED = 6
    """An earlier source has found it, and decides."""
    NEAR_DUPLICATE = 7
    TEACHER = 8
    UNSCORED = 9
    """The teacher was asked of enough others."""
    OVERUSED = 10
    """It is a negative of `per_passage_max` queries already."""
    ABSENT = 11
    """Padding: no candidate, never counted."""


class Ragged(NamedTuple):
    """Several values for each query, in a row."""

    starts: Int64s
    """[Q]: where each query's values begin."""
    counts: Int64s
    """[Q]: how many they are."""

    @classmethod
    def of(cls, counts: Sequence[int] | Int64s) -> Ragged:
        """Lay out values by how many each query has."""
        sizes = np.asarray(counts, dtype=np.int64)
        return cls(np.cumsum(sizes) - sizes, sizes)

    def places(self) -> list[tuple[Int64s, Int64s]]:
        """Return, for the first value, the second, …: which queries have one, and where it stands."""
        turns = range(int(self.counts.max(initial=0)))
        having = [np.flatnonzero(self.counts > turn) for turn in turns]
        return [(queries, self.starts[queries] + turn) for turn, queries in zip(turns, having, strict=True)]


class Known(NamedTuple):
    """The passages known to answer each query."""

    hashes: RowHashes
    """[N]"""
    layout: Ragged


class Judgement(NamedTuple):
    """What was said of one source's candidates."""

    verdicts_QK: Bytes
    in_window_QK: Bools
    """No known positive, and within ranks and margins: a duplicate there is a false negative that was found."""


class Limit(NamedTuple):
    """Scores of one kind, and what they may be at most."""

    scores_QK: Float32s
    most_Q: NDArray[np.float64]


def judge(
    candidates: RowHashes,
    there_QK: Bools,
    known: Known,
    *,
    limits: Sequence[Limit],
    skip_ranks: int = 0,
    ceiling: Limit | None = None,
    repeated_QK: Bools | None = None,
) -> Judgement:
    """Judge the candidates that one source has found.

    Args:
        candidates: [Q, K] hashes, best first.
        there_QK: where there is a candidate; the rest is padding.
        known: what answers the queries.
        limits: a score above one of them drops a candidate.
        skip_ranks: so many of the nearest are dropped, positives counted.
        ceiling: a limit that has nothing to do with the positive.
        repeated_QK: what an earlier source has found too.

    Returns:
        uint8 [Q, K] verdicts, and bool [Q, K].
    """
    is_positive = any_equal(candidates.ids, known.hashes.ids, known.layout)
    same_text = any_equal(candidates.texts, known.hashes.texts, known.layout) & (candidates.texts != _NO_TEXT)
    is_duplicate = any_equal(candidates.contents, known.hashes.contents, known.layout) | same_text
    first_ranks = np.broadcast_to(np.arange(there_QK.shape[1]) < skip_ranks, there_QK.shape)
    too_near = np.zeros(there_QK.shape, dtype=np.bool_)
    for limit in limits:
        too_near |= _above(limit)
    none = np.zeros(there_QK.shape, dtype=np.bool_)
    reasons = {
        Verdict.ABSENT: ~there_QK,
        Verdict.KNOWN_POSITIVE: is_positive,
        Verdict.DUPLICATE: is_duplicate,
        Verdict.RANK: first_ranks,
        Verdict.MARGIN: too_near,
        Verdict.CEILING: none if ceiling is None else _above(ceiling),
        Verdict.REPEATED: none if repeated_QK is None else repeated_QK,
    }
    verdicts = np.select(list(reasons.values()), list(reasons), Verdict.KEPT).astype(np.uint8)
    outside = [reason for verdict, reason in reasons.items() if verdict != Verdict.DUPLICATE]
    return Judgement(verdicts, ~np.logical_or.reduce(outside))


def score_limits(
    positive_Q: NDArray[np.floating], max_relative_score: float, margin: float = 0.0
) -> NDArray[np.float64]:
    """Return the highest similarity that a negative of each query may have.

    For a positive at 0.8 and a relative score of 0.95 it is 0.76. Below zero the share has to push the other way:
    for a positive at -0.8 it is -0.84, and not -0.76, which would let in what is nearer than the positive. A margin
    of 0.1 allows at most 0.7, and -0.9; of both limits the lower holds.

    Source: Moreira et al., "NV-Retriever: Improving text embedding models with effective hard-negative mining"
    (2024), TopK-PercPos and TopK-MarginPos; the case below zero is ours.
    """
    positive = np.asarray(positive_Q, dtype=np.float64)
    share = 1.0 - max_relative_score
    below = share * np.abs(positive) if share else 0.0  # no share of infinity, which is of a query without positives
    return positive - np.maximum(below, margin)


def any_equal(values_QK: Int64s, wanted_N: Int64s, layout: Ragged) -> Bools:
    """Tell which values equal any of what is wanted for their own query."""
    found = np.zeros(values_QK.shape, dtype=np.bool_)
    for queries, places in layout.places():
        found[queries] |= values_QK[queries] == wanted_N[places, None]
    return found


def count_verdicts(verdicts_QK: Bytes) -> Counter[str]:
    """Count the candidates by verdict, padding left out; each verdict has its line."""
    counts = np.bincount(verdicts_QK.ravel(), minlength=len(Verdict))
    return Counter({verdict.name.lower(): int(counts[verdict]) for verdict in Verdict if verdict != Verdict.ABSENT})


def _above(limit: Limit) -> Bools:
    above: Bools = limit.scores_QK > limit.most_Q[:, None]
    return above
