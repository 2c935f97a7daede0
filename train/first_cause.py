"""The first cause of a failure: one file in the run folder, written by whoever comes first.

What the other ranks tell afterwards is mostly the echo: a connection that was closed, a collective that timed out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from train.health import TrainingDivergedError
from train.heartbeats import furthest_behind, gone, heartbeat_path, read_heartbeats, table
from train.refresh import RefreshFailedError
from train.run_folder import RunFolder
from train.stops import EXIT_DIVERGED

_log = logging.getLogger(__name__)
_ECHO = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|socket|timed? ?out", re.IGNORECASE)
_TIMEOUT = re.compile(r"timed? ?out", re.IGNORECASE)
_DYING_S = 2.0
_SILENT_S = 90.0  # far above the time between two heartbeats and what a network file system may hold back


def leave_cause(
    path: Path, *, rank: int, cause: str, user_error: bool = False, exit_code: int = 1, details: str = ""
) -> bool:
    """Write the failure down, unless another was first.

    Args:
        path: of `failure.json`.
        rank: the rank that is the cause.
        cause: one line for people.
        user_error: whether it is a mistake that a person can mend.
        exit_code: see `train.stops`.
        details: traceback, heartbeats.

    Returns:
        Whether this one was first.
    """
    row = {"rank": rank, "cause": cause, "user_error": user_error, "exit_code": exit_code, "traceback": details}
    temporary = path.with_name(f".tmp-{os.getpid()}-{rank}-{path.name}")
    try:
        temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        _link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name: unlike a rename it fails where that is taken, and nobody ever reads half of it."""
    try:
        os.link(temporary, path)
    except PermissionError:  # what file systems answer that know no second name, such as those over object stores
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def leave_error(run: RunFolder, error: BaseException, *, rank: int, world: int) -> int:
    """Write down what a rank raised, or what it is the echo of.

    Returns:
        The exit code of the rank.
    """
    mine = rank
    code = EXIT_DIVERGED if isinstance(error, TrainingDivergedError) else 1
    for_people = isinstance(error, UserError | RefreshFailedError | TrainingDivergedError)
    cause = str(error) if for_people else f"{type(error).__name__}: {error}"
    details = "".join(traceback.format_exception(error))
    first = None if for_people else _first_before(run, error, rank, world)
    if first:
        rank, cause = first[0], f"{first[1]} (rank {rank} saw {cause.splitlines()[0]})"
        details += "\n" + table(read_heartbeats(run, world))
    said: dict[str, Any] = {
        "rank": rank,
        "cause": cause,
        "user_error": isinstance(error, UserError),
        "exit_code": code,
    }
    try:
        leave_cause(run.failure, **said, details=details)
    except OSError as full:
        _leave_without_room(run, said, full, mine)
    return code


def _leave_without_room(run: RunFolder, said: dict[str, Any], full: OSError, rank: int) -> None:
    """Write the bare cause in the room of this rank's heartbeat, which is of no use now."""
    try:
        heartbeat_path(run, rank).unlink(missing_ok=True)
        leave_cause(run.failure, **said)
    except OSError:
        _log.error("the cause cannot be written down (%s); it is: %s", full, said["cause"])


def _first_before(run: RunFolder, error: BaseException, rank: int, world: int) -> tuple[int, str] | None:
    """Return who is the cause of an error that comes from talking to the others; None where it is nobody's echo."""
    if world == 1 or not isinstance(error, RuntimeError) or not _ECHO.search(str(error)):
        return None
    # The kernel closes a dying process's connections first: for a moment after that it still looks alive.
    until = time.monotonic() + _DYING_S
    while not (lost := gone(beats := read_heartbeats(run, world))) and time.monotonic() < until:
        time.sleep(0.1)
    if lost and lost.rank != rank:
        return lost.rank, f"rank {lost.rank} was killed (out of memory?) in {lost.place}"
    if _TIMEOUT.search(str(error)):
        return furthest_behind(beats, world, silent_s=_SILENT_S)
    return None
