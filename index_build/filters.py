"""Which neighbours of a query may serve as its negatives: pure functions over arrays.

A neighbour that is near a query and not among its positives is either a hard negative or a positive that nobody has
marked. Known positives and their textual duplicates are always dropped; rank and margin drop what is likely one.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from data_shards.samples import text_hash
from index_build.embedding_set import RowHashes

_NO_TEXT = text_hash("")

# Axes: K neighbours of one query, P positives known of it.


class Verdict(IntEnum):
    """What became of a neighbour; the first reason that applies."""

    KEPT = 0
    KNOWN_POSITIVE = 1
    DUPLICATE = 2
    RANK = 3
    MARGIN = 4


def judge(
    neighbours: RowHashes,
    scores: NDArray[np.float32],
    known: RowHashes,
    *,
    positive_score: float,
    skip_ranks: int,
    max_relative_score: float,
) -> NDArray[np.uint8]:
    """Judge the neighbours of one query.

    Args:
        neighbours: [K] hashes, best first.
        scores: [K] similarities to the query.
        known: [P] hashes of all passages that are known to answer the query.
        positive_score: similarity of the query to its positive; of several, to the farthest.
        skip_ranks: so many of the nearest are dropped, positives counted.
        max_relative_score: see `score_limit`.

    Returns:
        [K] verdicts.
    """
    is_positive = _any_equal(neighbours.ids, known.ids)
    same_text = _any_equal(neighbours.texts, known.texts) & (neighbours.texts != _NO_TEXT)
    is_duplicate = _any_equal(neighbours.contents, known.contents) | same_text
    too_near = scores > score_limit(positive_score, max_relative_score)
    first_ranks = np.arange(len(scores)) < skip_ranks
    reasons = (Verdict.KNOWN_POSITIVE, Verdict.DUPLICATE, Verdict.RANK, Verdict.MARGIN)
    verdicts = np.select([is_positive, is_duplicate, first_ranks, too_near], reasons, Verdict.KEPT)
    return verdicts.astype(np.uint8)


def score_limit(positive_score: float, max_relative_score: float) -> float:
    """Return the highest similarity that a negative may have.

    For a positive at 0.8 and a relative score of 0.95 it is 0.76. Below zero the share has to push the other way:
    for a positive at -0.8 it is -0.84, and not -0.76, which would let in what is nearer than the positive.

    Source: Moreira et al., "NV-Retriever: Improving text embedding models with effective hard-negative mining"
    (2024), TopK-PercPos; the case below zero is ours.
    """
    return positive_score - (1.0 - max_relative_score) * abs(positive_score)


def draw(id_hashes: NDArray[np.int64], count: int, key: str) -> NDArray[np.int64]:
    """Choose among candidates as a die keyed by `key` falls: the same whatever their order.

    Returns:
        Positions of at most `count` of them, in the order in which they stand.
    """
    if len(id_hashes) <= count:
        return np.arange(len(id_hashes))
    seed = hashlib.blake2b(key.encode(), digest_size=16).digest()
    lots = [hashlib.blake2b(raw.tobytes(), key=seed, digest_size=8).digest() for raw in id_hashes.astype("<i8")]
    return np.sort(np.array(sorted(range(len(lots)), key=lots.__getitem__)[:count], dtype=np.int64))


def _any_equal(left_K: NDArray[np.int64], right_P: NDArray[np.int64]) -> NDArray[np.bool_]:
    equal: NDArray[np.bool_] = (left_K[:, None] == right_P[None, :]).any(axis=1)
    return equal
