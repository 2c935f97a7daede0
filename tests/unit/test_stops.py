"""How a run is asked to stop, and how ranks die with their launcher: real signals, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch

from data_shards.errors import UserError
from train import exit_codes, stops
from train.stops import BEGAN, EXIT_DIVERGED, EXIT_STOPPED, EXIT_STUCK, StopConfig, StopFlag, hold

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]

pytestmark = pytest.mark.usefixtures("handlers_come_back")


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_sets_the_flag_and_nothing_dies(number: signal.Signals) -> None:
    flag = StopFlag()
    assert not flag.asked_here()
    assert not flag.asked_anywhere(CPU)
    os.kill(os.getpid(), number)
    assert flag.asked_here()
    assert flag.asked_anywhere(CPU)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_the_reason_is_the_first_signal(number: signal.Signals) -> None:
    flag = StopFlag()
    assert flag.reason(CPU) == "asked"
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.reason(CPU) == f"signal {number.name}"


def test_the_time_limit_counts_from_the_start_of_the_command_that_started_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its `adapt` stage ran for an hour before these ranks were started."""
    config = StopConfig(time_limit_s=3700, margin_s=5)
    assert not StopFlag(config).asked_here()
    monkeypatch.setenv(BEGAN, str(psutil.Process().create_time() - 3600 - 100))
    assert StopFlag(config).asked_here()
    monkeypatch.setenv(BEGAN, str(time.time() + 9))  # as a clock that was set back would have it
    assert not StopFlag(config).asked_here()


def test_the_time_limit_counts_from_the_start_of_the_process() -> None:
    running_s = time.time() - psutil.Process().create_time()
    over = StopFlag(StopConfig(time_limit_s=running_s + 4.9, margin_s=5))
    assert over.asked_here()
    assert over.reason(CPU) == "time limit"
    soon = StopFlag(StopConfig(time_limit_s=running_s + 5.5, margin_s=5))
    assert not soon.asked_here()
    time.sleep(0.6)
    assert soon.asked_here()
    assert not StopFlag(StopConfig(time_limit_s=running_s + 3600)).asked_here()


def test_without_a_limit_time_is_never_over() -> None:
    assert not StopFlag().asked_here()
    assert not StopFlag(StopConfig(margin_s=0)).asked_here()


def test_other_ranks_do_not_look_at_their_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = StopFlag(StopConfig(time_limit_s=2, margin_s=1))
    assert flag.asked_here()
    monkeypatch.setattr(stops, "rank", lambda: 1)
    assert not flag.asked_here()


def test_a_limit_below_its_margin_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"time_limit_s = 60 leaves no time beside stop\.margin_s = 120; raise the one"
    ):
        StopConfig(time_limit_s=60)
    with pytest.raises(UserError, match=r"stop\.time_limit_s and stop\.margin_s must be 0 or more"):
        StopConfig(time_limit_s=-1)


def test_the_exit_codes_say_try_again_or_look_first() -> None:
    assert EXIT_STOPPED == os.EX_TEMPFAIL == 75
    codes = {"EXIT_STOPPED": EXIT_STOPPED, "EXIT_DIVERGED": EXIT_DIVERGED, "EXIT_STUCK": EXIT_STUCK}
    for name, code in codes.items():
        assert f"{code}    `{name}`" in (exit_codes.__doc__ or ""), "the table is where people look"


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
