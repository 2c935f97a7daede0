"""Where a run can be looked at beside its own file: Weights & Biases, TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from train.exit_codes import EXIT_DIVERGED, EXIT_MINING, EXIT_STOPPED

Histogram = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Counts [n] and edges [n + 1]."""

_ENDS = {0: ("finished", "INFO"), EXIT_STOPPED: ("stopped", "WARN"), EXIT_DIVERGED: ("diverged", "ERROR")}


class Board(Protocol):
    """What the tracker needs of one."""

    def log(self, step: int, numbers: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Show one event's values."""

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table."""

    def artifact(self, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        """Show that something was made."""

    def close(self, exit_code: int, why: str) -> None:
        """Say how the run ended, and flush."""


class WandbBoard:
    """One run of Weights & Biases."""

    def __init__(
        self, folder: Path, *, project: str, group: str, mode: str, run_id: str, job_type: str, config: dict[str, Any]
    ) -> None:
        """Begin the run, or go on with it."""
        import wandb

        self._wandb = wandb
        self._job_type = job_type
        self._run = wandb.init(
            project=project,
            group=group or None,
            job_type=job_type,
            id=run_id,
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Resumed offline segments count `_step` from 0 again; the global step does not.
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, step: int, numbers: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Show one event's values over the global step."""
        shown = {name: self._wandb.Histogram(np_histogram=value) for name, value in histograms.items()}
        self._run.log({"global_step": step, **numbers, **shown})

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log it over the global step; it is a file beside the run's."""
        shown = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({"global_step": step, name: shown})

    def artifact(self, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        """Log a new version of the run's artifact of this kind, by reference."""
        made = self._wandb.Artifact(f"{kind}-{self._run.id}", type=kind, metadata=dict(metadata))
        # By reference, and without reading it: a snapshot or a version has its own checksums, and may be large.
        made.add_reference(path.absolute().as_uri(), checksum=False)
        self._run.log_artifact(made, aliases=[f"step-{metadata['step']}"])

    def close(self, exit_code: int, why: str) -> None:
        """Alert, and end the run; one that was stopped is to go on."""
        if exit_code != EXIT_MINING:  # which nobody has to be woken for
            end, level = _ENDS.get(exit_code, ("failed", "ERROR"))
            title = f"{self._job_type} {end}"
            self._run.alert(title, why or title, level=level)
        if exit_code in (EXIT_STOPPED, EXIT_MINING):
            self._run.mark_preempting()  # else it is shown as failed until it is resumed
        self._run.finish(exit_code=exit_code)


class TensorBoard:
    """Event files for TensorBoard, in the run folder."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        """Open a new file beside those of earlier attempts; what they hold of later steps is no longer shown.

        Raises:
            UserError: TensorBoard is not installed.
        """
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        # A checkpoint comes after the dev evaluation of its step, which is not done again and has to stay.
        purge = resume_step + 1 if resume_step else 0
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, numbers: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Add one event's values."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        for name, (counts, edges) in histograms.items():
            middles = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=int(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ middles**2),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add it as text, in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        shown = ("| " + " | ".join("" if cell is None else _cell(cell) for cell in line) + " |" for line in lines)
        self._writer.add_text(name, "\n".join(shown), step)

    def artifact(self, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        """Note it down as text."""
        self._writer.add_text(f"artifact/{kind}", f"{path}: {metadata['id']}", metadata["step"])

    def close(self, exit_code: int, why: str) -> None:
        """Flush."""
        self._writer.close()


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def check_tensorboard() -> None:
    """Refuse where it is not installed.

    Raises:
        UserError: with the fix.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracker.tensorboard needs TensorBoard: pip install 'dipole[tensorboard]'")
