"""How a launch stands, and its end. Reads launch folders alone: no config, and so none of the rooms behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from launch.clusters.folder import Kind, Launch
from launch.clusters.here import Here
from launch.clusters.place import Place, is_over
from launch.clusters.ray_jobs import RayJobs
from launch.clusters.slurm import Slurm
from launch.metrics_tail import last_rows
from train.run_folder import RunFolder


def place_of(kind: Kind) -> Place:
    """Return where launches of a kind run."""
    if kind == "slurm":
        return Slurm()
    return RayJobs() if kind == "ray" else Here()


def status(made: Launch) -> dict[str, Any]:
    """Return how each job of a launch stands, and how far the run is."""
    return {
        "launch": made.name,
        "kind": made.kind,
        "folder": str(made.folder),
        "jobs": job_rows(made),
        "run": _progress(made),
    }


def job_rows(made: Launch) -> list[dict[str, Any]]:
    """Return how each job of a launch stands."""
    return [
        {"job": job.name, "id": job.id, "state": row["state"], "exit_code": made.exit_code(job.name), **row}
        for job, row in zip(made.jobs, place_of(made.kind).rows(made), strict=True)
    ]


def all_over(made: Launch) -> bool:
    """Whether no job of a launch will run any more."""
    return all(map(is_over, job_rows(made)))


def cancel(made: Launch) -> Launch:
    """End all jobs of a launch; what runs is told to stop, with a checkpoint, and nothing of it is queued again.

    Raises:
        UserError: it is over, or does not stop.
    """
    if all_over(made):
        raise UserError(f"launch {made.name} is over already; nothing is left to cancel")
    made = replace(made, cancelled=True)
    made.save()  # first: what is cancelled must not be taken for lost should this command die
    place_of(made.kind).cancel(made)
    return made


def _progress(made: Launch) -> dict[str, Any]:
    """Return the last that the run has logged."""
    found: dict[str, Any] = {"folder": made.run}
    for row in last_rows(RunFolder(Path(made.run)).metrics):
        if row["event"] == "step":
            found |= {"step": row["step"] + 1, "steps": row["steps"], "loss": row["loss"]}
        elif row["event"] == "dev":
            found |= {"dev": {name: value for name, value in row.items() if "@" in name}}
    return found
