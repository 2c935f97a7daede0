"""This machine: a process of its own that outlives the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from data_shards.errors import UserError
from launch.clusters.folder import Launch
from launch.clusters.place import CHAIN, chain_rows

_STOP_S = 120.0
_SAME_START_S = 1.0
_POLL_S = 0.2


class Here:
    """Jobs of this machine: see `Place`."""

    def check(self, made: Launch) -> None:
        """Refuse nothing."""

    def submit(self, made: Launch) -> Launch:
        """Start the chain of all jobs."""
        number = start(made.script(CHAIN), made.folder / "logs" / "launch.log")
        made = replace(made, jobs=tuple(replace(job, id=number) for job in made.jobs))
        made.save()
        return made

    def rows(self, made: Launch) -> list[dict[str, Any]]:
        """See `Place`."""
        number = made.jobs[0].id
        return chain_rows(made, "RUNNING" if number is not None and is_running(number) else "ENDED")

    def cancel(self, made: Launch) -> None:
        """See `Place`; returns when it has stopped."""
        number = made.jobs[0].id
        if number is not None and not stop(number, within_s=_STOP_S):
            pid = number.partition("@")[0]
            raise UserError(f"process {pid} has not stopped in {_STOP_S:.0f} s; end it with kill -9")


def start(script: Path, log: Path) -> str:
    """Start a script in a session of its own.

    Returns:
        Its id: process id and time of start, since a process id may be given anew.
    """
    with open(log, "ab") as out:
        process = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    return f"{process.pid}@{psutil.Process(process.pid).create_time():.2f}"


def is_running(number: str) -> bool:
    """Whether the process is still there; one that has ended and was not waited for is not."""
    process = _process(number)
    return process is not None and process.status() != psutil.STATUS_ZOMBIE


def stop(number: str, *, within_s: float) -> bool:
    """Ask it to stop, which it passes on to its job.

    Returns:
        Whether it has ended in time.
    """
    process = _process(number)
    if process is None:
        return True
    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + within_s
    while is_running(number):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _process(number: str) -> psutil.Process | None:
    pid, _, began = number.partition("@")
    try:
        process = psutil.Process(int(pid))
        return process if abs(process.create_time() - float(began)) < _SAME_START_S else None
    except psutil.NoSuchProcess:
        return None
