"""Which columns a row of the loss does not see: false negatives, itself, and other queries' hard negatives.

Every mask is True where a column is left out. Axes: c rows of a block, N passages and Q queries of all ranks, K known
positives of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.objective.batch import Columns, Pairs
from train.objective.config import LossConfig


class Masks:
    """The masks of one block of rows; each takes the scores that it is for, since those may be above the margin."""

    def __init__(self, pairs: Pairs, columns: Columns, config: LossConfig, best_c: Tensor) -> None:
        """Keep the parts.

        Args:
            pairs: the rows.
            columns: the columns.
            config: what is to be left out.
            best_c: the score of the best own positive of each row's query.
        """
        self._pairs, self._columns, self._config, self._best_c = pairs, columns, config, best_c
        self._known_cN = _known_positives(pairs, columns) if config.mask_duplicates else None

    def false_passages(self, score_cN: Tensor) -> Tensor:
        """From query to passage: known positives other than the row's own, and what scores above the margin."""
        false_cN = self._false(score_cN, self._known_cN)
        return false_cN.scatter_(1, self._pairs.column_r[:, None], False)

    def foreign_negatives(self) -> Tensor | None:
        """Hard negatives of other queries, where only the owner may see them."""
        if self._config.hard_negatives == "shared":
            return None
        return ~self._columns.positive_N & (self._columns.owner_N != self._pairs.query_r[:, None])

    def passages_beside(self, score_cN: Tensor) -> Tensor:
        """From positive to passage: itself, its duplicates and siblings too."""
        same_cN = None
        if self._known_cN is not None:
            same_cN = self._known_cN | (self._columns.passage_hash_N == self._pairs.passage_hash_r[:, None])
        out_cN = self._false(score_cN, same_cN)
        return out_cN.scatter_(1, self._pairs.column_r[:, None], True)

    def queries_beside(self, score_cQ: Tensor) -> Tensor:
        """From query to query: itself, equal ones, and those that are a known positive of it."""
        same_cQ = None
        if self._config.mask_duplicates:
            assert self._columns.query_hash_Q is not None, "queries were gathered"
            same_cQ = self._columns.query_hash_Q == self._pairs.query_hash_r[:, None]
            for hash_c in self._pairs.positive_hash_rK.unbind(1):
                same_cQ |= self._columns.query_hash_Q == hash_c[:, None]
        out_cQ = self._false(score_cQ, same_cQ)
        return out_cQ.scatter_(1, self._pairs.query_r[:, None], True)

    def false_queries(self, score_cQ: Tensor) -> Tensor:
        """From positive to query: queries of which it is a known positive, other than the row's own."""
        known_cQ = None
        if self._config.mask_duplicates:
            assert self._columns.query_hash_Q is not None, "queries were gathered"
            assert self._columns.positive_hash_QK is not None, "queries were gathered"
            known_cQ = self._columns.query_hash_Q == self._pairs.query_hash_r[:, None]
            for hash_Q in self._columns.positive_hash_QK.unbind(1):
                known_cQ |= hash_Q == self._pairs.passage_hash_r[:, None]
        out_cQ = self._false(score_cQ, known_cQ)
        return out_cQ.scatter_(1, self._pairs.query_r[:, None], False)

    def _false(self, score: Tensor, known: Tensor | None) -> Tensor:
        """Join what is known with what is above the margin, in a tensor of its own."""
        false = torch.zeros_like(score, dtype=torch.bool) if known is None else known.clone()
        if self._config.mask_margin is not None:
            false |= score > self._best_c[:, None] + self._config.mask_margin
        return false


def _known_positives(pairs: Pairs, columns: Columns) -> Tensor:
    """Mark the columns that hold a known positive of each row's query, by text; its own positives too.

    A column also counts when it is the positive of an equal query elsewhere in the global batch.
    """
    known_cN = (pairs.query_hash_r[:, None] == columns.owner_hash_N) & columns.positive_N
    for hash_c in pairs.positive_hash_rK.unbind(1):
        known_cN |= hash_c[:, None] == columns.passage_hash_N
    return known_cN
