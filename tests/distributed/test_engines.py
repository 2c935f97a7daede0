"""What engines promise beside exact gradients: one reduction a step, loss scale, averaged weights, evaluation."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor

from data_shards.errors import UserError
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.trainings import Training, assert_same, copied, forget_engine, load, save, start
from train import memory
from train.collectives import rank, world_size
from train.engine import EngineConfig, float16_computes, start_process_group
from train.grad_cache import train_step

pytestmark = pytest.mark.distributed
HALVES = float16_computes(torch.device("cpu"))
TORCH, ZERO = ["ddp", "fsdp2"], ["zero1", "zero2", "zero3"]
Results = list[dict[str, Any]]


def _of_torch(snapshots: dict[str, Path], checkpoints: Path) -> dict[str, Any]:
    """Run in a rank, one after the other: starting processes is what takes time."""
    return {
        "reductions": _reductions(snapshots["plain"]),
        "both ways": _both_ways([snapshots["plain"], snapshots["dropout"]]),
        "float16": _halves(snapshots["projection"], checkpoints, TORCH),
        "averages": _averages(snapshots["plain"], checkpoints),
        "looked at": _looked_at(snapshots["dropout"], TORCH),
    }


def _of_deepspeed(snapshots: dict[str, Path], checkpoints: Path) -> dict[str, Any]:
    return {
        "float16": _halves(snapshots["projection"], checkpoints, ZERO) if HALVES else None,
        "looked at": _looked_at(snapshots["dropout"], ZERO),
        "misled": _misled(),
    }


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("snapshots")
    options: dict[str, dict[str, Any]] = {"plain": {}, "dropout": {"dropout": 0.3}, "projection": {"projection": 6}}
    return {name: toy.save_encoder(root / name, **given) for name, given in options.items()}


@pytest.fixture(scope="module")
def torch_ranks(snapshots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("torch")
    return run_ranks(_of_torch, 2, folder, snapshots, folder / "checkpoints")


@pytest.fixture(scope="module")
def deepspeed_ranks(snapshots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    folder = tmp_path_factory.mktemp("deepspeed")
    return run_ranks(_of_deepspeed, 2, folder, snapshots, folder / "checkpoints")


# --- one pass over the wire --------------------------------------------------------------------------------------


def _reductions(snapshot: Path) -> tuple[int, int, list[int]]:
    """Return chunks, trained values, and how many of these a cached and a plain step reduced, bucket by bucket."""
    training = start(snapshot, "ddp")
    reduced: list[int] = []

    # A function with annotations would have to name torch's own types, and not as strings.
    hook = lambda group, bucket: (reduced.append(bucket.buffer().numel()), allreduce_hook(group, bucket))[1]  # noqa: E731
    training.engine._wrapped.module.register_comm_hook(None, hook)  # type: ignore[attr-defined]
    chunks = len(toy.part(training.model, rank(), world_size()).passages.chunks)
    totals = []
    for number, cached in enumerate((True, False, True)):
        training.step(number, cached=cached)
        totals.append(sum(reduced))
        reduced.clear()
    return chunks, sum(value.numel() for value in training.model.parameters()), totals


def test_gradients_go_over_the_wire_once_a_step(torch_ranks: Results) -> None:
    for results in torch_ranks:
        chunks, values, totals = results["reductions"]
        assert chunks > 2
        assert totals == [values] * 3


# --- the cache changes nothing -----------------------------------------------------------------------------------


def _both_ways(snapshots: list[Path]) -> list[tuple[bool, bool, int]]:
    """For float64 and float32: whether loss and gradients are the same bits with the cache and without."""
    same = []
    for snapshot in snapshots:
        for wide in (True, False):
            found = []
            for cached in (True, False):
                training = start(snapshot, "ddp", wide=wide)
                batch = toy.part(training.model, rank(), world_size())
                (output,) = train_step(training.engine, [batch], training.objective, seed=5, keep_graphs=not cached)
                found.append((output.loss, [value.grad for value in training.model.parameters()]))
            (loss, gradients), (plain_loss, plain) = found
            equal = [torch.equal(one, other) for one, other in zip(gradients, plain, strict=True)]
            same.append((torch.equal(loss, plain_loss), all(equal), len(equal)))
    return same


def test_the_cached_step_is_the_plain_one_bit_by_bit(torch_ranks: Results) -> None:
    """With dropout as well: the second pass draws what the first drew."""
    for results in torch_ranks:
        assert [result[:2] for result in results["both ways"]] == [(True, True)] * 4
        assert all(count > 20 for _, _, count in results["both ways"])


# --- float16 -----------------------------------------------------------------------------------------------------


def _halves(snapshot: Path, root: Path, kinds: list[str]) -> dict[str, tuple[Any, ...]]:
    """Take twelve steps, and once more the last nine, from a checkpoint in the midst of overflows."""
    seen = {}
    for kind in kinds:
        training = start(snapshot, kind, "float16")
        before, steps, after_three = copied(training.engine.weights()), [], {}
        for number in range(12):
            steps.append((*training.step(number), training.engine.extra()))
            if number == 2:
                save(training.engine, root / kind, 3)
                after_three = copied(training.engine.weights())
        again = start(snapshot, kind, "float16", moved=True)
        load(again.engine, root / kind, 3)
        resumed = [(*again.step(number), again.engine.extra()) for number in range(3, 12)]
        weights = copied(training.engine.weights()), copied(again.engine.weights())
        seen[kind] = steps, resumed, (before, after_three), weights
    return seen


def _a_scale_that_is_too_high_comes_down(ranks: Results, kinds: list[str], snapshot: Path) -> None:
    """With the steps that overflow nothing changes; then training goes on, after a resume as well."""
    initial = toy.encoder(snapshot, wide=False).state_dict()
    for place, seen in enumerate(ranks):
        results = seen["float16"]
        assert list(results) == kinds
        for kind, (steps, resumed, (before, after_three), (weights, again)) in results.items():
            scales = [next(iter(extra["loss_scale"].values())) for _, _, extra in steps]
            done = [extra["optimizer_steps"] for _, _, extra in steps]
            finite = [math.isfinite(norm) for _, norm, _ in steps]
            assert finite[0] is False, kind
            assert scales[-1] < scales[0] <= 2**16, kind
            assert done == [sum(finite[: k + 1]) for k in range(12)], kind
            assert done[-1] > 1, kind
            assert all(math.isfinite(loss) for loss, _, _ in steps), kind
            # Not the last one: at this rate the loss of so small a batch does not fall in every step.
            assert min(loss for loss, _, _ in steps) < steps[0][0], kind
            # NaN is no equal of itself.
            assert str(resumed) == str(steps[3:]), kind
            if place == 0:
                assert_same(before, initial, (kind, "not rounded to float16"))
                assert_same(again, weights, kind)
            if place == 0 and done[2] == 0:
                assert_same(after_three, before, kind)


def test_overflows_of_float16_are_skipped_under_ddp_and_fsdp2(
    torch_ranks: Results, snapshots: dict[str, Path]
) -> None:
    _a_scale_that_is_too_high_comes_down(torch_ranks, TORCH, snapshots["projection"])


@pytest.mark.deepspeed
@pytest.mark.skipif(not HALVES, reason="needs a processor that computes in float16")
def test_overflows_of_float16_are_skipped_under_deepspeed(
    deepspeed_ranks: Results, snapshots: dict[str, Path]
) -> None:
    _a_scale_that_is_too_high_comes_down(deepspeed_ranks, ZERO, snapshots["projection"])


# --- averaged weights --------------------------------------------------------------------------------------------


def _whole(training: Training) -> dict[str, Tensor]:
    """Return the parameters as the next forward pass would see them."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in training.model.named_parameters()
    }


def _averages(snapshot: Path, root: Path) -> list[str]:
    """Compare with a run that keeps no average, and with the average's definition; return the engines that held."""
    for kind in TORCH:
        bare, averaged = start(snapshot, kind), start(snapshot, kind, ema_decay=0.75)
        wanted = _whole(bare)
        for number in range(3):
            assert bare.step(number) == averaged.step(number), "training knows nothing of the average"
            trained = _whole(bare)
            wanted = {name: 0.75 * value + 0.25 * trained[name] for name, value in wanted.items()}
        with averaged.engine.evaluation():
            _assert_near(_whole(averaged), wanted, kind)
        assert_same(_whole(averaged), trained, kind)
        shown = copied(averaged.engine.weights())
        if rank() == 0:
            _assert_near(shown, wanted, kind)
        assert_same(_whole(averaged), trained, kind)
        save(averaged.engine, root / kind, 3)
        resumed = start(snapshot, kind, moved=True, ema_decay=0.75)
        load(resumed.engine, root / kind, 3)
        assert_same(copied(resumed.engine.weights()), shown, kind)
        assert resumed.step(3) == averaged.step(3)
        assert_same(copied(resumed.engine.weights()), copied(averaged.engine.weights()), kind)
        save(bare.engine, root / f"{kind}-bare", 3)
        late = start(snapshot, kind, moved=True, ema_decay=0.75)
        load(late.engine, root / f"{kind}-bare", 3)
        assert_same(copied(late.engine.weights()), copied(bare.engine.weights()), "begins with what is trained")
    return TORCH


def _assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), (what, name)


def test_averaged_weights_are_shown_and_trained_ones_go_on(torch_ranks: Results) -> None:
    assert [results["averages"] for results in torch_ranks] == [TORCH] * 2


# --- evaluation, and the measuring of memory ---------------------------------------------------------------------


def _looked_at(snapshot: Path, kinds: list[str]) -> list[str]:
    """Between steps evaluate and measure memory; the run is that of an engine that is left alone."""
    for kind in kinds:
        alone, watched = start(snapshot, kind), start(snapshot, kind)
        for number in range(2):
            _evaluate(watched, kind)
            _measure(watched, kind)
            assert alone.step(number) == watched.step(number), kind
        assert_same(copied(watched.engine.weights()), copied(alone.engine.weights()), kind)
    return kinds


def _evaluate(training: Training, kind: str) -> None:
    chunk = toy.part(training.model, rank(), world_size()).queries.chunks[0]
    with training.engine.evaluation():
        with training.engine.evaluation():
            twice = [training.engine.forward(chunk.input_ids, chunk.attention_mask, "query") for _ in range(2)]
        assert not any(module.training for module in training.model.modules()), (kind, "as it was: evaluating")
        assert torch.equal(*twice), (kind, "there is dropout")
        assert not twice[0].requires_grad, kind
    assert all(module.training for module in training.model.modules()), kind


def _measure(training: Training, kind: str) -> None:
    batches = [toy.part(training.model, rank(), world_size())]
    assert memory.graphs_fit(training.engine, batches, budget_gib=100), kind
    assert not memory.graphs_fit(training.engine, batches, budget_gib=1e-7), kind
    free, memory._free_bytes = memory._free_bytes, lambda device: 1.0 if rank() == 1 else 1e18
    try:
        assert not memory.graphs_fit(training.engine, batches, budget_gib=0), (kind, "the other rank lacks memory")
    finally:
        memory._free_bytes = free


def test_looking_changes_nothing_under_ddp_and_fsdp2(torch_ranks: Results) -> None:
    assert [results["looked at"] for results in torch_ranks] == [TORCH] * 2


@pytest.mark.deepspeed
def test_looking_changes_nothing_under_deepspeed(deepspeed_ranks: Results) -> None:
    assert [results["looked at"] for results in deepspeed_ranks] == [ZERO] * 2


# --- what Accelerate makes of it ---------------------------------------------------------------------------------


def _misled() -> list[str]:
    said = []
    for kind, name in (("zero2", "ACCELERATE_USE_CPU"), ("ddp", "ACCELERATE_USE_DEEPSPEED")):
        forget_engine()
        os.environ[name] = "true"
        try:
            accelerator = start_process_group(EngineConfig(kind=kind))  # type: ignore[arg-type]
            said.append(f"{accelerator.distributed_type.value} on {accelerator.num_processes}")
        except UserError as error:
            said.append(str(error))
        del os.environ[name]
    return said


@pytest.mark.deepspeed
def test_what_the_environment_asks_of_accelerate_is_refused_or_has_no_effect(deepspeed_ranks: Results) -> None:
    for results in deepspeed_ranks:
        on_cpu, with_deepspeed = results["misled"]
        assert on_cpu.startswith("engine zero2 on 2 ranks was asked, Accelerate set up MULTI_CPU on 2; start with ")
        assert with_deepspeed == "MULTI_CPU on 2"
