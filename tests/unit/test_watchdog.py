"""The watchdog of one process: what it ends, what it lets go on, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from data_shards.atomic import read_json
from data_shards.errors import UserError
from train.heartbeats import heartbeat_path, read_heartbeats
from train.run_folder import RunFolder
from train.stops import EXIT_STUCK
from train.watchdog import Watchdog, WatchdogConfig

ROOT = Path(__file__).parents[2]
BEAT_S, TIMEOUT_S = 0.1, 0.8
PROGRAM = """
import sys, time
from pathlib import Path
from train.run_folder import RunFolder
from train.watchdog import Watchdog, WatchdogConfig

config = WatchdogConfig(timeout_s={timeout_s}, beat_every_s={beat_s})
watchdog = Watchdog(RunFolder(Path(sys.argv[1])), config, rank=0, world=1)
watchdog.start()
print("ready", flush=True)
{body}
watchdog.close()
"""


def start(run: RunFolder, body: str, *, timeout_s: float = TIMEOUT_S) -> subprocess.Popen[str]:
    program = PROGRAM.format(timeout_s=timeout_s, beat_s=BEAT_S, body=textwrap.dedent(body))
    command = [sys.executable, "-c", program, str(run.root)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors


def test_who_comes_no_further_is_ended_with_cause_and_stacks(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    body = """
    def stand_still():
        time.sleep(60)
    watchdog.phase("forward", 7)
    stand_still()
    """
    code, errors = finish(start(run, body))
    assert code == EXIT_STUCK
    assert "in stand_still" in errors
    failure = read_json(run.failure)
    assert failure["cause"].startswith("rank 0 has been in step 7, phase forward, for "), failure
    assert (failure["rank"], failure["exit_code"], failure["user_error"]) == (0, EXIT_STUCK, False)
    stacks = (run.logs / "stacks-rank-00000.txt").read_text()
    assert "in stand_still" in stacks
    assert "in _watch" in stacks


def test_who_hangs_before_the_first_step_is_ended_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert finish(start(run, "time.sleep(60)"))[0] == EXIT_STUCK
    assert "step 0, phase start" in read_json(run.failure)["cause"]


def test_who_comes_on_or_may_take_its_time_is_left_alone(tmp_path: Path) -> None:
    """Each part takes longer than the timeout; an allowance never shortens it."""
    run = RunFolder(tmp_path)
    body = """
    for step in range(8):
        watchdog.phase("forward", step)
        time.sleep(0.2)
    watchdog.phase("waiting for negatives", 8, allow_s=60)
    time.sleep(1.6)
    watchdog.phase("forward", 8, allow_s=0.01)
    time.sleep(0.5)
    """
    code, errors = finish(start(run, body))
    assert code == 0, errors
    assert not run.failure.exists()
    assert read_heartbeats(run, 1)[0].ended


def test_turned_off_it_ends_nothing_but_still_writes_heartbeats(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    code, _ = finish(start(run, 'watchdog.phase("forward", 5)\ntime.sleep(1.5)', timeout_s=0))
    assert code == 0
    assert (read_heartbeats(run, 1)[0].step, read_heartbeats(run, 1)[0].phase) == (5, "forward")


def test_a_job_that_was_suspended_has_not_hung(tmp_path: Path) -> None:
    """As a queue does to make room: for longer than the timeout no thread of it ran."""
    run = RunFolder(tmp_path)
    process = start(run, 'watchdog.phase("forward", 5)\ntime.sleep(2.2)')
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.9)
    os.kill(process.pid, signal.SIGCONT)
    code, errors = finish(process)
    assert code == 0, errors


def test_a_heartbeat_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "heartbeats").write_text("a file where the folder should be")
    watchdog = Watchdog(run, WatchdogConfig(timeout_s=5, beat_every_s=0.02), rank=0, world=1)
    watchdog.start()
    time.sleep(0.3)
    (tmp_path / "heartbeats").unlink()
    watchdog.phase("forward", 3)
    time.sleep(0.2)
    watchdog.close()
    assert caplog.text.count("the heartbeat cannot be written") == 1
    assert read_heartbeats(run, 1)[0].step == 3


def test_a_phase_costs_next_to_nothing_and_writes_nothing(tmp_path: Path) -> None:
    watchdog = Watchdog(RunFolder(tmp_path), WatchdogConfig(), rank=0, world=1)
    began = time.perf_counter()
    for step in range(20_000):
        watchdog.phase("forward", step)
    assert (time.perf_counter() - began) / 20_000 < 50e-6
    assert not heartbeat_path(RunFolder(tmp_path), 0).exists()


def test_times_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UserError, match=r"watchdog\.beat_every_s must be above 0, came 0"):
        WatchdogConfig(beat_every_s=0)
    with pytest.raises(
        UserError, match=r"timeout_s = 5 is below watchdog\.beat_every_s = 10; raise it, or set it to 0"
    ):
        WatchdogConfig(timeout_s=5)
    assert WatchdogConfig(timeout_s=0).timeout_s == 0
