"""A model that has the last word on candidates: it sees false negatives that similarity does not, and is slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data_shards.corpora import Passages
from data_shards.samples import Pair
from index_build.cross_encoder import is_cross_encoder
from index_build.filters import Bytes, Float32s, Int64s, Verdict

if TYPE_CHECKING:
    from index_build.ray_pool import EmbedPool

ScorePairs = Callable[[Sequence[str], Sequence[str]], Float32s]
"""Queries [n] and passages [n] to scores [n]."""

# Axes: Q queries of a block, K candidates of each, T of them that the teacher is asked of, D dimensions.


class Opinion(NamedTuple):
    """What a teacher says of a block."""

    candidates_QK: Float32s
    """NaN where it was not asked."""
    positives_Q: Float32s
    """Of each query's positives the lowest; NaN where there is none."""


class Teacher:
    """Asks about the candidates that would be drawn and their replacements, and drops what it likes too well."""

    def __init__(self, score: ScorePairs, passages: Passages, *, margin: float, most: int) -> None:
        """Take the parts.

        Args:
            score: the model.
            passages: of the candidates' rows.
            margin: a candidate is at least so much below the positive.
            most: candidates asked about, a query.
        """
        self._score, self._passages, self._margin, self._most = score, passages, margin, most

    def judge(self, pairs: Sequence[Pair], order_QK: Int64s, rows_QK: Int64s, verdicts_QK: Bytes) -> Opinion:
        """Give the candidates that are kept their verdict, in place: dropped, kept, or not asked about.

        Args:
            pairs: [Q].
            order_QK: positions of candidates, the first to be drawn first.
            rows_QK: of the candidates.
            verdicts_QK: of the candidates; those kept are judged.
        """
        kept = np.take_along_axis(verdicts_QK, order_QK, 1) == Verdict.KEPT
        asked = kept & (np.cumsum(kept, axis=1) <= self._most)
        at_Q, turn = np.nonzero(asked)
        places = order_QK[at_Q, turn]
        unasked_Q, unasked_turn = np.nonzero(kept & ~asked)
        verdicts_QK[unasked_Q, order_QK[unasked_Q, unasked_turn]] = Verdict.UNSCORED
        scores, positives_Q = self._ask(pairs, at_Q, rows_QK[at_Q, places])
        candidates_QK = np.full(rows_QK.shape, np.nan, dtype=np.float32)
        candidates_QK[at_Q, places] = scores
        # Without a positive there is nothing to be below: as by the margins, no candidate stays.
        too_good = ~(scores <= positives_Q[at_Q] - self._margin)
        verdicts_QK[at_Q[too_good], places[too_good]] = Verdict.TEACHER
        return Opinion(candidates_QK, positives_Q)

    def _ask(self, pairs: Sequence[Pair], at_Q: Int64s, rows: Int64s) -> tuple[Float32s, Float32s]:
        """Score candidates, and the positives of the queries that have any, in one go."""
        distinct, place = np.unique(rows, return_inverse=True)
        texts = [passage.content for passage in self._passages.passages(distinct)]
        asking = np.unique(at_Q).tolist()
        owners = [at for at in asking for _ in pairs[at].positives]
        queries = [pairs[at].query for at in (*at_Q.tolist(), *owners)]
        passages = [texts[at] for at in place.tolist()]
        passages += [passage.content for at in asking for passage in pairs[at].positives]
        scores = self._score(queries, passages)
        lowest = np.full(len(pairs), np.inf, dtype=np.float32)
        np.minimum.at(lowest, np.array(owners, dtype=np.int64), scores[len(rows) :])
        return scores[: len(rows)], np.where(np.isfinite(lowest), lowest, np.nan).astype(np.float32)


def teacher_of(path: Path, pool: EmbedPool, passages: Passages, *, margin: float, most: int) -> Teacher:
    """Open a teacher; its model is loaded by the pool's workers.

    Args:
        path: folder of a cross-encoder with one label, or of a bi-encoder, whose score is the dot product.
        pool: asks.
        passages: see `Teacher`.
        margin: see `Teacher`.
        most: see `Teacher`.

    Raises:
        UserError: the folder holds no model.
    """
    if is_cross_encoder(path):
        return Teacher(lambda q, p: pool.score_pairs(path, q, p), passages, margin=margin, most=most)
    return Teacher(lambda q, p: _dot_products(pool, path, q, p), passages, margin=margin, most=most)


def _dot_products(pool: EmbedPool, path: Path, queries: Sequence[str], passages: Sequence[str]) -> Float32s:
    """Score pairs by a bi-encoder, which reads each text once."""
    if not queries:
        return np.empty(0, dtype=np.float32)
    query_texts, passage_texts = list(dict.fromkeys(queries)), list(dict.fromkeys(passages))
    query_row = {text: row for row, text in enumerate(query_texts)}
    passage_row = {text: row for row, text in enumerate(passage_texts)}
    query_ND = pool.embed_texts(path, query_texts, "query")[[query_row[text] for text in queries]]
    passage_ND = pool.embed_texts(path, passage_texts, "passage")[[passage_row[text] for text in passages]]
    scores: Float32s = np.einsum("nd,nd->n", query_ND, passage_ND)
    return scores
