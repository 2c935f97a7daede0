"""What is exported: ids, vectors and, if wanted, texts, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.corpora import Passages, open_corpus, without
from data_shards.errors import UserError
from index_build.embedding_set import EmbeddingSet

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some rows."""

    ids: list[str]
    vectors: NDArray[np.float32]
    titles: list[str] | None = None
    """None where texts are not wanted."""
    texts: list[str] | None = None


class ExportRows:
    """All rows of an embedding set, in order; one batch at a time is in memory."""

    def __init__(
        self, folder: Path, *, texts: bool = False, corpus: str | None = None, progress: Progress | None = None
    ) -> None:
        """Open a set and verify it.

        Args:
            folder: of the set.
            texts: whether titles and texts are wanted.
            corpus: where these are; by default where they were embedded from.
            progress: called with (rows done, rows in all).

        Raises:
            UserError: the set is damaged, or the corpus is another one.
        """
        self.vectors = EmbeddingSet.open(folder)
        self.vectors.verify()
        self._progress = progress
        self._passages: Passages | None = self._open(corpus or self.vectors.corpus["path"]) if texts else None

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self.vectors.rows

    @property
    def has_texts(self) -> bool:
        """Whether batches carry titles and texts."""
        return self._passages is not None

    def batches(self, rows: int) -> Iterator[Batch]:
        """Yield all rows, at most so many at a time."""
        ids = self.vectors.iter_ids()
        for first, vectors in self.vectors.blocks(rows):
            names = [next(ids) for _ in range(len(vectors))]
            passages = self._passages.passages(range(first, first + len(vectors))) if self._passages else None
            if passages is not None and [passage.id for passage in passages] != names:
                raise UserError(
                    f"row {first} and on: the corpus has other passages than were embedded; embed it anew"
                )
            yield Batch(
                ids=names,
                vectors=vectors,
                titles=None if passages is None else [passage.title for passage in passages],
                texts=None if passages is None else [passage.text for passage in passages],
            )
            if self._progress:
                self._progress(first + len(vectors), len(self))

    def _open(self, corpus: str) -> Passages:
        found = without(open_corpus(corpus), self.vectors.corpus.get("left_out", []))
        if found.dataset_id != self.vectors.corpus["dataset_id"]:
            raise UserError(f"{found.location} is not the corpus that {self.vectors.folder} was embedded from")
        return found
