"""A storm: a run is killed at random moments, again and again, by a seed; then it is left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.watching import Watched, losses, steps_logged

_ATTEMPT_S = 600.0
"""A whole life of a run, on a machine that has other things to do."""
_OUTLIVE_S = 120.0


@dataclass(frozen=True)
class Storm:
    """What a storm did, and what the run had come to at each kill."""

    told: list[str]
    """For the message of a test that fails."""
    lives: list[dict[int, float]]
    """The losses in the log, step by step, after each kill."""

    def agrees_with(self, found: dict[int, float]) -> None:
        """Every loss that any life has seen is the run's in the end: nothing was done over otherwise."""
        for number, life in enumerate(self.lives):
            differ = [step for step in sorted(life.keys() & found.keys()) if life[step] != found[step]]
            assert not differ, f"after kill {number + 1} other losses from step {differ[0]} on; {self.told}"


def blow(run: Path, *, seed: int, kills: int, stride: int) -> Storm:
    """Kill a run that can be resumed, so many times.

    Args:
        run: its folder.
        seed: of moments and victims.
        kills: how many; a run that is done before is left alone.
        stride: half of the moments are by step, at most so many after the last one seen; half are by the clock: those
            fall into starts, mining and checkpoints too.
    """
    dice = random.Random(seed)
    storm = Storm([], [])
    for number in range(kills):
        if (run / "done.json").exists():
            break
        # The miner once in every storm.
        victim = "miner" if number == 1 else dice.choice(["rank 0", "rank 1", "command", "all"])
        goal = dice.randint(1, stride) + steps_logged(run)
        pause_s = dice.uniform(1.0, 15.0) if dice.random() < 0.5 else None
        watched = Watched("train", run / "config.toml", "--resume")
        try:
            _wait(watched, run, goal, pause_s)
            if victim == "miner":
                _wait_for_miner(watched, other_than=[])
            code = watched.process.poll()
            assert code in (None, 0), f"{storm.told}: ended by itself with exit code {code}\n{watched.wait()[1]}"
            killed = _kill(watched, victim)
            storm.told.append(f"kill {number + 1}: {victim} ({len(killed)} processes) at {steps_logged(run)} steps")
            if victim == "miner" and killed:
                # The command starts another; then it is ended as well.
                _wait_for_miner(watched, other_than=killed)
            elif killed:
                watched.wait(_ATTEMPT_S)
        finally:
            _end(watched)
        storm.lives.append(losses(run))
    return storm


def calm(run: Path, until: Callable[[], bool]) -> None:
    """Go on with a run, untouched, until something holds, or to its end where it never does."""
    if (run / "done.json").exists():
        return
    watched = Watched("train", run / "config.toml", "--resume")
    try:
        deadline = time.monotonic() + _ATTEMPT_S
        while watched.process.poll() is None and time.monotonic() < deadline and not until():
            time.sleep(0.1)
        asked = watched.process.poll() is None
        if asked:
            watched.process.send_signal(signal.SIGTERM)
        code, output = watched.wait(_ATTEMPT_S)
        assert code == 0 or (asked and code == 75), output
    finally:
        _end(watched)


def _wait(watched: Watched, run: Path, goal: int, pause_s: float | None) -> None:
    """Wait for a number of steps, or for some seconds where they are given; not longer than the command."""
    deadline = time.monotonic() + (pause_s if pause_s is not None else _ATTEMPT_S)
    while time.monotonic() < deadline and watched.process.poll() is None:
        if pause_s is None and steps_logged(run) >= goal:
            return
        time.sleep(0.02)


def _wait_for_miner(watched: Watched, *, other_than: list[psutil.Process]) -> None:
    """Wait until a miner is there, or the command is over."""
    deadline = time.monotonic() + _ATTEMPT_S
    while watched.process.poll() is None:
        if any("launch.miner" in _words(process) and process not in other_than for process in watched.family()):
            return
        assert time.monotonic() < deadline, "no miner came"
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
    left = watched.ends_within(_OUTLIVE_S)
    watched.clean_up()
    assert left == [], f"outlived their command by {_OUTLIVE_S:.0f} s: {left}"


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
