"""The one config of a run: a TOML file, `--section.field=value` on top, checked key by key.

Each section is the dataclass of the room that it configures; only this file puts them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from data_shards.errors import UserError
from data_shards.order import OrderConfig
from data_shards.reader import PairSource
from data_shards.storage import CacheConfig
from encoder.lora import LoraConfig
from encoder.model import EncoderSettings, ScratchConfig
from encoder.pooling import Pooling
from index_build.index_config import IndexConfig
from index_build.mine import MiningConfig
from launch.clusters.sections import EmbedSection, EvaluateSection, LaunchSection, RaySection, SlurmSection
from launch.sections import load_sections, to_toml
from train.adapt_batches import AdaptConfig
from train.batches import BatchConfig
from train.cadence import RefreshConfig
from train.dev import DevConfig
from train.engine import EngineConfig
from train.health import HealthConfig
from train.job import TrainConfig
from train.objective import LossConfig
from train.schedule import OptimizerConfig
from train.stops import StopConfig
from train.tracker import TrackerConfig
from train.watchdog import WatchdogConfig

__all__ = [
    "DataSection",
    "EncoderSection",
    "JobConfig",
    "RunConfig",
    "RunSection",
    "WorkersSection",
    "load_config",
    "load_job_config",
    "to_toml",
]


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """The run itself."""

    out: str = "runs/run"
    """The run folder."""
    seed: int = 0
    """Of the initial weights, the global order and dropout."""
    ranks: int = 1
    """Training processes, over all nodes."""
    nodes: int = 1
    """Machines that they are spread over evenly. Above 1, `dipole train` has to run inside of a Slurm allocation of
    so many, as `dipole launch slurm` makes one."""

    def __post_init__(self) -> None:
        """Check that the ranks can be spread."""
        for name in ("ranks", "nodes"):
            if getattr(self, name) < 1:
                raise UserError(f"run.{name} must be at least 1, came {getattr(self, name)}")
        if self.ranks % self.nodes:
            below = self.ranks - self.ranks % self.nodes
            raise UserError(
                f"run.ranks = {self.ranks} does not divide over run.nodes = {self.nodes}; set run.ranks to "
                f"{' or '.join(str(n) for n in (below, below + self.nodes) if n)}"
            )

    @property
    def ranks_per_node(self) -> int:
        """Training processes on each machine."""
        return self.ranks // self.nodes


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What is trained on and mined from."""

    pairs: tuple[str, ...] = ()
    """Training shards, made by `dipole shards pairs`: a folder or URL, or a list of them that are mixed."""
    weights: tuple[float, ...] = ()
    """With several: the share of each; by default as their manifests say."""
    on_error: Literal["error", "quarantine"] = "error"
    """What a damaged pair does: end the run, or be skipped, counted and written to the run's quarantine folder."""
    corpus: str = ""
    """Folder of corpus shards, made by `dipole shards corpus`; needed for mining, for the `adapt` stage, and for a
    tokenizer from scratch."""


@dataclass(frozen=True, kw_only=True)
class EncoderSection:
    """Where the encoder comes from. What is left out stays as the model has it."""

    model: str = ""
    """A sentence-transformers or transformers folder, or a hub name; empty builds one by [scratch]."""
    pooling: Pooling | None = None
    """How token vectors become one."""
    max_tokens: int | None = None
    """Texts are cut to this."""
    query_prompt: str | None = None
    """Put before each query."""
    passage_prompt: str | None = None
    """Put before each passage."""
    source_prompts: tuple[str, ...] = ()
    """Prompts of single sources in place of the side's own: `SOURCE:query=PROMPT` or `SOURCE:passage=PROMPT`."""
    towers: Literal["one", "two"] | None = None
    """`two` gives passages weights of their own, which start as a copy of the queries'."""
    bidirectional: bool | None = None
    """Lets a decoder look at later tokens too."""
    projection_dim: int | None = None
    """Length of the vectors, by a linear layer behind pooling."""

    def settings(self, base: EncoderSettings) -> EncoderSettings:
        """Return the settings with what is given here in place of the model's own."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["model"]
        rows = given.pop("source_prompts")
        if wrong := next((row for row in rows if "=" not in row), None):
            raise UserError(
                f"encoder.source_prompts holds {wrong!r}; wanted SOURCE:query=PROMPT or SOURCE:passage=PROMPT"
            )
        prompts = dict(row.partition("=")[::2] for row in rows)
        return dataclasses.replace(base, **given, source_prompts={**base.source_prompts, **prompts})


@dataclass(frozen=True, kw_only=True)
class WorkersSection:
    """Ray workers that embed the corpus for a refresh."""

    count: int = 1
    """Workers."""
    threads: int = 1
    """CPU threads of each."""
    address: str = ""
    """An existing Ray cluster; empty starts one on this machine for the run."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(self.count, self.threads) < 1:
            raise UserError("workers.count and workers.threads must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made from."""

    run: RunSection = field(default_factory=RunSection)
    data: DataSection = field(default_factory=DataSection)
    order: OrderConfig = field(default_factory=OrderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    encoder: EncoderSection = field(default_factory=EncoderSection)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    dev: DevConfig = field(default_factory=DevConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    workers: WorkersSection = field(default_factory=WorkersSection)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    @property
    def pair_source(self) -> PairSource:
        """The training pairs, for whoever opens them."""
        return PairSource(
            locations=self.data.pairs,
            weights=self.data.weights,
            cache=self.cache,
            on_error=self.data.on_error,
        )


@dataclass(frozen=True, kw_only=True)
class JobConfig(RunConfig):
    """A run, what is done with its encoder afterwards, and where all that runs."""

    launch: LaunchSection = field(default_factory=LaunchSection)
    slurm: SlurmSection = field(default_factory=SlurmSection)
    ray: RaySection = field(default_factory=RaySection)
    embed: EmbedSection = field(default_factory=EmbedSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)

    @property
    def of_run(self) -> RunConfig:
        """The run alone."""
        return RunConfig(**{item.name: getattr(self, item.name) for item in dataclasses.fields(RunConfig)})


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's config; what the file says of launching is checked and left out.

    Raises:
        UserError: the file is missing or no TOML, a key does not exist (the nearest one is suggested), or a value
            does not fit.
    """
    return load_job_config(path, overrides).of_run


def load_job_config(path: Path | None, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a TOML file and put `--section.field=value` on top of it.

    Raises:
        UserError: as `load_config`.
    """
    return load_sections(JobConfig, path, overrides)
