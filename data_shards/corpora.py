"""Corpora of any form: folders of shards and Parquet files, here or behind a URL, read in the same way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from data_shards.manifest import MANIFEST_NAME, no_dataset
from data_shards.reader import CorpusDataset, Location, Unit as Unit
from data_shards.samples import Passage
from data_shards.storage import CacheConfig, Storage, is_remote, open_storage

Int64s = NDArray[np.int64]
Ordinals = Sequence[int] | Int64s

PARQUET = ".parquet"


class Passages(Protocol):
    """Passages by number."""

    location: str
    """For messages: no secrets."""

    @property
    def dataset_id(self) -> str:
        """Hash of the content; of remote Parquet files, of what their store tells of their versions."""
        ...

    def __len__(self) -> int:
        """Return how many passages there are."""
        ...

    def __iter__(self) -> Iterator[Passage]:
        """Yield every passage, in order."""
        ...

    def passages(self, ordinals: Ordinals) -> list[Passage]:
        """Return passages in the order asked for.

        Raises:
            IndexError: an ordinal is not below the number of passages.
            UserError: what holds them is missing or damaged.
        """
        ...


class Corpus(Passages, Protocol):
    """Passages by ordinal and unit by unit."""

    @property
    def units(self) -> Sequence[Unit]:
        """All of it, in order."""
        ...

    def read_unit(self, number: int) -> list[Passage]:
        """Return the passages of one unit, once its content is what `units` says.

        Raises:
            UserError: it is missing or damaged.
        """
        ...


class Without:
    """A corpus some of whose passages are passed over: the rows of an embedding set that left them out."""

    def __init__(self, corpus: Passages, left_out: Ordinals) -> None:
        """Take the corpus and the ordinals that do not count."""
        self.corpus = corpus
        self.location = corpus.location
        gone = np.unique(np.asarray(left_out, dtype=np.int64))
        # A row stands behind those left-out passages whose ordinal, less the ones before, it reaches.
        self._steps = gone - np.arange(len(gone))

    @property
    def dataset_id(self) -> str:
        """Of the whole corpus: see `Passages`."""
        return self.corpus.dataset_id

    def __len__(self) -> int:
        """Return how many passages are left."""
        return len(self.corpus) - len(self._steps)

    def __iter__(self) -> Iterator[Passage]:
        """Yield every passage that is left, in order."""
        gone = set((self._steps + np.arange(len(self._steps))).tolist())
        yield from (passage for ordinal, passage in enumerate(self.corpus) if ordinal not in gone)

    def ordinals(self, rows: Ordinals) -> Int64s:
        """Return where rows stand in the whole corpus."""
        wanted = np.asarray(rows, dtype=np.int64)
        return wanted + np.searchsorted(self._steps, wanted, side="right")

    def passages(self, rows: Ordinals) -> list[Passage]:
        """Return passages by their row; see `Corpus`."""
        return self.corpus.passages(self.ordinals(rows))


def without(corpus: Passages, left_out: Ordinals) -> Passages:
    """Return a corpus without some of its passages; with all of them, itself."""
    return Without(corpus, left_out) if len(left_out) else corpus


def open_corpus(location: Location, cache: CacheConfig | None = None) -> Corpus:
    """Open a corpus: a folder of corpus shards, a Parquet file, or a folder of Parquet files; or a URL of one.

    Args:
        location: the place.
        cache: where remote files are kept.

    Raises:
        UserError: there is no corpus, it lacks a column, or it cannot be read.
    """
    from data_shards.parquet_corpus import ParquetCorpus

    folder, name = _of_one_file(location)
    storage = open_storage(folder, cache)
    if name is not None:
        return ParquetCorpus(storage, [name], location, cache)
    if _has_manifest(storage):
        return CorpusDataset(location, cache=cache)
    if names := _parquet_names(storage):
        return ParquetCorpus(storage, names, location, cache)
    raise UserError(f"{no_dataset(storage.location)}, or give Parquet files, which it has none of either")


def absolute(location: Location) -> str:
    """Return a location that means the same in another process: a URL as it is, a path from the root on."""
    return str(location) if is_remote(location) else str(Path(_without_scheme(location)).absolute())


def _of_one_file(location: Location) -> tuple[Location, str | None]:
    """Take the location of a single Parquet file apart; None where it is a folder."""
    text = str(location)
    if not text.lower().endswith(PARQUET) or (not is_remote(text) and Path(_without_scheme(text)).is_dir()):
        return location, None
    folder, _, name = text.rpartition("/")
    return (folder or ("/" if text.startswith("/") else ".")), name


def _has_manifest(storage: Storage) -> bool:
    return storage.try_local(MANIFEST_NAME) is not None


def _parquet_names(storage: Storage) -> list[str]:
    return sorted(
        name for name in storage.names() if name.lower().endswith(PARQUET) and not name.startswith((".", "_"))
    )


def _without_scheme(location: Location) -> str:
    return re.sub("^file://", "", str(location))
