"""BM25, the baseline that needs no training, and a source of negatives: bm25s in its Lucene variant."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from data_shards.qrels import Run
from data_shards.samples import Passage
from index_build.exact import Neighbours

logging.getLogger("bm25s").setLevel(logging.WARNING)  # on import it sets itself to DEBUG, and announces each index


class Bm25Index:
    """BM25 over texts.

    k1 0.9, b 0.4, English stemmer and stop words: the setting of BEIR's and Pyserini's baselines.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Build it; the texts' tokens are held in memory, the texts are not.

        Args:
            texts: numbered as they come.
        """
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        tokens = bm25s.tokenize(texts, stopwords="en", stemmer=self._stemmer, show_progress=False)
        self.size = len(tokens.ids)
        self._index.index(tokens, show_progress=False)

    def search(
        self, queries: Sequence[str], k: int, own: Sequence[NDArray[np.int64]]
    ) -> tuple[Neighbours, list[NDArray[np.float32]]]:
        """Return the k best texts of each query, and the scores of some that it names.

        A text that shares no term with a query is none of its neighbours. All texts are scored for each query, so
        the cost is queries times texts.

        Args:
            queries: [Q].
            k: most neighbours of each.
            own: [Q] numbers of texts to score besides.

        Returns:
            Scores and numbers [Q, k], best first, -1 where there are fewer; and the scores of `own`.
        """
        tokens = bm25s.tokenize(
            list(queries), stopwords="en", stemmer=self._stemmer, show_progress=False, return_ids=False
        )
        found = Neighbours(
            np.full((len(queries), k), -np.inf, dtype=np.float32), np.full((len(queries), k), -1, dtype=np.int64)
        )
        named = []
        for at, words in enumerate(tokens):
            scores = self._index.get_scores(words) if words else np.zeros(self.size, dtype=np.float32)
            best = _best(scores, k)
            found.scores[at, : len(best)] = scores[best]
            found.rows[at, : len(best)] = best
            named.append(scores[own[at]].astype(np.float32))
        return found, named


def bm25_run(queries: Mapping[str, str], corpus: Iterable[Passage], k: int = 100) -> Run:
    """Return the k best passages of each query by BM25 over title and text; see `Bm25Index`.

    A passage that shares no term with the query is left out.

    Args:
        queries: text by id.
        corpus: passages; their tokens are held in memory, their texts are not.
        k: passages a query.
    """
    ids: list[str] = []

    def contents() -> Iterable[str]:
        for passage in corpus:
            ids.append(passage.id)
            yield passage.content

    index = Bm25Index(contents())
    none = np.empty(0, dtype=np.int64)
    found, _ = index.search(list(queries.values()), min(k, len(ids)), [none] * len(queries))
    return {
        query: {
            ids[row]: float(score)
            for row, score in zip(found.rows[at].tolist(), found.scores[at].tolist(), strict=True)
            if row >= 0
        }
        for at, query in enumerate(queries)
    }


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places of the k highest scores above zero, best first; of equal ones the lower place comes first."""
    places = np.flatnonzero(scores > 0)
    if len(places) > k:
        least = np.partition(scores[places], len(places) - k)[len(places) - k]
        above, equal = places[scores[places] > least], places[scores[places] == least]
        places = np.concatenate([above, equal[: k - len(above)]])
    return places[np.lexsort((places, -scores[places]))]
