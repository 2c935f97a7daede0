"""BM25 as a source of candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_shards.corpora import Passages
from data_shards.samples import Pair, Passage
from index_build.bm25 import Bm25Index
from index_build.candidates import Block, Found
from index_build.corpus_rows import CorpusRows, passage_hashes
from index_build.embedding_set import RowHashes
from index_build.filters import Int64s


class Bm25:
    """The passages that share the most telling words.

    Positives that the corpus does not hold are indexed behind it, so that they have a score; none is a candidate.
    """

    def __init__(self, index: Bm25Index, corpus: CorpusRows, foreign: dict[int, int], depth: int) -> None:
        """Take the index; use `build`."""
        self._index, self._corpus, self._foreign, self._depth = index, corpus, foreign, depth

    @classmethod
    def build(cls, dataset: Passages, positives: Callable[[], Iterator[Passage]], depth: int) -> Bm25:
        """Index a corpus, in one pass that gathers its hashes too.

        Args:
            dataset: the corpus.
            positives: all that will be asked about.
            depth: candidates of a query.
        """
        hashes = np.empty((3, len(dataset)), dtype=np.int64)
        corpus = CorpusRows(dataset, RowHashes(*hashes))
        foreign: dict[int, int] = {}

        def texts() -> Iterator[str]:
            for row, passage in enumerate(dataset):
                hashes[:, row] = passage_hashes(passage)
                yield passage.content
            for passage in positives():
                if passage.content_hash not in foreign and corpus.of([passage])[0] < 0:
                    foreign[passage.content_hash] = len(corpus) + len(foreign)
                    yield passage.content

        return cls(Bm25Index(texts()), corpus, foreign, depth)

    @property
    def corpus(self) -> CorpusRows:
        """The rows that it finds."""
        return self._corpus

    def find(self, block: Block) -> Found:
        """Search."""
        own = self._numbers(block.pairs)
        extra = len(self._foreign)  # so many places may go to what is no candidate
        near, positives = self._index.search(
            [pair.query for pair in block.pairs], self._depth + min(extra, self._depth), own
        )
        candidate = (near.rows >= 0) & (near.rows < len(self._corpus))
        order = np.argsort(~candidate, axis=1, kind="stable")[:, : self._depth]
        candidate = np.take_along_axis(candidate, order, 1)
        rows = np.where(candidate, np.take_along_axis(near.rows, order, 1), -1)
        scores = np.where(candidate, np.take_along_axis(near.scores, order, 1), -np.inf).astype(np.float32)
        return Found(rows, scores, positives)

    def _numbers(self, pairs: Sequence[Pair]) -> list[Int64s]:
        """Return the numbers of each pair's positives in the index."""
        numbers = []
        for pair in pairs:
            rows = self._corpus.of(pair.positives)
            others = [self._foreign.get(passage.content_hash, -1) for passage in pair.positives]
            found = np.where(rows >= 0, rows, np.array(others, dtype=np.int64))
            numbers.append(found[found >= 0])  # of another stretch, perhaps: nobody has indexed them
        return numbers
