"""Where the candidates of a query come from: the snapshot's neighbours, BM25's, or any passages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.cleaning.words import mix
from data_shards.samples import Pair
from index_build.embedding_set import EmbeddingSet
from index_build.filters import Float32s, Int64s, Known
from index_build.index_version import OpenIndex
from index_build.similarity import PositiveScores, exact_scores

# Axes: Q queries of a block, K candidates of each, D dimensions.


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries that are mined for together."""

    pairs: list[Pair]
    """[Q]"""
    keys: NDArray[np.uint64]
    """[Q]: of the die, see `query_keys`."""
    known: Known
    """What answers them."""
    vectors: Float32s | None
    """[Q, D], where a snapshot has embedded them."""


class Found(NamedTuple):
    """One source's candidates."""

    rows: Int64s
    """[Q, K], best first; -1 is padding."""
    scores: Float32s
    """[Q, K], by the source; -inf at padding."""
    positives: list[Float32s]
    """[Q] scores of each query's own positives, by the source; empty where it has none to give."""


class CandidateSource(Protocol):
    """Something that finds candidates."""

    def find(self, block: Block) -> Found:
        """Return each query's candidates."""
        ...


class Dense:
    """The passages nearest by a snapshot, scored exactly."""

    def __init__(self, index: OpenIndex, vectors: EmbeddingSet, positives: PositiveScores, depth: int) -> None:
        """Take the searched index, what it was built on, and how deep to search."""
        self._index, self._vectors, self._positives, self._depth = index, vectors, positives, depth

    def find(self, block: Block) -> Found:
        """Search."""
        assert block.vectors is not None
        near = exact_scores(self._vectors, block.vectors, self._index.search(block.vectors, self._depth).rows)
        return Found(near.rows, near.scores, self._positives.of(block.pairs, block.vectors))


class Random:
    """Any passages: easy negatives that keep the rest of the corpus in sight."""

    def __init__(self, rows: int, count: int) -> None:
        """Take the number of passages, and how many to name for each query."""
        self._rows, self._count = rows, count

    def find(self, block: Block) -> Found:
        """Throw the die; a passage that comes twice is padding the second time."""
        throws = mix(block.keys[:, None] ^ mix(np.arange(1, self._count + 1, dtype=np.uint64))[None, :])
        rows = np.sort((throws % np.uint64(max(self._rows, 1))).astype(np.int64), axis=1)
        again = np.zeros(rows.shape, dtype=np.bool_)
        again[:, 1:] = rows[:, 1:] == rows[:, :-1]
        rows = np.where(again | (self._rows == 0), -1, rows)
        scores = np.where(rows >= 0, 0.0, -np.inf).astype(np.float32)
        return Found(rows, scores, [np.empty(0, dtype=np.float32)] * len(block.pairs))
