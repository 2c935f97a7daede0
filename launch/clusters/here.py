"""Launches on this machine: a process of its own that outlives the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

_SAME_START_S = 1.0
_POLL_S = 0.2


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
