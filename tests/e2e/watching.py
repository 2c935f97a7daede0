"""Starts a command that will be killed, waits for a moment in its run, and counts what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import clean_environment, command
from train.tracker import read_metrics

_MARK = "DIPOLE_TEST_MARK"
_LIMIT_S = 180.0


class Watched:
    """A running `dipole` whose every descendant carries a mark in its environment."""

    def __init__(self, *arguments: object) -> None:
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            command(*arguments),
            env=clean_environment() | {_MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition holds; a command that ends before it does fails the test with its output."""

        def over() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, f"ended too early:\n{self.process.communicate()[0]}"
            return False

        wait_for(over)

    def wait(self) -> tuple[int, str]:
        """Return exit code and output."""
        output, _ = self.process.communicate(timeout=_LIMIT_S)
        return self.process.returncode, output

    def family(self) -> list[psutil.Process]:
        """Return every living process that carries the mark, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def running(self, module: str) -> list[psutil.Process]:
        """Return the processes that run a module, or have it run."""
        return [process for process in self.family() if module in process.cmdline()]

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a training rank."""
        for process in self.family():
            if process.environ().get("RANK") == str(number) and "launch.train_worker" in process.cmdline():
                return process
        raise AssertionError(f"no rank {number} among {[p.cmdline() for p in self.family()]}")

    def ends_within(self, seconds: float) -> list[str]:
        """Wait for the whole family to be gone; return the command lines of those that are not."""
        wait_for(lambda: not self.family(), seconds, or_else=lambda: None)
        return [" ".join(process.cmdline()) for process in self.family()]

    def clean_up(self) -> None:
        """Kill what a failed test left."""
        for process in self.family():
            process.kill()


def wait_for(
    condition: Callable[[], Any], seconds: float = _LIMIT_S, or_else: Callable[[], None] | None = None
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            if or_else is not None:
                return or_else()
            raise AssertionError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.02)
    return None


def steps_logged(run: Path) -> int:
    """Return how many steps a run has logged."""
    path = run / "metrics.jsonl"
    if not path.exists() or os.stat(path).st_size == 0:
        return 0
    return sum(row["event"] == "step" for row in read_metrics(path))


def losses(run: Path) -> dict[int, float]:
    """Return the loss of each step; a step that stands twice must be the same twice."""
    found: dict[int, float] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        if row["event"] == "step":
            assert row["step"] not in found, f"step {row['step']} is logged twice"
            found[row["step"]] = row["loss"]
    return found
