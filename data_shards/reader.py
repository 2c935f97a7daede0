"""Datasets as they are read: pairs by ordinal in the global order, passages shard by shard.

What a shard promises in its manifest and its sidecars is checked when it is opened and with every sample; what is
damaged raises `ShardCorruptError` with shard and offset, or is skipped into a quarantine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import MANIFEST_NAME, Manifest
from data_shards.order import GlobalOrder, OrderConfig, OrderSource
from data_shards.quarantine import Quarantine
from data_shards.samples import Pair, Passage, sample_key
from data_shards.shard_reader import ShardReader
from data_shards.shard_set import PAIRS, PASSAGES, Int64s, Ordinals, ShardSet, Stored
from data_shards.storage import CacheConfig, FetchStats, LocalFolder, open_storage

Location = str | Path

_BLOCK_PAIRS = 4096


class Unit(NamedTuple):
    """A piece of a corpus that is worked on as one."""

    name: str
    """A shard's file, or a Parquet file and the rows of it."""
    passages: int
    """How many it holds."""
    checksum: str
    """Changes when its content does."""


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """Where pairs come from; every process of a run opens it for itself."""

    locations: tuple[str, ...]
    """Folders or URLs of datasets."""
    weights: tuple[float, ...] = ()
    """See `PairDataset`."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards are kept."""
    on_error: Literal["error", "quarantine"] = "error"
    """Whether damage raises, or is written down and skipped."""

    def open(self, quarantine: Path) -> PairDataset:
        """Open the pairs.

        Args:
            quarantine: the file for damages; every process wants its own.

        Raises:
            UserError: see `PairDataset`.
        """
        place = Quarantine(quarantine) if self.on_error == "quarantine" else None
        return PairDataset(self.locations, weights=self.weights, cache=self.cache, quarantine=place)


class PairDataset:
    """Training samples by ordinal, of one dataset or of several that are mixed."""

    def __init__(
        self,
        locations: Location | Sequence[Location],
        *,
        weights: Sequence[float] = (),
        cache: CacheConfig | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Read the manifests; shards are opened when they are first needed.

        Args:
            locations: folders or URLs of datasets; see `data_shards.storage`.
            weights: the share of each in the global order; by default as their manifests say.
            cache: where remote shards are kept.
            quarantine: where damages are written down and skipped; without it they raise.

        Raises:
            UserError: a location is no dataset of pairs, or the weights are not one each.
        """
        several = [locations] if isinstance(locations, str | Path) else list(locations)
        if not several:
            raise UserError("no dataset of pairs is named; give one at least")
        self._arguments = (several, tuple(weights), cache, quarantine)
        self._datasets = [stored(location, "pairs", cache) for location in several]
        self.manifests = [dataset.manifest for dataset in self._datasets]
        self.manifest = self.manifests[0]
        """Of the only dataset, or of the first."""
        self.weights = _weights(weights, self.manifests)
        self.location = ", ".join(dataset.storage.location for dataset in self._datasets)
        self.is_remote = not all(isinstance(dataset.storage, LocalFolder) for dataset in self._datasets)
        self.dataset_id = _joint_id(self.manifests)
        self.shard_stems = [
            shard.stem if len(self.manifests) == 1 else f"{number:02d}-{shard.stem}"
            for number, manifest in enumerate(self.manifests)
            for shard in manifest.shards
        ]
        self._shards = ShardSet(self._datasets, PAIRS, quarantine)

    def __reduce__(self) -> tuple[object, ...]:
        """Open anew in another process."""
        return _reopen_pairs, self._arguments

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self._shards)

    @property
    def with_teacher(self) -> int | None:
        """How many pairs have a teacher's score for every passage; None where a manifest does not say."""
        counts = [manifest.with_teacher for manifest in self.manifests]
        return None if None in counts else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[Pair]:
        """Yield every pair, in order; those in quarantine are left out."""
        for shard in range(len(self.shard_stems)):
            yield from self._shards.forward(shard)

    def pair(self, ordinal: int) -> Pair:
        """Return one pair.

        Raises:
            UserError: it is damaged.
        """
        pairs = self.pairs([ordinal])
        if not pairs:
            raise UserError(f"pair {ordinal} of {self.location} is damaged; the quarantine file says how")
        return pairs[0]

    def pairs(self, ordinals: Ordinals) -> list[Pair]:
        """Return pairs in the order asked for; those in quarantine are left out, `sound_pairs` says which.

        Raises:
            IndexError: an ordinal is not below the number of samples.
            ShardCorruptError: a shard is damaged, and there is no quarantine.
        """
        return self.sound_pairs(ordinals)[1]

    def sound_pairs(self, ordinals: Ordinals) -> tuple[Int64s, list[Pair]]:
        """Return those of the ordinals whose pairs can be read, and these pairs; see `pairs`."""
        places, pairs = self._shards.read(ordinals)
        return np.asarray(ordinals, dtype=np.int64)[places], pairs

    def sound(self, ordinals: Int64s) -> Int64s:
        """Return those of the ordinals whose pairs can be read; without a quarantine all, unread."""
        if self._shards.quarantine is None:
            return ordinals
        blocks = [ordinals[at : at + _BLOCK_PAIRS] for at in range(0, len(ordinals), _BLOCK_PAIRS)]
        return np.concatenate([self.sound_pairs(block)[0] for block in blocks] or [ordinals])

    def key(self, ordinal: int) -> str:
        """Return a pair's key in its own dataset."""
        begins = np.cumsum([0, *(manifest.samples for manifest in self.manifests)])
        return sample_key(ordinal - int(begins[np.searchsorted(begins, ordinal, side="right") - 1]))

    def locate(self, ordinals: Ordinals) -> tuple[Int64s, Int64s]:
        """Return the index of the shard (into `shard_stems`) and the row within it, for each ordinal."""
        return self._shards.locate(ordinals)

    def order(self, *, batch_size: int, seed: int, config: OrderConfig | None = None) -> GlobalOrder:
        """Return the global order of these pairs."""
        sources = [
            OrderSource(
                dataset_id=manifest.dataset_id,
                shard_samples=tuple(shard.samples for shard in manifest.shards),
                weight=weight,
            )
            for manifest, weight in zip(self.manifests, self.weights, strict=True)
        ]
        return GlobalOrder(
            sources=sources,
            batch_size=batch_size,
            seed=seed,
            config=config,
            positives=self._shards.positive_hashes,
        )

    @property
    def fetched(self) -> FetchStats:
        """What remote shards cost so far."""
        return sum((dataset.storage.fetched for dataset in self._datasets), FetchStats())

    def prefetch(self, ordinals: Int64s) -> None:
        """Fetch the shards of some ordinals in the background, where they are not on this machine."""
        self._shards.prefetch(ordinals)


class CorpusDataset:
    """A dataset of passages."""

    def __init__(
        self, location: Location, *, cache: CacheConfig | None = None, quarantine: Quarantine | None = None
    ) -> None:
        """Read the manifest; shards are opened when they are first needed. For the arguments see `PairDataset`.

        Raises:
            UserError: the location is no corpus.
        """
        self._arguments = (location, cache, quarantine)
        dataset = stored(location, "corpus", cache)
        self.manifest = dataset.manifest
        self.location = dataset.storage.location
        self.dataset_id = self.manifest.dataset_id
        self.is_remote = not isinstance(dataset.storage, LocalFolder)
        self._storage = dataset.storage
        self._shards = ShardSet([dataset], PASSAGES, quarantine)

    def __reduce__(self) -> tuple[object, ...]:
        """Open anew in another process."""
        return _reopen_corpus, self._arguments

    def __len__(self) -> int:
        """Return how many passages there are."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Passage]:
        """Yield every passage, in order."""
        for shard in range(len(self.manifest.shards)):
            yield from self.iter_shard(shard)

    @property
    def units(self) -> list[Unit]:
        """The shards, as pieces of work; see `corpora.Corpus`."""
        return [Unit(entry.path, entry.samples, entry.sha256) for entry in self.manifest.shards]

    def read_unit(self, number: int) -> list[Passage]:
        """Return the passages of one shard, once all of it matches its checksum.

        Raises:
            ShardCorruptError: the shard is damaged.
        """
        entry = self.manifest.shards[number]
        path = self._storage.local(entry.path, size=entry.bytes, sha256=entry.sha256)
        if not self.is_remote:  # a remote one was verified on its way here
            ShardReader(path, entry, verify=True)
        passages = list(self.iter_shard(number))
        if len(passages) != entry.samples:
            raise ShardCorruptError(path, 0, f"{len(passages)} passages, the manifest says {entry.samples}")
        return passages

    def iter_shard(self, shard: int) -> Iterator[Passage]:
        """Yield the passages of one shard, in order."""
        yield from self._shards.forward(shard)

    def passages(self, ordinals: Ordinals) -> list[Passage]:
        """Return passages in the order asked for.

        Raises:
            IndexError: an ordinal is not below the number of passages.
            ShardCorruptError: a shard is damaged, and there is no quarantine.
        """
        return self._shards.read(ordinals)[1]

    def sound_passages(self, ordinals: Ordinals) -> tuple[Int64s, list[Passage]]:
        """Return those of the ordinals whose passages can be read, and these passages; see `passages`."""
        places, passages = self._shards.read(ordinals)
        return np.asarray(ordinals, dtype=np.int64)[places], passages

    def order(self, *, batch_size: int, seed: int, config: OrderConfig | None = None) -> GlobalOrder:
        """Return the global order of these passages, for training on them."""
        samples = tuple(shard.samples for shard in self.manifest.shards)
        source = OrderSource(dataset_id=self.dataset_id, shard_samples=samples)
        return GlobalOrder(sources=[source], batch_size=batch_size, seed=seed, config=config)

    def prefetch(self, ordinals: Int64s) -> None:
        """Fetch the shards of some ordinals in the background, where they are not on this machine."""
        self._shards.prefetch(ordinals)


def open_dataset(location: Location, cache: CacheConfig | None = None) -> PairDataset | CorpusDataset:
    """Open a dataset of either kind.

    Raises:
        UserError: the location is no dataset.
    """
    kind = stored(location, None, cache).manifest.kind
    return PairDataset(location, cache=cache) if kind == "pairs" else CorpusDataset(location, cache=cache)


def stored(location: Location, kind: Literal["pairs", "corpus"] | None, cache: CacheConfig | None) -> Stored:
    """Find a dataset and read its manifest.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    storage = open_storage(location, cache)
    if isinstance(storage, LocalFolder):
        return Stored(storage, Manifest.load(storage.folder, kind))
    place = f"{storage.location}/{MANIFEST_NAME}"
    try:
        row = json.loads(storage.read(MANIFEST_NAME))
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"{place} is not JSON: {error}") from None
    return Stored(storage, Manifest.parse(row, place, kind))


def _weights(given: Sequence[float], manifests: list[Manifest]) -> tuple[float, ...]:
    weights = tuple(given) or tuple(manifest.weight for manifest in manifests)
    if len(weights) != len(manifests):
        raise UserError(f"{len(weights)} data.weights came for {len(manifests)} data.pairs; wanted one each, or none")
    if not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"data.weights are {', '.join(map(str, weights))}; each must be a number above 0")
    return weights


def _joint_id(manifests: list[Manifest]) -> str:
    """Return the id of one dataset, or a hash of several ids: what a negatives version belongs to."""
    ids = [manifest.dataset_id for manifest in manifests]
    return ids[0] if len(ids) == 1 else f"sha256:{hashlib.sha256(' '.join(ids).encode()).hexdigest()}"


def _reopen_pairs(
    locations: Sequence[Location],
    weights: Sequence[float],
    cache: CacheConfig | None,
    quarantine: Quarantine | None,
) -> PairDataset:
    return PairDataset(locations, weights=weights, cache=cache, quarantine=quarantine)


def _reopen_corpus(location: Location, cache: CacheConfig | None, quarantine: Quarantine | None) -> CorpusDataset:
    return CorpusDataset(location, cache=cache, quarantine=quarantine)
