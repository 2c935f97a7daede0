"""Killed at any moment of a save, the checkpoint before is there, or the new one is; never half of one."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.unit.toy_state import SHAPES, assert_holds, names, pieces, state
from train.checkpoint import newest_checkpoint
from train.checkpoint_saver import CheckpointSaver

KILLS = 20
WIDE = {**SHAPES, "filler": (1 << 18,)}


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes of their own, that need not import torch each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def saver(root: Path, *, asynchronous: bool = True) -> CheckpointSaver:
    return CheckpointSaver(root, keep=1, device=torch.device("cpu"), asynchronous=asynchronous)


def newest_step(root: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> int:
    """Return the step of the newest whole checkpoint, 0 without one; its every value is checked."""
    found = newest_checkpoint(root)
    if found is None:
        return 0
    assert_holds(found[0], found[1].step, shapes)
    return found[1].step


# --- at random moments ------------------------------------------------------------------------------------------


def keep_saving(root: Path) -> None:
    """Resume and save, step after step; some megabytes beside the toy state give a kill the time to hit."""
    step = newest_step(root, WIDE)
    to = saver(root)
    while True:
        step += 1
        (root.parent / "saving").touch()
        to.save(pieces(step, shapes=WIDE), WIDE, state(step), {})


def committed(root: Path) -> int:
    return max((int(path.name[5:]) for path in root.glob("step-???????")), default=0)


def in_a_save(root: Path) -> bool:
    return root.exists() and any(name.startswith(".tmp-step") for name in names(root))


def test_killed_at_random_moments_of_asynchronous_saves(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    root, saving, moments = tmp_path / "checkpoints", tmp_path / "saving", random.Random(0)
    in_the_middle, newest = 0, 0
    for turn in range(KILLS):
        saving.unlink(missing_ok=True)
        victim = processes.Process(target=keep_saving, args=(root,))
        victim.start()
        deadline = time.monotonic() + 60
        # Every other one may commit a checkpoint first, else a slow machine would kill nothing but first saves.
        while not saving.exists() or (turn % 2 and committed(root) <= newest):
            assert victim.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.15))
        # Every other one is killed as soon as it is seen to write: on a slow machine chance alone seldom hits.
        while turn % 2 == 0 and not in_a_save(root):
            assert time.monotonic() < deadline
        before = committed(root)
        victim.kill()
        victim.join(30)
        assert victim.exitcode == -signal.SIGKILL
        in_the_middle += in_a_save(root)
        found = newest_step(root, WIDE)
        assert found >= max(before, newest), "a committed checkpoint is lost"
        newest = found
    assert newest >= KILLS // 2
    assert in_the_middle >= KILLS // 4, "the kills should have hit saves"


# --- before every single thing that it does to the disk -----------------------------------------------------------

_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def save_and_die(root: Path, step: int, at: int) -> None:
    """Save a step; be killed before the `at`-th touch of the folder, wherever in the save that is."""
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in _EVENTS and str(root) in str(arguments[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    to = saver(root)
    to.save(pieces(step), SHAPES, state(step), {})
    to.wait()


@pytest.mark.parametrize("step", [4, 6], ids=["a step again", "a new step"])
def test_killed_before_every_single_touch_of_the_disk(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext, step: int
) -> None:
    """One checkpoint of step 4 is there and one stays: the hardest case is to write step 4 again."""
    first = saver(tmp_path / "first", asynchronous=False)
    first.save(pieces(4), SHAPES, state(4), {})
    found, code, at = [], -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        at += 1
        root = tmp_path / f"{at}" / "checkpoints"
        shutil.copytree(tmp_path / "first", root)
        victim = processes.Process(target=save_and_die, args=(root, step, at))
        victim.start()
        victim.join(60)
        code = victim.exitcode
        assert code in (0, -signal.SIGKILL)
        found.append(newest_step(root))
        contents = {path.name: len(names(path)) for path in root.glob("step-*")}
        assert set(contents.values()) == {3}, f"a half written or half deleted one has a name that counts: {contents}"
        saver(root, asynchronous=False).save(pieces(8), SHAPES, state(8), {})
        assert names(root) == ["step-0000008"], "the next save clears up"
    assert at > 20
    assert found == sorted(found), "once it is committed, it stays"
    assert {found[0], found[-1]} == {4, step}
