"""Invariant 2: on any number of ranks and chunks, loss and gradients equal one process on the whole batch.

Each known way to get this wrong fails here: gradients W times too large or small, remote passages detached, the
temperature lost on the cached path, dropout not replayed, labels off when negatives are interleaved, and a rank with
fewer chunks than the others. The tolerance is what summation order leaves in float64; a wrong scale is 10^9 away.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from train.collectives import rank, sum_over_ranks, world_size
from train.engine import EngineConfig, start_engine
from train.grad_cache import cached_step, plain_step
from train.loss import LossConfig
from train.schedule import OptimizerConfig

_LOSS = LossConfig(temperature=toy.TEMPERATURE)


def _ddp_step(snapshot: Path, cached: bool) -> tuple[float, dict[str, Tensor], int]:
    """Run in a rank: return the global loss, this rank's gradients, and its number of chunks."""
    model = toy.encoder(snapshot)
    engine = start_engine(model, EngineConfig(precision="float32"), OptimizerConfig())
    batch = toy.part(model, rank(), world_size())
    advance = cached_step if cached else plain_step
    output = advance(engine, batch, _LOSS, seed=5)
    loss = float(sum_over_ranks(output.loss)) / world_size()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients, len(batch.queries) + len(batch.passages)


def _zero_step(snapshot: Path, kind: str) -> tuple[float, dict[str, Tensor]]:
    from deepspeed.utils import safe_get_full_grad

    model = toy.encoder(snapshot, wide=False)
    engine = start_engine(model, EngineConfig(kind=kind, precision="float32"), OptimizerConfig(max_grad_norm=0.0))
    output = cached_step(engine, toy.part(model, rank(), world_size()), _LOSS, seed=5)
    loss = float(sum_over_ranks(output.loss)) / world_size()
    return loss, {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters()}


def _assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # Relative to the largest gradient: some are zero by construction (keys' biases cancel in the softmax).
        scale = max(float(g.abs().max()) for g in wanted.values())
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.distributed
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "plain"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_are_exact_under_ddp(ranks: int, cached: bool, tmp_path: Path) -> None:
    snapshot = toy.save_encoder(tmp_path / "snapshot")
    loss, gradients = toy.reference(toy.encoder(snapshot))
    results = run_ranks(_ddp_step, ranks, tmp_path, snapshot, cached)
    if ranks > 1:
        assert len({chunks for _, _, chunks in results}) > 1, "the ranks should differ in their number of chunks"
    for found_loss, found, chunks in results:
        assert chunks > 2, "one chunk a side would leave the cache unused"
        assert found_loss == pytest.approx(loss, abs=1e-10)
        _assert_equal(found, gradients, 1e-10)


@pytest.mark.distributed
def test_dropout_is_replayed_in_the_second_pass(tmp_path: Path) -> None:
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    plain.mkdir()
    cached.mkdir()
    snapshot = toy.save_encoder(tmp_path / "snapshot", dropout=0.3)
    wanted = run_ranks(_ddp_step, 2, plain, snapshot, False)
    found = run_ranks(_ddp_step, 2, cached, snapshot, True)
    assert found[0][0] == pytest.approx(wanted[0][0], abs=1e-10)
    _assert_equal(found[0][1], wanted[0][1], 1e-10)
    without, _ = toy.reference(toy.encoder(snapshot).eval())
    assert abs(found[0][0] - without) > 1e-3, "dropout should have changed the loss"


@pytest.mark.distributed
@pytest.mark.deepspeed
@pytest.mark.parametrize("kind", ["zero1", "zero2"])
def test_gradients_are_exact_under_deepspeed(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    snapshot = toy.save_encoder(tmp_path / "snapshot")
    loss, gradients = toy.reference(toy.encoder(snapshot))
    for found_loss, found in run_ranks(_zero_step, 2, tmp_path, snapshot, kind):
        assert found_loss == pytest.approx(loss, rel=1e-5)
        _assert_equal({name: g.double() for name, g in found.items()}, gradients, 1e-5)
