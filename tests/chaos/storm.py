"""A storm: a run is killed at random moments, again and again, by a seed; then it is left alone to its end."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil

from tests.e2e.watching import Watched, steps_logged

_ATTEMPT_S = 240.0
_RETRY_S = 90.0
_AFTER_MINER_S = 20.0


def blow(run: Path, *, seed: int, kills: int, steps: int) -> list[str]:
    """Kill a run that can be resumed, so many times, and let it come to its end.

    Args:
        run: its folder.
        seed: of moments and victims.
        kills: how many; a run that is done before is left alone.
        steps: of the run. Moments are spread over them, and over the seconds that a start takes.

    Returns:
        What was done, for the message of a test that fails.
    """
    dice = random.Random(seed)
    told: list[str] = []
    for number in range(kills):
        if (run / "done.json").exists():
            break
        # The miner once in every storm, early enough for another refresh to come.
        victim = "miner" if number == 1 else dice.choice(["rank 0", "rank 1", "command", "all"])
        # Half of the moments are by step, half by the clock: those fall into starts, mining and checkpoints too.
        goal = dice.randint(1, max(1, steps // kills)) + steps_logged(run)
        pause_s = dice.uniform(1.0, 15.0) if dice.random() < 0.5 else None
        watched = Watched("train", run / "config.toml", "--resume")
        try:
            _wait(watched, run, goal, pause_s)
            if victim == "miner":
                _wait_for_miner(watched)
            code = watched.process.poll()
            assert code in (None, 0), f"{told}: ended by itself with exit code {code}\n{watched.wait()[1]}"
            killed = _kill(watched, victim)
            told.append(f"kill {number + 1}: {victim} ({len(killed)} processes) at {steps_logged(run)} steps")
            if victim == "miner":
                # The command starts another, and the run goes on; then it is ended as well.
                _wait(watched, run, 0, _AFTER_MINER_S)
            if victim == "miner" or not killed:
                continue
            watched.wait()
        finally:
            _end(watched)
    while not (run / "done.json").exists():
        watched = Watched("train", run / "config.toml", "--resume")
        try:
            code, output = watched.wait()
            assert code == 0, f"{told}\n{output}"
        finally:
            _end(watched)
    return told


def _wait(watched: Watched, run: Path, goal: int, pause_s: float | None) -> None:
    """Wait for a number of steps, or for some seconds where they are given; not longer than the command."""
    deadline = time.monotonic() + (pause_s if pause_s is not None else _ATTEMPT_S)
    while time.monotonic() < deadline and watched.process.poll() is None:
        if pause_s is None and steps_logged(run) >= goal:
            return
        time.sleep(0.02)


def _wait_for_miner(watched: Watched) -> None:
    """Wait until a miner is at work; in phases it is there only while the ranks wait for it."""
    deadline = time.monotonic() + _ATTEMPT_S
    while time.monotonic() < deadline and watched.process.poll() is None:
        if any("launch.miner" in _words(process) for process in watched.family()):
            return
        time.sleep(0.05)


def _kill(watched: Watched, victim: str) -> list[psutil.Process]:
    """Kill without warning; a victim that is not there at that moment is nobody."""
    family = watched.family()
    if victim == "all":
        found = family
    elif victim == "command":
        found = [process for process in family if process.pid == watched.process.pid]
    elif victim == "miner":
        found = [process for process in family if "launch.miner" in _words(process)]
    else:
        rank = victim.split()[1]
        found = [process for process in family if "launch.train_worker" in _words(process) and _rank(process) == rank]
    for process in found:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return found


def _end(watched: Watched) -> None:
    """See that nothing of an attempt is left: what outlives its command must end by itself."""
    if watched.process.poll() is None:
        watched.process.kill()
    watched.wait()
    left = watched.ends_within(_RETRY_S)
    watched.clean_up()
    assert left == [], f"outlived their command by {_RETRY_S:.0f} s: {left}"


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _rank(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None
