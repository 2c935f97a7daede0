"""Invariant 3, *resume is exact*, under every engine; and a checkpoint is no engine's own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.trainings import assert_same, copied, load, save, start
from train.checkpoint import folder_of
from train.state_files import StateReader

pytestmark = pytest.mark.distributed
HAS_DEEPSPEED = find_spec("deepspeed") is not None
KINDS = ["ddp", "fsdp2", *(["zero1", "zero2", "zero3"] if HAS_DEEPSPEED else [])]
ENGINES = ["ddp", "fsdp2", *(pytest.param(f"zero{stage}", marks=pytest.mark.deepspeed) for stage in (1, 2, 3))]
PRECISIONS = ["float32", "bfloat16"]
LEGS = [("ddp", 2), ("fsdp2", 4), ("zero3" if HAS_DEEPSPEED else "ddp", 2), ("ddp", 1)]
"""A run that goes on under another engine on another number of ranks, three times."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the lives of a run find each other."""

    steep: Path
    """An encoder with dropout, so that the seeds count, and a projection, which stands between two precisions."""
    plain: Path
    """An encoder without dropout, which is drawn anew on another number of ranks."""
    checkpoints: Path

    def of(self, name: object) -> Path:
        return self.checkpoints / str(name)


def _first_life(place: Place) -> dict[Any, Any]:
    """Run in a rank: three steps of each engine, with a checkpoint after the second; and the first leg."""
    seen: dict[Any, Any] = {}
    for kind, precision in product(KINDS, PRECISIONS):
        training = start(place.steep, kind, precision)
        losses = [training.step(number)[0] for number in range(2)]
        save(training.engine, place.of(f"{kind}-{precision}"), 2)
        losses.append(training.step(2)[0])
        seen[kind, precision] = losses, copied(training.engine.weights())
        seen["adapted", kind, precision] = _adapted(place, kind, precision)
    training = start(place.plain, LEGS[0][0])
    for number in range(2):
        training.step(number)
    save(training.engine, place.of(0), 2)
    seen["leg"] = [training.step(number)[0] for number in (2, 3)]
    return seen


def _adapted(place: Place, kind: str, precision: str) -> tuple[dict[str, Tensor], ...]:
    """Return the weights of an encoder with adapters: the model's own, an engine's at once, and after a step."""
    training = start(place.steep, kind, precision, lora=2)
    at_once = copied(training.engine.weights())
    training.step(0)
    return toy.encoder(place.steep, wide=False, lora=2).state_dict(), at_once, copied(training.engine.weights())


def _second_life(place: Place) -> dict[Any, Any]:
    """Run in a rank: load each checkpoint and take the third step; and the third leg."""
    seen: dict[Any, Any] = {}
    for kind, precision in product(KINDS, PRECISIONS):
        training = start(place.steep, kind, precision, moved=True)
        load(training.engine, place.of(f"{kind}-{precision}"), 2)
        loaded = copied(training.engine.weights())
        loss, _ = training.step(2)
        seen[kind, precision] = loss, copied(training.engine.weights()), loaded
    seen["leg"] = _leg(place, 2)
    return seen


def _leg(place: Place, leg: int) -> list[float]:
    """Load what the leg before wrote, write it anew at once, and go on for two steps."""
    training = start(place.plain, LEGS[leg][0], moved=True)
    load(training.engine, place.of(leg - 1), 2)
    save(training.engine, place.of(leg), 2)
    return [training.step(number)[0] for number in (2, 3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("engines")
    return Place(
        steep=toy.save_encoder(root / "steep", dropout=0.2, projection=6),
        plain=toy.save_encoder(root / "plain"),
        checkpoints=root / "checkpoints",
    )


@pytest.fixture(scope="module")
def lives(place: Place, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """All that the ranks of all processes saw, in the order of the legs: starting processes is what takes time."""
    seen = []
    for leg, (_, ranks) in enumerate(LEGS):
        folder = tmp_path_factory.mktemp(f"life-{leg}")
        life = {0: _first_life, 2: _second_life}.get(leg)
        seen.append(run_ranks(life, ranks, folder, place) if life else run_ranks(_leg, ranks, folder, place, leg))
    return seen


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ENGINES)
def test_resume_is_exact(kind: str, precision: str, place: Place, lives: list[list[Any]]) -> None:
    """Bit by bit: two steps, a checkpoint, other processes, one more step; against three steps."""
    if kind not in KINDS:
        pytest.skip("needs the deepspeed extra")
    losses, weights = lives[0][0][kind, precision]
    loss, found, loaded = lives[2][0][kind, precision]
    assert len(set(losses)) == 3, "nothing is learnt"
    assert loss == losses[2]
    reader = StateReader(folder_of(place.of(f"{kind}-{precision}"), 2))
    assert_same(loaded, {name: reader.full("weight", name) for name in reader.names}, "right after the load")
    assert_same(found, weights, "after a step")
    assert weights.keys() == toy.encoder(place.steep).state_dict().keys()
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert lives[0][1][kind, precision][1] == {}, "one rank alone has the weights"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ENGINES)
def test_weights_are_whole_where_most_of_them_are_frozen(kind: str, precision: str, lives: list[list[Any]]) -> None:
    """A snapshot needs the frozen ones too: not rounded by lower precision, and not left in shards."""
    if kind not in KINDS:
        pytest.skip("needs the deepspeed extra")
    initial, at_once, trained = lives[0][0]["adapted", kind, precision]
    assert_same(at_once, initial, "nothing is trained yet")
    moved = {name for name, value in trained.items() if not torch.equal(value, initial[name])}
    assert moved == {name for name in initial if "lora_" in name or name.startswith("projection.")}


def test_a_checkpoint_goes_over_to_other_engines_and_numbers_of_ranks(place: Place, lives: list[list[Any]]) -> None:
    """Weights and moments exactly; the losses that follow as closely as another order of sums allows."""
    losses = [life[0] if isinstance(life[0], list) else life[0]["leg"] for life in lives]
    first = StateReader(folder_of(place.of(0), 2))
    assert first.kinds == {"weight", "exp_avg", "exp_avg_sq"}
    for leg, (kind, ranks) in enumerate(LEGS[1:], 1):
        reader = StateReader(folder_of(place.of(leg), 2))
        assert reader.extra == first.extra
        assert (set(reader.names), reader.kinds) == (set(first.names), first.kinds)
        for name, part in product(first.names, sorted(first.kinds)):
            assert torch.equal(reader.full(part, name), first.full(part, name)), (kind, ranks, part, name)
        assert losses[leg] == pytest.approx(losses[0], abs=1e-6), (kind, ranks)
