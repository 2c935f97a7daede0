"""All passages known to answer a query, gathered over the whole training set."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_shards.reader import PairDataset
from data_shards.samples import id_hash, text_hash
from index_build.embedding_set import RowHashes
from index_build.filters import Known, Ragged


class KnownPositives:
    """The positives of every query text of a training set: scan it once, ask often.

    Two pairs whose queries differ only in case, width or white space share their positives: what answers one answers
    the other. In memory are 32 bytes a positive.
    """

    def __init__(self, train: PairDataset) -> None:
        """Scan the training set.

        Raises:
            ShardCorruptError: a shard is damaged.
        """
        columns = [array("q") for _ in range(4)]
        for pair in train:
            query = text_hash(pair.query)
            for passage in pair.positives:
                hashes = (query, id_hash(passage.id), passage.content_hash, text_hash(passage.text))
                for column, value in zip(columns, hashes, strict=True):
                    column.append(value)
        queries, *others = (np.frombuffer(column, dtype=np.int64) for column in columns)
        order = np.argsort(queries, kind="stable")
        self.dataset_id = train.dataset_id
        self._queries = queries[order]
        self._passages = RowHashes(*(column[order] for column in others))

    @property
    def passage_ids(self) -> NDArray[np.int64]:
        """The id hash of every positive of the training set: sorted, each once."""
        return np.unique(self._passages.ids)

    def of(self, query: str) -> RowHashes:
        """Return the hashes of everything known to answer a query; empty for a query that no pair has."""
        return self.of_all([query]).hashes

    def of_all(self, queries: Sequence[str]) -> Known:
        """Return the same for many queries at once."""
        wanted = np.array([text_hash(query) for query in queries], dtype=np.int64)
        first = np.searchsorted(self._queries, wanted, side="left")
        layout = Ragged.of(np.searchsorted(self._queries, wanted, side="right") - first)
        rows = np.repeat(first - layout.starts, layout.counts) + np.arange(int(layout.counts.sum()))
        return Known(self._passages.take(rows), layout)
