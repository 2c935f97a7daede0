"""Checkpoints of several ranks: read by any number of them, and one answer for all, whoever finds the fault."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from tests.unit.toy_state import KINDS, SHAPES, assert_holds, names, pieces, state, value
from train import checkpoint_saver
from train.checkpoint import newest_checkpoint
from train.checkpoint_saver import CheckpointError, CheckpointSaver
from train.collectives import rank, world_size
from train.state_files import Piece, StateReader

pytestmark = pytest.mark.distributed
CPU = torch.device("cpu")


class ToyEngine:
    """Weights and averages laid end to end and cut into equal stretches, as ZeRO does: other cuts for each size."""

    def __init__(self, folder: Path | None) -> None:
        """Take this rank's stretch out of a checkpoint, or make that of step 0."""
        total = sum(math.prod(shape) for shape in SHAPES.values())
        begin, end = (total * turn // world_size() for turn in (rank(), rank() + 1))
        reader = StateReader(folder) if folder else None
        self.held: dict[tuple[str, str, int], torch.Tensor] = {}
        at = 0
        for name, shape in SHAPES.items():
            size = math.prod(shape)
            start, stop = (min(max(edge - at, 0), size) for edge in (begin, end))
            for kind in KINDS:
                made = reader.read(kind, name, start, stop) if reader else value(0, kind, name)[start:stop]
                self.held[kind, name, start] = made.clone()
            at += size

    def step(self) -> None:
        for flat in self.held.values():
            flat += 10_000  # what `value` adds from one step to the next

    def pieces(self) -> list[Piece]:
        found = [Piece(kind, name, start, flat) for (kind, name, start), flat in self.held.items()]
        return found if rank() % 2 else found[::-1]


def _saver(root: Path, **options: Any) -> CheckpointSaver:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return CheckpointSaver(root, **{"keep": 2, "device": CPU, **options})


def _train(root: Path, steps: int) -> list[str]:
    """Resume, take steps with a checkpoint after each; return what each rank saw after the last wait."""
    saver = _saver(root)
    found = newest_checkpoint(root, CPU)
    engine = ToyEngine(found[0] if found else None)
    done = found[1].step if found else 0
    for step in range(done + 1, done + steps + 1):
        engine.step()
        saver.save(engine.pieces(), SHAPES, state(step, world_size=world_size()), {})
        saver.poll()
    saver.wait()
    return names(root)


def test_any_number_of_ranks_goes_on_from_any_other(tmp_path: Path) -> None:
    """3 → 2 → 4 ranks, then one: every value is what it would be without a change."""
    root = tmp_path / "checkpoints"
    for count, (ranks, wanted) in enumerate([(3, (1, 2)), (2, (3, 4)), (4, (5, 6))]):
        (tmp_path / str(count)).mkdir()
        seen = run_ranks(_train, ranks, tmp_path / str(count), root, 2)
        assert seen == [[f"step-{step:07d}" for step in wanted]] * ranks, "all see the commit, and nothing beside it"
        assert len(list((root / f"step-{wanted[1]:07d}").glob("rank-*-of-*.safetensors"))) == ranks
        for step in wanted:
            assert_holds(root / f"step-{step:07d}", step)
    found = newest_checkpoint(root)
    assert found == (root / "step-0000006", state(6, world_size=4))
    assert torch.equal(ToyEngine(found[0]).held["weight", "words", 0], value(6, "weight", "words"))


# --- faults that one rank finds --------------------------------------------------------------------------------


def _faults(root: Path) -> dict[str, Any]:
    """Run in each of two ranks; return what this rank saw."""
    saver = _saver(root)
    saw: dict[str, Any] = {}
    for step in (2, 4, 6):
        saver.save(pieces(step, rank=rank(), world_size=2), SHAPES, state(step, world_size=2), {})
    saver.wait()
    dist.barrier()

    # Each rank's share in turn is damaged, in the newest and then in the one before it.
    if rank() == 0:
        (root / "step-0000006" / "rank-00001-of-00002.safetensors").write_bytes(b"half")
    dist.barrier()
    saw["share of rank 1"] = _newest(root)
    if rank() == 0:
        shutil.copytree(root / "step-0000004", root / "step-0000005")
        (root / "step-0000005" / "rank-00000-of-00002.json").unlink()
    dist.barrier()
    saw["share of rank 0"] = _newest(root)
    # A folder that one rank does not see, as on a disk that is not shared.
    saw["unseen"] = _newest(root if rank() == 0 else root.parent / "another")

    # One rank cannot write; then it can again.
    saw["refused"] = _refused(saver)
    dist.barrier()
    saw["names"] = names(root)
    saver.save(pieces(8, rank=rank(), world_size=2), SHAPES, state(8, world_size=2), {})
    saver.wait()
    saw["then"] = _newest(root)
    return saw


def _newest(root: Path) -> str | None:
    found = newest_checkpoint(root, CPU)
    return found[0].name if found else None


def _refused(saver: CheckpointSaver) -> list[str]:
    """Have the save of step 8 fail on rank 1, then on rank 0; return what was raised here."""
    said = []
    for victim in (1, 0):
        write = checkpoint_saver.write_part
        if rank() == victim:
            checkpoint_saver.write_part = _no_room
        saver.save(pieces(8, rank=rank(), world_size=2), SHAPES, state(8, world_size=2), {})
        try:
            saver.wait()
        except CheckpointError as error:
            said.append(str(error))
        checkpoint_saver.write_part = write
    return said


def _no_room(folder: Path, *arguments: Any, **options: Any) -> None:
    (folder / "rank-00001-of-00002.safetensors").write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_what_one_rank_finds_all_ranks_know(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    seen = run_ranks(_faults, 2, tmp_path, root)
    for saw in seen:
        assert saw["share of rank 1"] == "step-0000004"
        assert saw["share of rank 0"] == "step-0000004"
        assert saw["unseen"] is None
        assert saw["names"] == ["step-0000004", "step-0000005", "step-0000006"]
        assert saw["then"] == "step-0000008"
    (first_by_1, first_by_0), (second_by_1, second_by_0) = (saw["refused"] for saw in seen)
    assert "checkpoint step-0000008 was not written: rank 1 needs 0.0 MiB" in second_by_1
    assert first_by_1 == second_by_1, "the first rank has the cause from the second"
    assert "rank 0 needs 0.0 MiB" in first_by_0
    assert "failed on another rank, which says why" in second_by_0 or "rank 0 gave it up" in second_by_0
    assert_holds(root / "step-0000008", 8)


# --- a rank that dies --------------------------------------------------------------------------------------------


def _dying(root: Path, results: Path) -> str:
    """Save step 2 together; in the save of step 4 rank 1 is gone before it has written its part."""
    saver = _saver(root)
    saver.save(pieces(2, rank=rank(), world_size=2), SHAPES, state(2, world_size=2), {})
    saver.wait()
    saver = _saver(root, timeout_s=1.0)
    if rank() == 1:
        # Its result must be there for the test's own bookkeeping; then it is gone without a word.
        (results / "rank-1.pickle").write_bytes(pickle.dumps("dead"))
        checkpoint_saver.write_part = lambda *_, **__: os._exit(0)
    saver.save(pieces(4, rank=rank(), world_size=2), SHAPES, state(4, world_size=2), {})
    if rank() == 1:
        signal.pause()
    thread = saver._pending.thread if saver._pending else None
    assert thread is not None
    thread.join(60)
    try:
        saver.poll()
    except CheckpointError as error:
        return str(error)
    return "nothing was raised"


def test_a_rank_that_died_is_named_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    said, _ = run_ranks(_dying, 2, tmp_path, root, tmp_path)
    assert "checkpoint step-0000004 was given up: rank 1 of 2 did not write its part, and 1 s have passed" in said
    assert names(root) == ["step-0000002"]
    assert_holds(root / "step-0000002", 2)
    row = json.loads((root / "step-0000002" / "state.json").read_text())
    assert row["state"] == asdict(state(2, world_size=2))
