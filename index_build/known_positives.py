"""All passages known to answer a query, gathered over the whole training set."""

from __future__ import annotations

from array import array

import numpy as np

from data_shards.reader import PairDataset
from data_shards.samples import id_hash, text_hash
from index_build.embedding_set import RowHashes


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

    def of(self, query: str) -> RowHashes:
        """Return the hashes of everything known to answer a query; empty for a query that no pair has."""
        wanted = text_hash(query)
        first, last = (int(np.searchsorted(self._queries, wanted, side=side)) for side in ("left", "right"))
        return RowHashes(*(column[first:last] for column in self._passages))
