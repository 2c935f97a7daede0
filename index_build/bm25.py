"""BM25, the baseline that needs no training: bm25s in its Lucene variant."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import bm25s
import Stemmer

from data_shards.qrels import Run
from data_shards.samples import Passage

logging.getLogger("bm25s").setLevel(logging.WARNING)  # on import it sets itself to DEBUG, and announces each index


def bm25_run(queries: Mapping[str, str], corpus: Iterable[Passage], k: int = 100) -> Run:
    """Return the k best passages of each query by BM25 over title and text.

    k1 0.9, b 0.4, English stemmer and stop words: the setting of BEIR's and Pyserini's baselines. A passage that
    shares no term with the query is left out.

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

    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index(bm25s.tokenize(contents(), stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries.values()), stopwords="en", stemmer=stemmer, show_progress=False)
    rows, scores = index.retrieve(tokens, k=min(k, len(ids)), show_progress=False)
    return {
        query: {
            ids[row]: float(score)
            for row, score in zip(rows[at].tolist(), scores[at].tolist(), strict=True)
            if score > 0
        }
        for at, query in enumerate(queries)
    }
