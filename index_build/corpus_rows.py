"""The corpus as mining sees it: passages by row number, by id, and what each is recognised by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.corpora import Passages
from data_shards.errors import UserError
from data_shards.permutation import permute, round_keys
from data_shards.reader import CorpusDataset
from data_shards.samples import Passage, id_hash, text_hash
from data_shards.writer import ShardWriter
from index_build.embedding_set import RowHashes

Int64s = NDArray[np.int64]

_READ_AT_ONCE = 4_096
_SHARDS = 64  # of a smaller corpus: a shard is a worker's unit of work
_SHARD_PASSAGES = (256, 20_000)


class CorpusRows:
    """Finds a passage's row by its id; rows are numbers of passages in corpus order."""

    def __init__(self, dataset: Passages, hashes: RowHashes) -> None:
        """Take over the hashes of every row: 24 bytes each, and 16 more once an id is looked up."""
        self.dataset = dataset
        self.hashes = hashes

    @classmethod
    def scan(cls, dataset: Passages) -> CorpusRows:
        """Read the whole corpus for its hashes, where no embedding set has them."""
        hashes = np.empty((3, len(dataset)), dtype=np.int64)
        for row, passage in enumerate(dataset):
            hashes[:, row] = passage_hashes(passage)
        return cls(dataset, RowHashes(*hashes))

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.hashes.ids)

    @cached_property
    def _by_id(self) -> tuple[Int64s, Int64s]:
        order = np.argsort(self.hashes.ids, kind="stable")
        return order, self.hashes.ids[order]

    def with_ids(self, id_hashes: Int64s) -> Int64s:
        """Return the row of each id; -1 where the corpus has none."""
        order, ids = self._by_id
        if not len(ids):
            return np.full(len(id_hashes), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(ids, id_hashes), len(ids) - 1)
        return np.where(ids[place] == id_hashes, order[place], -1)

    def of(self, passages: Sequence[Passage]) -> Int64s:
        """Return the row of each passage; -1 where the corpus lacks it or has another content under its id."""
        rows = self.with_ids(np.array([id_hash(passage.id) for passage in passages], dtype=np.int64))
        contents = np.array([passage.content_hash for passage in passages], dtype=np.int64)
        if not len(self):
            return rows
        return np.where((rows >= 0) & (self.hashes.contents[rows] == contents), rows, -1)


def passage_hashes(passage: Passage) -> tuple[int, int, int]:
    """Return what `RowHashes` holds of one passage."""
    return id_hash(passage.id), passage.content_hash, text_hash(passage.text)


def write_sample(
    corpus: CorpusDataset, positives: Iterable[Passage], out: Path, *, size: int, key: str
) -> CorpusDataset:
    """Write a corpus of some of the passages and all of these positives.

    Args:
        corpus: to draw from.
        positives: taken in any case; of those with one id the first.
        out: folder of the new corpus.
        size: passages drawn.
        key: the draw depends on it and on the corpus alone.
    """
    rows = np.arange(min(size, len(corpus)))
    drawn = np.sort(permute(rows, max(len(corpus), 1), round_keys(f"{corpus.dataset_id} mining sample {key}")))
    seen: set[str] = set()
    with ShardWriter(out, "corpus", samples_per_shard=_per_shard(len(drawn))) as writer:
        for start in range(0, len(drawn), _READ_AT_ONCE):
            for passage in corpus.passages(drawn[start : start + _READ_AT_ONCE]):
                seen.add(passage.id)
                writer.add(passage)
        for passage in positives:
            if passage.id not in seen:
                seen.add(passage.id)
                writer.add(passage)
    return CorpusDataset(out)


def write_positives(corpus: CorpusDataset, id_hashes: Int64s, out: Path) -> CorpusDataset:
    """Write a corpus of those passages alone that some training pair names.

    Args:
        corpus: to take them from.
        id_hashes: of the positives, sorted, each once.
        out: folder of the new corpus.

    Raises:
        UserError: there are none.
    """
    found = 0
    with ShardWriter(out, "corpus", samples_per_shard=_per_shard(len(id_hashes))) as writer:
        for passage in corpus:
            name = id_hash(passage.id)
            place = int(np.searchsorted(id_hashes, name))
            if place < len(id_hashes) and id_hashes[place] == name:
                writer.add(passage)
                found += 1
        if not found:
            raise UserError(
                f"no passage of {corpus.location} has the id of a training pair's positive, so there is nothing to "
                'mine from; make pairs and corpus from the same source, or set mining.candidates = "corpus"'
            )
    return CorpusDataset(out)


def _per_shard(passages: int) -> int:
    least, most = _SHARD_PASSAGES
    return min(max(passages // _SHARDS, least), most)
