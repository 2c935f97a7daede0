"""How a run is asked to stop, and how ranks die with their launcher: real signals, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from train.stops import EXIT_STOPPED, StopFlag, hold

ROOT = Path(__file__).parents[2]
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_sets_the_flag_and_nothing_dies(number: signal.Signals) -> None:
    flag = StopFlag()
    assert not flag.asked_here()
    assert not flag.asked_anywhere(torch.device("cpu"))
    os.kill(os.getpid(), number)
    assert flag.asked_here()
    assert flag.asked_anywhere(torch.device("cpu"))


def test_the_exit_code_says_try_again() -> None:
    assert EXIT_STOPPED == os.EX_TEMPFAIL == 75


def test_a_rank_gets_sigterm_when_its_parent_is_killed() -> None:
    """The parent has no chance to tell it: the kernel does."""
    child = (
        "from train.stops import die_with_parent; import time; die_with_parent(); print(flush=True); time.sleep(60)"
    )
    parent = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        print(child.pid, flush=True)
        child.wait()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        rank = psutil.Process(int(process.stdout.readline()))
        try:
            process.kill()
            process.wait()
            deadline = time.monotonic() + 10
            while rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
        finally:
            if rank.is_running():
                rank.kill()


def test_a_lock_is_for_one_who_wants_it_alone_and_then_for_all_who_join(tmp_path: Path) -> None:
    first = hold(tmp_path / "lock", alone=True)
    joined = hold(tmp_path / "lock")
    assert first is not None
    assert joined is not None
    first.close()
    assert hold(tmp_path / "lock", alone=True) is None, "one who joined is still there"
    joined.close()
    assert hold(tmp_path / "lock", alone=True) is not None
