"""Measures how many of the true neighbours an index finds, and how surely that is known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index_build.exact import Neighbours, best_first, exact_search

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

_Z_95 = 1.959964
# Two rows of equal score are equally right; float32 sums in another order differ by about this much.
_TIE = 1e-5

# Axes: Q queries, D dimensions, K neighbours.


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Measured recall@k of an index against exact search over the same vectors."""

    k: int
    """Neighbours asked for."""
    value: float
    """Share of the true neighbours that were found, averaged over queries."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    queries: int
    """On how many queries it was measured; none of them chose the search parameters."""
    queries_from: str
    """`given`, or `corpus rows, each without itself`."""


class Search(Protocol):
    """Something that finds neighbours."""

    def __call__(self, queries: Float32s, k: int) -> Neighbours:
        """Return k neighbours of each query, -1 where there are fewer."""
        ...


class Vectors(Protocol):
    """What an index holds: an embedding set, or some rows of one."""

    def blocks(self) -> Iterable[tuple[Any, Float32s]]:
        """Yield (row numbers, vectors) through all of it."""
        ...

    def gather(self, rows: Int64s) -> Float32s:
        """Return the vectors of some rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class RecallProbe:
    """Queries with their true neighbours, ready to be asked of an index again and again."""

    vectors: Vectors
    """What the index holds."""
    queries: Float32s
    """[Q, D]."""
    k: int
    """Neighbours asked for."""
    truth: Neighbours
    """[Q, k], by exact search."""
    own_rows: Int64s | None
    """[Q], where the queries are rows of the corpus: each is left out of its own result."""

    @classmethod
    def prepare(cls, vectors: Vectors, queries: Float32s, k: int, own_rows: Int64s | None = None) -> RecallProbe:
        """Find the true neighbours, in one pass over the vectors; arguments as the fields."""
        found = _search(lambda q, depth: exact_search(q, vectors.blocks(), depth), queries, k, own_rows)
        return cls(vectors=vectors, queries=queries, k=k, truth=found, own_rows=own_rows)

    def every_second(self, start: int) -> RecallProbe:
        """Return the probe of the queries `start`, `start + 2`, …"""
        truth = Neighbours(self.truth.scores[start::2], self.truth.rows[start::2])
        own_rows = None if self.own_rows is None else self.own_rows[start::2]
        return replace(self, queries=self.queries[start::2], truth=truth, own_rows=own_rows)

    def hits(self, search: Search) -> Float64s:
        """Return each query's share of true neighbours found: float64 [Q].

        What counts is the score, recomputed from the vectors: a row as near as the k-th true neighbour is as good,
        else duplicates in a corpus would look like misses.
        """
        found = _search(search, self.queries, self.k, self.own_rows)
        scores = np.full(found.rows.shape, -np.inf, dtype=np.float32)
        there = found.rows >= 0
        owners = np.nonzero(there)[0]
        scores[there] = np.einsum("nd,nd->n", self.vectors.gather(found.rows[there]), self.queries[owners])
        wanted = (self.truth.rows >= 0).sum(axis=1)
        worst = np.where(self.truth.rows >= 0, self.truth.scores, np.inf).min(axis=1, initial=np.inf)
        margin = _TIE * np.maximum(1.0, np.abs(np.where(np.isfinite(worst), worst, 0.0)))
        right = (scores >= (worst - margin)[:, None]).sum(axis=1)
        shares: Float64s = np.where(wanted > 0, np.minimum(right, wanted) / np.maximum(wanted, 1), 1.0)
        return shares


def _search(search: Search, queries: Float32s, k: int, own_rows: Int64s | None) -> Neighbours:
    """Search, one neighbour deeper where each query's own row is to be left out."""
    if own_rows is None:
        return search(queries, k)
    found = search(queries, k + 1)
    own = found.rows == own_rows[:, None]
    others = Neighbours(np.where(own, -np.inf, found.scores).astype(np.float32), np.where(own, -1, found.rows))
    return best_first(others, k)


def summarise(shares: Float64s, k: int, queries_from: str) -> Recall:
    """Average per-query shares and put an interval around them."""
    value = float(shares.mean()) if len(shares) else 1.0
    low, high = wilson(value, len(shares))
    return Recall(
        k=k,
        value=round(value, 6),
        low=round(low, 6),
        high=round(high, 6),
        queries=len(shares),
        queries_from=queries_from,
    )


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    One query counts as one trial, not as k: the neighbours of one query are found or missed together. A share per
    query lies in [0, 1], so its variance is at most that of a yes or no of the same mean, and the interval is, if
    anything, too wide.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if trials == 0:
        return 0.0, 1.0
    z2 = _Z_95**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = _Z_95 / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
