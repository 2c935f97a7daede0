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


def clear_abandoned(run: RunFolder) -> None:
    """Empty a folder in which a run was to begin and never did; anything else is left as it is.

    Raises:
        UserError: somebody is making it at this moment.
    """
    marker = run.root / _STARTING
    if run.identity.exists() or not marker.exists() or not _holds_beginning(run.root):
        return
    if _is_at_work(read_json(marker), marker):
        raise UserError(f"{run.root} is being made by another command; wait for it, or choose another run.out")
    _log.warning("%s holds a run that was cut off before it began; it begins anew", run.root)
    for path in run.root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _holds_beginning(root: Path) -> bool:
    return {path.name for path in root.iterdir() if not path.name.startswith(".tmp-")} <= _BEGINNING


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
