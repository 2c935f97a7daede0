"""What a run shows: a line of JSON in the run folder, and the same in Weights & Biases."""

from __future__ import annotations

import json
import logging
import netrc
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_shards.atomic import atomic_path
from data_shards.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where a W&B key is found in the environment or in .netrc, else offline."""
    project: str = "dipole"
    """The W&B project."""
    group: str = ""
    """Runs of one job stand together under it."""
    log_every_steps: int = 1
    """Steps between two logged ones."""

    def __post_init__(self) -> None:
        """Check the interval."""
        if self.log_every_steps < 1:
            raise UserError(f"tracker.log_every_steps must be at least 1, came {self.log_every_steps}")


class Tracker:
    """Writes events; only rank 0 has one that does."""

    def __init__(
        self, path: Path, config: TrackerConfig, *, run_id: str, job_type: str, resolved: dict[str, Any], active: bool
    ) -> None:
        """Open the file and the W&B run.

        Args:
            path: `metrics.jsonl`.
            config: of W&B.
            run_id: kept over restarts, so that a resumed run is one run.
            job_type: train, mine, …
            resolved: the config, as W&B shows it.
            active: whether this process writes at all.
        """
        self._active = active
        self._wandb: Any = None
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8", buffering=1)
        if (mode := resolve_mode(config.mode)) != "disabled":
            self._wandb = _start_wandb(path.parent, config, mode, run_id, job_type, resolved)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write one event; numbers go to W&B too, under `event/name`."""
        if not self._active:
            return
        row = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            flat = _numbers(values, f"{event}/")
            self._wandb.log({"global_step": step, **flat})

    def close(self, exit_code: int = 0) -> None:
        """Flush and end the W&B run."""
        if self._active:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
            self._wandb = None


def resolve_mode(mode: str) -> str:
    """Turn `auto` into online or offline; WANDB_MODE in the environment has the last word on `auto`."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def truncate_metrics(path: Path, step: int) -> None:
    """Drop what was logged for `step` and later: a run that resumes there will log it again.

    A last line cut off by a kill goes too, or the next event would be appended to it and lost with it.
    """
    if not path.exists():
        return
    # A dev evaluation comes before the checkpoint of its step, but the one before the first step is done again.
    kept = [
        row for row in read_metrics(path) if row["step"] < step or (row["step"] == step > 0 and row["event"] == "dev")
    ]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    if text != path.read_text(encoding="utf-8"):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            _log.warning("%s: a line that is no JSON is left out: %.60s", path, line)
    return rows


def _start_wandb(
    folder: Path, config: TrackerConfig, mode: str, run_id: str, job_type: str, resolved: dict[str, Any]
) -> Any:
    import wandb

    run = wandb.init(
        project=config.project,
        group=config.group or None,
        job_type=job_type,
        id=run_id,
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        config=resolved,
        settings=wandb.Settings(silent=True, console="off"),
    )
    # Resumed offline segments count `_step` from 0 again; the global step does not.
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


def _numbers(values: dict[str, Any], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
