"""Finds candidates that are nearly the same text as a positive of their query, by MinHash signatures.

Only a query's own candidates and positives are compared, so the cost grows with the queries and never with the
square of the corpus. A passage's signature is made once a version, when it first becomes a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.near_duplicates import signatures
from data_shards.samples import Pair, Passage
from index_build.corpus_rows import CorpusRows
from index_build.filters import Bools, Int64s, Known, Ragged
from index_build.mining_config import NEAR_SHINGLES

Signatures = NDArray[np.uint32]

_PLACES = 128  # of a signature: at 0.8 the estimate's standard error is 0.035
_NO_WORDS = np.uint32(0xFFFFFFFF)
_COMPARED_AT_ONCE = 1 << 14

# Axes: Q queries of a block, K candidates of each, N positives of all queries in a row, S places of a signature.


class NearPositives:
    """Keeps the signatures of a corpus in a sparse file: 512 bytes for each passage that was a candidate."""

    def __init__(self, corpus: CorpusRows, path: Path, threshold: float) -> None:
        """Begin without any signature.

        Args:
            corpus: of the candidates.
            path: the new file.
            threshold: share of shingles in common from which on two texts count as the same.
        """
        self._corpus = corpus
        self._threshold = threshold
        self._cleaning = CleaningConfig(near_permutations=_PLACES, near_shingle=NEAR_SHINGLES)
        shape = (len(corpus), _PLACES)
        self._signatures = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint32, shape=shape)
        self._made = np.zeros(len(corpus), dtype=np.bool_)

    def find(self, rows_QK: Int64s, asked_QK: Bools, pairs: Sequence[Pair], known: Known) -> Bools:
        """Tell which candidates are nearly the same as a known positive of their query.

        Known positives are the pair's own, and those of the same question's other pairs that the corpus holds.

        Args:
            rows_QK: candidates.
            asked_QK: which of them to look at.
            pairs: [Q].
            known: their known positives.
        """
        found = np.zeros(rows_QK.shape, dtype=np.bool_)
        self._make(rows_QK[asked_QK])
        positives_NS, layout = self._positives(pairs, known)
        for queries, places in layout.places():
            at, column = np.nonzero(asked_QK[queries])
            for start in range(0, len(at), _COMPARED_AT_ONCE):
                some, columns = at[start : start + _COMPARED_AT_ONCE], column[start : start + _COMPARED_AT_ONCE]
                mine = self._signatures[rows_QK[queries[some], columns]]
                alike = self._alike(mine, positives_NS[places[some]])
                found[queries[some], columns] |= alike
        return found

    def _alike(self, left: Signatures, right: Signatures) -> Bools:
        with_words = ~(left == _NO_WORDS).all(axis=1)
        alike: Bools = ((left == right).mean(axis=1) >= self._threshold) & with_words
        return alike

    def _positives(self, pairs: Sequence[Pair], known: Known) -> tuple[Signatures, Ragged]:
        """Return the signatures of each query's positives; one may be there twice."""
        own = [passage for pair in pairs for passage in pair.positives]
        rows = self._corpus.with_ids(known.hashes.ids)
        self._make(rows[rows >= 0])
        texts = [_body(passage) for passage in own]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        of_texts = signatures(list(distinct), self._cleaning)[[distinct[text] for text in texts]]
        owners = np.repeat(np.arange(len(pairs)), [len(pair.positives) for pair in pairs])
        others = np.repeat(np.arange(len(pairs)), known.layout.counts)[rows >= 0]
        order = np.argsort(np.concatenate([owners, others]), kind="stable")
        counts = np.bincount(np.concatenate([owners, others]).astype(np.int64), minlength=len(pairs))
        return np.concatenate([of_texts, self._signatures[rows[rows >= 0]]])[order], Ragged.of(counts)

    def _make(self, rows: Int64s) -> None:
        """Make the signatures of rows that have none yet."""
        wanted = np.unique(rows)
        wanted = wanted[~self._made[wanted]]
        for start in range(0, len(wanted), _COMPARED_AT_ONCE):
            block = wanted[start : start + _COMPARED_AT_ONCE]
            texts = [_body(passage) for passage in self._corpus.dataset.passages(block)]
            self._signatures[block] = signatures(texts, self._cleaning)
        self._made[wanted] = True


def _body(passage: Passage) -> str:
    """Return what is compared: the text, since the same one may carry a title in one place and none in another."""
    return passage.text or passage.title
