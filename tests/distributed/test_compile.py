"""Compiled backbones: the same gradients, and with the gradient cache the same dropout as in the plain step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch import Tensor

from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.trainings import forget_engine
from train.collectives import rank, world_size
from train.engine import EngineConfig, start_engine
from train.grad_cache import train_step
from train.objective import LossConfig, Objective
from train.schedule import OptimizerConfig

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,  # a minute or more of compiling
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]
KINDS = ["ddp", "fsdp2"]
Step = tuple[float, float, dict[str, Tensor]]


def _step(snapshot: Path, kind: str, *, compiled: bool, cached: bool) -> Step:
    """Return loss, gradient norm, and the weights after one step, by their names in a snapshot."""
    forget_engine()
    model = toy.encoder(snapshot, wide=False)
    config = EngineConfig(kind=kind, precision="float32", compile=compiled)  # type: ignore[arg-type]
    engine = start_engine(model, config, OptimizerConfig(warmup_share=0.0))
    objective = Objective(LossConfig(temperature=toy.TEMPERATURE), device=engine.device)
    batch = toy.part(model, rank(), world_size())
    (output,) = train_step(engine, [batch], objective, seed=5, keep_graphs=not cached)
    norm = engine.step(1e-3)
    return float(output.loss), norm, {name: value.clone() for name, value in engine.weights().items()}


def _steps(plain: Path, dropout: Path, kind: str) -> dict[str, Step]:
    found = {"eager": _step(plain, kind, compiled=False, cached=False)}
    found["compiled"] = _step(plain, kind, compiled=True, cached=False)
    found["whole"] = _step(dropout, kind, compiled=True, cached=False)
    found["cached"] = _step(dropout, kind, compiled=True, cached=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_backbone_is_the_same_backbone(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.distributed.ranks.TIMEOUT_S", 600)
    plain, dropout = toy.save_encoder(tmp_path / "a"), toy.save_encoder(tmp_path / "b", dropout=0.3)
    found: dict[str, Step] = run_ranks(_steps, 1, tmp_path, plain, dropout, kind)[0]
    for one, other, tolerance in (("compiled", "eager", 1e-5), ("cached", "whole", 1e-6)):
        (loss, norm, weights), (wanted_loss, wanted_norm, wanted) = found[one], found[other]
        assert loss == pytest.approx(wanted_loss, rel=tolerance)
        assert norm == pytest.approx(wanted_norm, rel=tolerance)
        assert weights.keys() == wanted.keys(), "compiling renames nothing in a snapshot"
    assert found["whole"][0] != found["compiled"][0], "dropout should be drawn"
