"""What one rank is told: the sections of the config that concern training, and where data and run folder are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_shards.errors import UserError
from data_shards.order import GlobalOrder, OrderConfig
from data_shards.reader import PairSource
from encoder.lora import LoraConfig
from train.adapt_batches import AdaptConfig
from train.batches import BatchConfig
from train.cadence import RefreshConfig
from train.dev import DevConfig
from train.engine import EngineConfig
from train.health import HealthConfig
from train.objective import LossConfig
from train.run_folder import RunFolder
from train.schedule import OptimizerConfig
from train.stops import StopConfig
from train.tracker import TrackerConfig
from train.watchdog import WatchdogConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, and what is kept of it."""

    epochs: float = 1.0
    """Passes over the training pairs."""
    steps: int = 0
    """Optimiser steps; where it is above 0 it takes the place of `epochs`."""
    gradient_cache: Literal["auto", "on", "off"] = "auto"
    """`on` encodes twice and holds one chunk's graph, `off` encodes once and holds them all; `auto` measures what
    fits, once while engine and ranks stay. The result is the same."""
    activations_gib: float = 0.0
    """Memory that `auto` may fill with activations on each rank; 0 takes what the device has free."""
    checkpoint_every_steps: int = 50
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Older ones are deleted, but never the one with the best dev metric."""
    asynchronous_checkpoints: bool = True
    """Write checkpoints while training goes on, from a copy of weights and optimiser state in the host's memory."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.steps < 0 or (self.steps == 0 and self.epochs <= 0):
            raise UserError("train.epochs must be positive, or train.steps at least 1")
        if min(self.checkpoint_every_steps, self.keep_checkpoints) < 1:
            raise UserError("train.checkpoint_every_steps and keep_checkpoints must be at least 1")
        if self.activations_gib < 0:
            raise UserError(f"train.activations_gib must be 0 or more, came {self.activations_gib}")

    def total_steps(self, order: GlobalOrder) -> int:
        """Return the length of the run in steps."""
        return self.steps or max(1, round(self.epochs * order.steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that one rank needs to know."""

    run: RunFolder
    data: PairSource
    """Training shards."""
    corpus: str
    """Folder or URL of corpus shards; empty where there are none."""
    ray_address: str
    """Of the cluster that mines; empty where this machine's devices do."""
    start: Path
    """The snapshot that contrastive training starts from: the run's first, or the adapted one."""
    order: OrderConfig
    seed: int
    run_id: str
    train: TrainConfig
    batch: BatchConfig
    adapt: AdaptConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    engine: EngineConfig
    lora: LoraConfig
    refresh: RefreshConfig
    dev: DevConfig
    health: HealthConfig
    stop: StopConfig
    watchdog: WatchdogConfig
    tracker: TrackerConfig
    resolved: dict[str, Any]
    """The whole config, for W&B."""
