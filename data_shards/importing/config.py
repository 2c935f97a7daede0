"""What an import is told: which files, which columns, what is cleaned, how the shards are cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.importing.columns import Columns
from data_shards.writer import MAX_SHARD_BYTES, SAMPLES_PER_SHARD

OnError = Literal["error", "quarantine"]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What is read."""

    paths: tuple[str, ...] = ()
    """Files, folders and `hf:OWNER/NAME[:CONFIG]`, in this order; where `--input` is given, that counts."""
    split: str = "train"
    """Which judgements of a BEIR folder, or which part of a dataset that has several."""
    on_error: OnError = "error"
    """A malformed row stops the import, or goes to `quarantine.jsonl` in the dataset's folder and is counted."""
    part_mib: int = 64
    """Large files are cut into parts of this size: the unit of parallel work, and of what a kill may cost."""

    def __post_init__(self) -> None:
        """Check the size."""
        if self.part_mib < 1:
            raise UserError(f"input.part_mib must be at least 1, came {self.part_mib}")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How shards are cut, and what their manifest says of where they come from."""

    source: str = ""
    """Name of the dataset; by default that of the inputs."""
    source_version: str = ""
    """Version, date or commit of the source; of a dataset from the hub its commit, by default."""
    licence: str = ""
    """Licence of the data."""
    weight: float = 1.0
    """The dataset's share where several are mixed."""
    samples_per_shard: int = SAMPLES_PER_SHARD
    """A shard is closed at so many samples,"""
    max_shard_mib: int = MAX_SHARD_BYTES >> 20
    """or at so many MiB, whichever comes first."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.samples_per_shard < 1 or self.max_shard_mib < 1:
            sizes = f"samples_per_shard {self.samples_per_shard}, max_shard_mib {self.max_shard_mib}"
            raise UserError(f"{sizes}: both must be at least 1")
        if self.weight <= 0:
            raise UserError(f"output.weight {self.weight} must be above 0")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """All of it."""

    input: InputConfig = field(default_factory=InputConfig)
    columns: Columns = field(default_factory=Columns)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
