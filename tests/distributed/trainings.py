"""Engines at work on the toy batch, with checkpoints as the loop writes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoder.model import Encoder
from tests.distributed import toy
from train.checkpoint import TrainState, folder_of
from train.checkpoint_saver import CheckpointSaver
from train.collectives import rank, sum_over_ranks, world_size
from train.engine import Engine, EngineConfig, start_engine
from train.grad_cache import train_step
from train.objective import LossConfig, Objective
from train.schedule import OptimizerConfig
from train.state_files import StateReader

RATE = 3e-3


def forget_engine() -> None:
    """Let the next engine of this process start as if it were the first."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@dataclass(kw_only=True)
class Training:
    """An engine with what a step needs."""

    model: Encoder
    engine: Engine
    objective: Objective

    def step(self, number: int, *, cached: bool = True) -> tuple[float, float]:
        """Take one step; return the global loss and the norm of its gradient."""
        batch = dataclasses.replace(toy.part(self.model, rank(), world_size()), step=number)
        (output,) = train_step(self.engine, [batch], self.objective, seed=5, keep_graphs=not cached)
        norm = self.engine.step(RATE)
        return float(sum_over_ranks(output.loss)) / world_size(), norm


def start(
    snapshot: Path,
    kind: str,
    precision: str = "float32",
    *,
    moved: bool = False,
    wide: bool = False,
    lora: int = 0,
    **options: Any,
) -> Training:
    """Start an engine as if it were the first of its process.

    Args:
        snapshot: the encoder.
        kind: the engine.
        precision: of matrix products.
        moved: begin with other weights, so that what is not loaded shows.
        wide: float64, for engines that know it.
        lora: rank of adapters.
        options: of the optimiser.
    """
    forget_engine()
    model = toy.encoder(snapshot, wide=wide, lora=lora)
    if moved:
        with torch.no_grad():
            for value in model.parameters():
                value += 1.0
    config = EngineConfig(kind=kind, precision=precision)  # type: ignore[arg-type]
    engine = start_engine(model, config, OptimizerConfig(**options))
    objective = Objective(LossConfig(temperature=toy.TEMPERATURE), device=engine.device)
    return Training(model=model, engine=engine, objective=objective)


def save(engine: Engine, root: Path, step: int) -> None:
    """Write a checkpoint as the loop does, and wait for it."""
    fixed: dict[str, Any] = {"engine": "any", "dataset_id": "a", "batch_size": 8, "seed": 0, "order": "b"}
    state = TrainState(step=step, world_size=world_size(), negatives_version=0, **fixed)
    saver = CheckpointSaver(root, keep=9, device=engine.device)
    saver.save(engine.pieces(), engine.shapes(), state, {"engine": engine.extra()})
    saver.wait()


def load(engine: Engine, root: Path, step: int) -> None:
    reader = StateReader(folder_of(root, step))
    reader.check_shapes(engine.shapes())
    engine.load(reader, reader.extra["engine"])


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], what: object) -> None:
    assert found.keys() == wanted.keys(), what
    for name, value in wanted.items():
        assert torch.equal(found[name], value), (what, name)
