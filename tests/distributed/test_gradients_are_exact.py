"""Invariant 2: on any number of ranks, chunks and engines, loss and gradients equal one process on the whole batch.

Each known way to get this wrong fails here: gradients W times too large or small, remote passages detached, the
temperature lost on the cached path, dropout not replayed, labels off when negatives are interleaved, and a rank with
fewer chunks than the others. The tolerance is what summation order leaves in float64, and in float32 under DeepSpeed,
which knows no float64; a wrong scale is 10^9 and 10^4 away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from data_shards.collate import Chunk
from encoder.model import Encoder, Side
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.trainings import forget_engine
from train.collectives import rank, sum_over_ranks, world_size
from train.engine import EngineConfig, start_engine
from train.grad_cache import train_step
from train.objective import LossConfig, Objective
from train.schedule import OptimizerConfig

pytestmark = pytest.mark.distributed
StepOn = Callable[[int], "list[dict[str, Outcome]]"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step of one engine."""

    kind: str = "ddp"
    cached: bool = True
    encoder: str = "plain"
    lora: int = 0
    wide: bool | None = None
    """float64; by default wherever the engine knows it."""
    parts: int = 1
    loss: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def is_wide(self) -> bool:
        return not self.kind.startswith("zero") if self.wide is None else self.wide

    @property
    def config(self) -> LossConfig:
        return LossConfig(temperature=toy.TEMPERATURE, **self.loss)

    def model(self, root: Path, *, wide: bool) -> Encoder:
        return toy.encoder(root / self.encoder, wide=wide, lora=self.lora)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rank saw of it."""

    loss: float
    gradients: dict[str, Tensor]
    chunks: int


ENCODERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "projection": {"projection": 6},
    "towers": {"towers": "two", "projection": 6},
}
FULL_LOSS = {"symmetric": True, "matryoshka_dims": (4, 9), "learn_temperature": True}
# Engine by engine, each risk at least once, with what it is most at odds with.
DDP = {
    "cached": Case(),
    "plain": Case(cached=False),
    "accumulation, all of the loss": Case(parts=2, loss=FULL_LOSS),
    "accumulation, all of the loss, plain": Case(parts=2, loss=FULL_LOSS, cached=False),
}
DDP_PAIR = {
    "projection": Case(encoder="projection"),
    "two towers": Case(encoder="towers"),
    "two towers, plain": Case(encoder="towers", cached=False),
    "two towers, accumulation": Case(encoder="towers", parts=2),
    "lora": Case(lora=2, encoder="projection"),
    "checkpointing": Case(engine={"gradient_checkpointing": True}),
    "checkpointing, plain": Case(engine={"gradient_checkpointing": True}, cached=False),
    "base": Case(loss={"base_weight": 0.3}, encoder="projection"),
}
FSDP = {
    "cached": Case(kind="fsdp2"),
    "plain": Case(kind="fsdp2", cached=False),
    "accumulation, all of the loss, checkpointing": Case(
        kind="fsdp2", parts=2, loss=FULL_LOSS, engine={"gradient_checkpointing": True}
    ),
}
FSDP_PAIR = {
    "two towers": Case(kind="fsdp2", encoder="towers"),
    "two towers, plain": Case(kind="fsdp2", encoder="towers", cached=False),
    "lora": Case(kind="fsdp2", lora=2, encoder="projection"),
    "base": Case(kind="fsdp2", loss={"base_weight": 0.3}),
}
TORCH, TORCH_PAIR = (
    {f"{kind}, {name}": case for kind, cases in made for name, case in cases.items()}
    for made in ((("ddp", DDP), ("fsdp2", FSDP)), (("ddp", DDP_PAIR), ("fsdp2", FSDP_PAIR)))
)
ZERO = {
    f"{kind}, {name}": case
    for kind in ("zero1", "zero2", "zero3")
    for name, case in {
        "cached": Case(kind=kind),
        "plain": Case(kind=kind, cached=False),
        "accumulation, all of the loss": Case(kind=kind, parts=2, loss=FULL_LOSS),
        "two towers": Case(kind=kind, encoder="towers"),
        "two towers, plain": Case(kind=kind, encoder="towers", cached=False),
        "lora, checkpointing": Case(kind=kind, lora=2, encoder="projection", engine={"gradient_checkpointing": True}),
        "base": Case(kind=kind, loss={"base_weight": 0.3}),
        "offload": Case(kind=kind, engine={"offload": True}),
    }.items()
    if not (kind == "zero1" and name == "offload")
}
ZERO_FOUR = {name: ZERO[name] for name in ("zero2, cached", "zero3, cached")}
CASES = {1: TORCH, 2: TORCH | TORCH_PAIR | ZERO, 4: TORCH | ZERO_FOUR}
"""By the number of ranks."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name, options in ENCODERS.items():
        toy.save_encoder(folder / name, **options)
    return folder


def _outcomes(root: Path, cases: dict[str, Case]) -> dict[str, Outcome]:
    """Run in a rank: take every case's step, one after the other."""
    return {name: _outcome(root, case) for name, case in cases.items()}


def _outcome(root: Path, case: Case) -> Outcome:
    forget_engine()
    model = case.model(root, wide=case.is_wide)
    config = EngineConfig(kind=case.kind, precision="float32", **case.engine)  # type: ignore[arg-type]
    engine = start_engine(model, config, OptimizerConfig(max_grad_norm=0.0))
    objective = Objective(case.config, device=engine.device)
    batches = [toy.part(model, rank(), world_size(), turn=turn, of=case.parts) for turn in range(case.parts)]
    outputs = train_step(
        engine,
        batches,
        objective,
        seed=5,
        keep_graphs=not case.cached,
        two_towers=case.encoder == "towers",
        base=functools.partial(_encode, _base(root, case, wide=case.is_wide)) if case.config.base_weight else None,
    )
    gradients = dict(_gradients(model, case))
    if case.config.learn_temperature:
        objective.step(1e-3)
        gradients["log_scale"] = torch.tensor(objective.state()["exp_avg"] / 0.1, dtype=torch.float64)  # Adam's first
    loss = sum(float(sum_over_ranks(output.loss)) for output in outputs) / world_size() / len(outputs)
    chunks = sum(len(batch.queries.chunks) + len(batch.passages.chunks) for batch in batches)
    return Outcome(loss=loss, gradients=gradients, chunks=chunks)


def _base(root: Path, case: Case, *, wide: bool) -> Encoder:
    """Return a base model that is not the model itself, which would be at no distance."""
    base = toy.encoder(root / case.encoder, wide=wide)
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for value in base.parameters():
            value += 0.05 * torch.randn(value.shape, generator=draw)
    return base.eval().requires_grad_(False)


def _encode(base: Encoder, chunk: Chunk, side: Side) -> Tensor:
    vector_BD: Tensor = base(chunk.input_ids, chunk.attention_mask, side)
    return vector_BD


def _gradients(model: Encoder, case: Case) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        if case.kind.startswith("zero"):
            from deepspeed.utils import safe_get_full_grad

            yield name, safe_get_full_grad(value).clone().cpu()
        else:
            assert value.grad is not None, name
            yield name, value.grad.full_tensor() if isinstance(value.grad, DTensor) else value.grad.clone()


@pytest.fixture(scope="module")
def step_on(root: Path, tmp_path_factory: pytest.TempPathFactory) -> StepOn:
    """Take all steps of so many ranks at once, the first time one is asked for: starting processes takes time."""

    @functools.cache
    def step_on(ranks: int) -> list[dict[str, Outcome]]:
        cases = CASES[ranks]
        if find_spec("deepspeed") is None:
            cases = {name: case for name, case in cases.items() if not case.kind.startswith("zero")}
        return run_ranks(_outcomes, ranks, tmp_path_factory.mktemp(f"ranks-{ranks}"), root, cases)

    return step_on


def _assert_exact(root: Path, kind: str, ranks: int, results: list[dict[str, Outcome]]) -> None:
    cases = {name: case for name, case in CASES[ranks].items() if case.kind == kind}
    assert cases
    for name, case in cases.items():
        base = _base(root, case, wide=True) if case.config.base_weight else None
        loss, gradients = toy.reference(case.model(root, wide=True), case.config, base=base, of=case.parts)
        if not case.config.learn_temperature:
            del gradients["log_scale"]
        outcomes = [result[name] for result in results]
        assert all(outcome.chunks > 2 for outcome in outcomes), "one chunk a side would leave the cache unused"
        if ranks > 1:
            assert len({outcome.chunks for outcome in outcomes}) > 1, "the ranks should differ in their chunks"
        tolerance = 1e-10 if case.is_wide else 1e-5
        for outcome in outcomes:
            assert outcome.loss == pytest.approx(loss, rel=tolerance), (ranks, name)
            assert_equal(outcome.gradients, gradients, tolerance, f"{ranks} ranks, {name}")


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str) -> None:
    """Compare relative to the largest gradient: some are zero by construction, as keys' biases."""
    assert found.keys() == wanted.keys(), what
    scale = max(float(gradient.abs().max()) for name, gradient in wanted.items() if name != "log_scale")
    for name, gradient in wanted.items():
        assert float((found[name].double() - gradient).abs().max()) <= tolerance * scale, (what, name)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_are_exact(kind: str, ranks: int, root: Path, step_on: StepOn) -> None:
    _assert_exact(root, kind, ranks, step_on(ranks))


@pytest.mark.deepspeed
@pytest.mark.parametrize(("kind", "ranks"), [("zero1", 2), ("zero2", 2), ("zero2", 4), ("zero3", 2), ("zero3", 4)])
def test_gradients_are_exact_under_deepspeed(kind: str, ranks: int, root: Path, step_on: StepOn) -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    _assert_exact(root, kind, ranks, step_on(ranks))
