"""Exact similarities of queries to passages, from the vectors of an embedding set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_shards.samples import Pair, Passage
from index_build.corpus_rows import CorpusRows
from index_build.embedding_set import EmbeddingSet
from index_build.exact import Neighbours, best_first

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]

_QUERIES_AT_ONCE = 128  # 128 queries of 100 neighbours of 768 dimensions are 40 MB

# Axes: Q queries, K neighbours, D dimensions.


def exact_scores(vectors: EmbeddingSet, queries: Float32s, rows: Int64s) -> Neighbours:
    """Score found rows exactly and sort them anew: a quantised index's scores would blur a margin.

    Args:
        vectors: of the corpus.
        queries: [Q, D].
        rows: [Q, K] as a search gave them; -1 stays without a neighbour.
    """
    return best_first(Neighbours(similarities(vectors, queries, rows), rows), rows.shape[1])


def similarities(vectors: EmbeddingSet, queries: Float32s, rows: Int64s) -> Float32s:
    """Return each row's similarity to its query, in the order given: float32 [Q, K]; -inf where the row is -1."""
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    for start in range(0, len(rows), _QUERIES_AT_ONCE):
        block = rows[start : start + _QUERIES_AT_ONCE]
        at_Q, at_K = np.nonzero(block >= 0)
        # Queries of a block share neighbours: read each vector once.
        distinct, place = np.unique(block[at_Q, at_K], return_inverse=True)
        found_ND = vectors.gather(distinct)[place]
        scores[start + at_Q, at_K] = np.einsum("nd,nd->n", found_ND, queries[start + at_Q])
    return scores


class PositiveScores:
    """Similarities of queries to their own positives.

    A positive that the corpus holds, under the same id and with the same content, has its vector there; others are
    embedded.
    """

    def __init__(self, vectors: EmbeddingSet, corpus: CorpusRows, embed: Callable[[list[str]], Float32s]) -> None:
        """Take the parts.

        Args:
            vectors: of the corpus.
            corpus: whose rows they are.
            embed: contents of passages to float32 [N, D], by the same encoder.
        """
        self._vectors = vectors
        self._corpus = corpus
        self._embed = embed

    def of(self, pairs: Sequence[Pair], queries: Float32s) -> list[Float32s]:
        """Return, for each pair, the similarities of its query to its positives.

        Args:
            pairs: [Q].
            queries: [Q, D], their queries' vectors.
        """
        passages = [passage for pair in pairs for passage in pair.positives]
        sizes = [len(pair.positives) for pair in pairs]
        owners = np.repeat(np.arange(len(pairs)), sizes)
        scores = np.einsum("nd,nd->n", self._vectors_of(passages), queries[owners])
        return np.split(scores, np.cumsum(sizes)[:-1])

    def _vectors_of(self, passages: Sequence[Passage]) -> Float32s:
        rows = self._corpus.of(passages)
        stored = rows >= 0
        found = np.empty((len(passages), self._vectors.dim), dtype=np.float32)
        found[stored] = self._vectors.gather(rows[stored])
        if not stored.all():
            missing = np.flatnonzero(~stored)
            found[missing] = self._embed([passages[at].content for at in missing.tolist()])
        return found
