"""What a run shows: a line of JSON in the run folder, and the same in Weights & Biases and TensorBoard."""

from __future__ import annotations

import json
import logging
import netrc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_shards.atomic import atomic_path
from data_shards.errors import UserError
from train.boards import Board, Histogram, TensorBoard, WandbBoard
from train.lineage import append_lineage, code_version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Where a run can be looked at."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where a W&B key is found in the environment or in .netrc, else offline."""
    project: str = "dipole"
    """The W&B project."""
    group: str = ""
    """Runs of one job stand together under it."""
    tensorboard: bool = False
    """Write event files for TensorBoard too, in the run folder."""
    log_every_steps: int = 1
    """Steps between two logged ones."""
    details_every_steps: int = 20
    """Steps between two that show histograms of scores, alignment and uniformity too."""

    def __post_init__(self) -> None:
        """Check the interval."""
        for name in ("log_every_steps", "details_every_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"tracker.{name} must be at least 1, came {getattr(self, name)}")


class Tracker:
    """Writes events; only rank 0 has one that does."""

    def __init__(
        self,
        path: Path,
        config: TrackerConfig,
        *,
        run_id: str,
        job_type: str,
        resolved: dict[str, Any],
        active: bool,
        resume_step: int = 0,
    ) -> None:
        """Open the file and the boards.

        Args:
            path: `metrics.jsonl` in the run folder.
            config: of the boards.
            run_id: kept over restarts, so that a resumed run is one run.
            job_type: train, mine, …
            resolved: the config with the dataset ids, as W&B shows it; the code's version is added.
            active: whether this process writes at all.
            resume_step: the step that the run goes on with.

        Raises:
            UserError: TensorBoard is asked for and not installed.
        """
        self._active = active
        self._boards: list[Board] = []
        if not active:
            return
        self._root = path.parent
        self._root.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8", buffering=1)
        if config.tensorboard:
            self._boards.append(TensorBoard(self._root, resume_step=resume_step))
        if (mode := resolve_mode(config.mode)) != "disabled":
            self._boards.append(
                WandbBoard(
                    self._root,
                    project=config.project,
                    group=config.group,
                    mode=mode,
                    run_id=run_id,
                    job_type=job_type,
                    config={**resolved, "code": code_version()},
                )
            )

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write one event; numbers and histograms go to the boards too, under `event/name`.

        Args:
            event: step, dev, refresh, …
            step: the optimiser step.
            values: whatever JSON holds. A histogram is `{"histogram": {"counts": […], "edges": […]}}`; two edges are
                those of equal bins.
        """
        if not self._active:
            return
        row = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        flat = dict(_flat(values, f"{event}/"))
        histograms = {name: _histogram(value) for name, value in flat.items() if isinstance(value, dict)}
        numbers = {name: value for name, value in flat.items() if not isinstance(value, dict)}
        self._tell(lambda board: board.log(step, numbers, histograms))

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table on the boards; `metrics.jsonl` has no line of it.

        Args:
            name: such as refresh/sample.
            step: the optimiser step.
            columns: their names.
            rows: numbers, texts or None.
        """
        self._tell(lambda board: board.table(name, step, columns, rows))

    def artifact(self, kind: str, path: Path, *, identity: str, step: int, uses: Mapping[str, str]) -> None:
        """Write down what was made from what: in `lineage.jsonl` always, and on the boards. See `append_lineage`."""
        if not self._active:
            return
        row = append_lineage(self._root, kind, path, identity=identity, step=step, uses=uses)
        if row:
            self._tell(lambda board: board.artifact(kind, path, row))

    def close(self, exit_code: int = 0, why: str = "") -> None:
        """Say on the boards how the run ended, with an alert, and flush.

        Args:
            exit_code: see `train.stops`.
            why: one line, such as the error's message or why it was stopped.
        """
        if self._active:
            self._file.close()
        self._tell(lambda board: board.close(exit_code, why))
        self._boards.clear()

    def _tell(self, what: Callable[[Board], None]) -> None:
        """Tell every board; one that fails is left out from then on: what shows a run must not end it.

        W&B's helper process is killed, for one, when a queue signals every process of a job.
        """
        for board in [*self._boards]:
            try:
                what(board)
            except Exception as error:
                self._boards.remove(board)
                name, cause = type(board).__name__, f"{type(error).__name__}: {error}"
                _log.warning("%s fails (%s) and is told nothing more; metrics.jsonl has everything", name, cause)


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


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | dict[str, Any]]]:
    """Yield numbers and histograms with their full names; what else there is stays in the file alone."""
    for name, value in values.items():
        if isinstance(value, dict) and "histogram" in value:
            yield prefix + name, value["histogram"]
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def _histogram(value: Mapping[str, Any]) -> Histogram:
    counts, edges = np.asarray(value["counts"], dtype=np.int64), np.asarray(value["edges"], dtype=np.float64)
    return counts, np.linspace(edges[0], edges[-1], len(counts) + 1) if len(edges) == 2 else edges


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
