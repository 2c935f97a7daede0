"""Exact nearest neighbours by inner product, block by block: the truth that indexes are measured against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]

# Axes: Q queries, D dimensions, K neighbours, N vectors of a block.


class Neighbours(NamedTuple):
    """What a search found for each query, best first."""

    scores: Float32s
    """[Q, K]: inner products; -inf where there is no neighbour."""
    rows: Int64s
    """[Q, K]: row numbers; -1 where there is no neighbour."""


def exact_search(queries: Float32s, blocks: Iterable[tuple[int | Int64s, Float32s]], k: int) -> Neighbours:
    """Return the k rows of largest inner product with each query.

    Memory is that of one block and of Q·K results, whatever the number of rows.

    Args:
        queries: [Q, D].
        blocks: (number of the block's first row, or the number of each in rising order; [N, D]).
        k: neighbours wanted; fewer rows than that leave -1.
    """
    queries_QD = np.ascontiguousarray(queries, dtype=np.float32)
    best = no_neighbours(len(queries_QD), 0)
    for first, block_ND in blocks:
        scores, rows = faiss.knn(
            queries_QD,
            np.ascontiguousarray(block_ND, dtype=np.float32),
            min(k, len(block_ND)),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        numbers = first[rows] if isinstance(first, np.ndarray) else rows.astype(np.int64) + first
        best = merge(best, Neighbours(scores, numbers), k)
    return widen(best, k)


def merge(left: Neighbours, right: Neighbours, k: int) -> Neighbours:
    """Return the k best of two results over different rows; of equal scores the lower row comes first."""
    return best_first(
        Neighbours(np.concatenate([left.scores, right.scores], 1), np.concatenate([left.rows, right.rows], 1)), k
    )


def best_first(found: Neighbours, k: int) -> Neighbours:
    """Sort each query's neighbours by score, then by row, and cut them to k."""
    order = np.lexsort((found.rows, -found.scores), axis=1)[:, :k]
    return Neighbours(np.take_along_axis(found.scores, order, 1), np.take_along_axis(found.rows, order, 1))


def widen(found: Neighbours, k: int) -> Neighbours:
    """Fill up with no neighbours to a width of k."""
    rows_Q, width = found.rows.shape
    if width >= k:
        return found
    empty = no_neighbours(rows_Q, k - width)
    return Neighbours(np.concatenate([found.scores, empty.scores], 1), np.concatenate([found.rows, empty.rows], 1))


def no_neighbours(queries: int, k: int) -> Neighbours:
    """Return a result in which nothing was found."""
    return Neighbours(np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64))
