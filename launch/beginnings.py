"""Run folders whose making was cut off: a kill, or a dead node, before the run had begun."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)
_STARTING = "starting.json"
_BEGINNING = {_STARTING, "adapt", "config.toml", "lock", "logs", "quarantine", "snapshots"}
"""What a folder may hold before its `run.json` is written, which is the last thing that is."""
_BEFORE_MARKER = {"quarantine"}
"""What it may hold before it says who makes it."""
_STAYING = {_STARTING, "config.toml", "quarantine"}
"""The config may be the only one that there is, and is written over."""
_SAME_START_S = 1.0
_ELSEWHERE_S = 60.0
"""How long another machine's beginning is left alone: whether its process lives cannot be seen from here."""


def claim(run: RunFolder) -> None:
    """Say who is making the folder."""
    started = psutil.Process().create_time()
    write_json(run.root / _STARTING, {"host": socket.gethostname(), "pid": os.getpid(), "started": started})


def release(run: RunFolder) -> None:
    """The run has begun, and speaks for itself."""
    (run.root / _STARTING).unlink(missing_ok=True)


def is_abandoned(run: RunFolder) -> bool:
    """Whether a run was to begin in a folder and never did, and nothing else is there.

    Raises:
        UserError: somebody is making it at this moment.
    """
    if run.identity.exists() or not run.root.is_dir():
        return False
    names = {path.name for path in run.root.iterdir()}
    marker = run.root / _STARTING
    if not marker.exists():
        # Killed, or refused, before it said who makes it.
        return bool(names) and all(name in _BEFORE_MARKER or _is_half_written(name, _STARTING) for name in names)
    names = {name for name in names if not _is_half_written(name)}
    if not names <= _BEGINNING:
        return False
    if _is_at_work(read_json(marker), marker):
        raise UserError(f"{run.root} is being made by another command; wait for it, or choose another run.out")
    return True


def clear_abandoned(run: RunFolder) -> None:
    """Empty the folder of a run that never began; the config and what was found damaged stay."""
    _log.warning("%s holds a run that was cut off before it began; it begins anew", run.root)
    for path in run.root.iterdir():
        if path.name in _STAYING:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_half_written(name: str, whole: str = "") -> bool:
    return name.startswith(".tmp-") and name.endswith(whole)


def _is_at_work(row: dict[str, Any], marker: Path) -> bool:
    if row["host"] != socket.gethostname():
        return time.time() - marker.stat().st_mtime < _ELSEWHERE_S
    if row["pid"] == os.getpid():
        return False
    try:
        process = psutil.Process(row["pid"])
        same = abs(process.create_time() - row["started"]) < _SAME_START_S
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
