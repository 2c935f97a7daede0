"""`dipole shards …`: raw text to shards, and a look at what is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from launch.progress import progress_bar

if TYPE_CHECKING:
    from data_shards.importers import ImportConfig
    from data_shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class _Import:
    input: tuple[Path, ...]
    """BEIR folders, JSONL, TSV or CSV (plain or .gz), Parquet, or folders made by save_to_disk."""
    out: Path
    """Where the dataset goes; must be empty or not there."""
    split: str = "train"
    """Which split of a saved dataset, or which judgements of a BEIR folder."""
    source: str = ""
    """Name of the dataset, for the manifest; by default that of the first input."""
    licence: str = ""
    """Licence of the data, for the manifest."""
    samples_per_shard: int = 65_536
    """A shard is closed at so many samples,"""
    max_shard_mib: int = 256
    """or at so many MiB, whichever comes first."""

    def _config(self, **more: Any) -> ImportConfig:
        from data_shards.importers import ImportConfig

        return ImportConfig(
            split=self.split,
            source=self.source,
            licence=self.licence,
            samples_per_shard=self.samples_per_shard,
            max_shard_bytes=self.max_shard_mib << 20,
            **more,
        )

    def _import(self, write: Callable[..., Manifest], config: ImportConfig) -> dict[str, object]:
        from data_shards.check import summary

        with progress_bar("importing") as progress:
            manifest = write(self.input, self.out, config, progress)
        return summary(self.out, manifest)


@dataclass(frozen=True, kw_only=True)
class ShardsPairs(_Import):
    """Write training shards: queries with their positive passages, and given negatives where there are some."""

    query_column: str | None = None
    """Column of the query; by default `query`, `anchor` or `question`."""
    positive_column: str | None = None
    """Column of the positive passages; by default `positive`, `pos`, `passage` and the like."""
    negative_column: str | None = None
    """Column of given negatives; by default `negative`, `neg` and the like, where there is one."""
    weight: float = 1.0
    """The dataset's share where several are mixed."""

    def run(self) -> dict[str, object]:
        """Import, and return what was written."""
        from data_shards.importers import import_pairs

        config = self._config(
            query_column=self.query_column,
            positive_column=self.positive_column,
            negative_column=self.negative_column,
            weight=self.weight,
        )
        return self._import(import_pairs, config)


@dataclass(frozen=True, kw_only=True)
class ShardsCorpus(_Import):
    """Write corpus shards: passages to embed, each id once."""

    def run(self) -> dict[str, object]:
        """Import, and return what was written."""
        from data_shards.importers import import_corpus

        return self._import(import_corpus, self._config())


@dataclass(frozen=True, kw_only=True)
class ShardsCheck:
    """Verify a dataset: checksums, archives, sidecars, every sample, unique passage ids."""

    dir: tyro.conf.Positional[Path]
    """The dataset."""

    def run(self) -> dict[str, object]:
        """Check, and return what was found whole."""
        from data_shards.check import check_dataset

        with progress_bar("checking") as progress:
            return check_dataset(self.dir, progress)


@dataclass(frozen=True, kw_only=True)
class ShardsStats:
    """Describe a dataset: sizes, lengths in words and characters, positives per query, repetitions."""

    dir: tyro.conf.Positional[Path]
    """The dataset."""

    def run(self) -> dict[str, object]:
        """Read everything once, and return the counts."""
        from data_shards.check import stats

        with progress_bar("reading") as progress:
            return stats(self.dir, progress)


@dataclass(frozen=True, kw_only=True)
class ShardsSample:
    """Show a few samples, drawn at random."""

    dir: tyro.conf.Positional[Path]
    """The dataset."""
    n: int = 3
    """How many."""
    seed: int = 0
    """The same seed draws the same samples."""

    def run(self) -> dict[str, object]:
        """Draw, and return the samples."""
        from data_shards.check import sample

        return {"samples": sample(self.dir, self.n, self.seed)}
