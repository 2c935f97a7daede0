"""Invariant 3, *resume is exact*, under every engine; and a checkpoint is no engine's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.distributed.trainings import assert_same, copied, load, save, start
from train.checkpoint import folder_of
from train.state_files import StateReader

pytestmark = pytest.mark.distributed
TORCH, ZERO = ["ddp", "fsdp2"], ["zero1", "zero2", "zero3"]
PRECISIONS = ["float32", "bfloat16"]


def in_both(kinds: list[str]) -> Iterator[tuple[str, str]]:
    return ((kind, precision) for kind in kinds for precision in PRECISIONS)


def _straight(snapshot: Path, root: Path, kinds: list[str]) -> dict[tuple[str, str], Any]:
    """Run in a rank: three steps of each engine, with a checkpoint after the second."""
    seen = {}
    for kind, precision in in_both(kinds):
        training = start(snapshot, kind, precision)
        losses = [training.step(number)[0] for number in range(2)]
        save(training.engine, root / f"{kind}-{precision}", 2)
        losses.append(training.step(2)[0])
        seen[kind, precision] = losses, copied(training.engine.weights())
    return seen


def _resumed(snapshot: Path, root: Path, kinds: list[str]) -> dict[tuple[str, str], Any]:
    """Run in a rank of another life: load each checkpoint and take the third step."""
    seen = {}
    for kind, precision in in_both(kinds):
        training = start(snapshot, kind, precision, moved=True)
        load(training.engine, root / f"{kind}-{precision}", 2)
        loaded = copied(training.engine.weights())
        loss, _ = training.step(2)
        seen[kind, precision] = loss, copied(training.engine.weights()), loaded
    return seen


def _resume_is_exact(tmp_path: Path, kinds: list[str]) -> None:
    # Dropout, so that the seeds count; a projection, which in lower precision stands between the two.
    snapshot = toy.save_encoder(tmp_path / "snapshot", dropout=0.2, projection=6)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    straight = run_ranks(_straight, 2, folders[0], snapshot, tmp_path / "checkpoints", kinds)
    resumed = run_ranks(_resumed, 2, folders[1], snapshot, tmp_path / "checkpoints", kinds)
    initial = toy.encoder(snapshot, wide=False).state_dict()
    for case in in_both(kinds):
        losses, weights = straight[0][case]
        loss, found, loaded = resumed[0][case]
        reader = StateReader(folder_of(tmp_path / "checkpoints" / "-".join(case), 2))
        assert_same(loaded, {name: reader.full("weight", name) for name in reader.names}, case)
        assert losses[0] > losses[1] > losses[2], (case, "it should learn")
        assert loss == losses[2], case
        assert_same(found, weights, case)
        assert weights.keys() == initial.keys(), case
        assert all(value.dtype == torch.float32 for value in weights.values()), case
        assert straight[1][case][1] == {}, "one rank alone has the weights"


def test_resume_is_exact_under_ddp_and_fsdp2(tmp_path: Path) -> None:
    _resume_is_exact(tmp_path, TORCH)


@pytest.mark.deepspeed
def test_resume_is_exact_under_deepspeed(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    _resume_is_exact(tmp_path, ZERO)


# --- another engine, another number of ranks ---------------------------------------------------------------------


def _first(snapshot: Path, root: Path) -> list[float]:
    training = start(snapshot, "ddp")
    for number in range(2):
        training.step(number)
    save(training.engine, root / "0", 2)
    return [training.step(number)[0] for number in (2, 3)]


def _next(snapshot: Path, root: Path, leg: int, kind: str) -> list[float]:
    """Load what the leg before wrote, write it anew at once, and go on for two steps."""
    training = start(snapshot, kind, moved=True)
    load(training.engine, root / str(leg - 1), 2)
    save(training.engine, root / str(leg), 2)
    return [training.step(number)[0] for number in (2, 3)]


@pytest.mark.deepspeed
def test_a_checkpoint_goes_over_to_other_engines_and_numbers_of_ranks(tmp_path: Path) -> None:
    """Weights and moments exactly; the losses that follow as closely as another order of sums allows."""
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    snapshot, root = toy.save_encoder(tmp_path / "snapshot"), tmp_path / "checkpoints"
    legs = [("ddp", 2), ("fsdp2", 4), ("zero3", 2), ("ddp", 1)]
    for leg, (kind, ranks) in enumerate(legs):
        folder = tmp_path / str(leg)
        folder.mkdir()
        arguments: tuple[Any, ...] = (_next, ranks, folder, snapshot, root, leg, kind)
        losses = run_ranks(*arguments if leg else (_first, ranks, folder, snapshot, root))[0]
        reader = StateReader(folder_of(root / str(leg), 2))
        if leg == 0:
            wanted, first = losses, reader
        assert losses == pytest.approx(wanted, abs=1e-6), (leg, kind)
        assert reader.extra == first.extra
        assert set(reader.names) == set(first.names)
        assert reader.kinds == {"weight", "exp_avg", "exp_avg_sq"}
        for name in first.names:
            for part in first.kinds:
                assert torch.equal(reader.full(part, name), first.full(part, name)), (leg, kind, part, name)
