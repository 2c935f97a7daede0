"""Makes a launch: folder, scripts, submission; then tells how it stands, and ends it."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.atomic import atomic_path
from data_shards.errors import UserError
from launch.clusters.code import snapshot_code
from launch.clusters.folder import Kind, Launch, LaunchedJob, new_folder
from launch.clusters.here import Here
from launch.clusters.jobs import absolute, check_here, jobs_of
from launch.clusters.place import CHAIN, Place, is_over
from launch.clusters.ray_jobs import RayJobs
from launch.clusters.scripts import chain_script, job_script
from launch.clusters.slurm import Slurm
from launch.config import JobConfig, to_toml
from launch.metrics_tail import last_rows
from train.run_folder import RunFolder


def dry_run(config: JobConfig, kind: Kind) -> dict[str, str]:
    """Return the scripts that a launch would submit, by name; nothing is written and no cluster is asked."""
    config = absolute(config)
    folder = Path(config.launch.folder).absolute() / f"TIME-{_name(config)}"
    return _scripts(config, kind, folder)


def launch(config: JobConfig, kind: Kind) -> Launch:
    """Write a launch folder and submit its jobs.

    Raises:
        UserError: something is missing, or the cluster refuses; then nothing was submitted. Should the cluster take
            some jobs only, the folder stays and says which.
    """
    config = absolute(config)
    check_here(config)
    folder = new_folder(Path(config.launch.folder).absolute(), _name(config))
    try:
        scripts = _scripts(config, kind, folder)
        for name, text in scripts.items():
            _write(folder / f"{name}.sh", text)
        _write(folder / "config.toml", to_toml(config.of_run))
        _write(folder / "all.toml", to_toml(config))
        jobs = tuple(LaunchedJob(name=name) for name in config.launch.jobs)
        made = Launch(
            folder=folder,
            kind=kind,
            created=time.time(),
            run=config.run.out,
            jobs=jobs,
            code=snapshot_code(folder),
        )
        made.save()
        place_of(kind).check(made)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return place_of(kind).submit(made)


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


def _scripts(config: JobConfig, kind: Kind, folder: Path) -> dict[str, str]:
    jobs = jobs_of(config, folder / "config.toml")
    if kind != "slurm" and config.run.nodes > 1:
        raise UserError(f"run.nodes is {config.run.nodes}, and `launch {kind}` trains on one machine; set it to 1")
    scripts: dict[str, str] = {job.name: job_script(config, job, kind=kind, folder=folder) for job in jobs}
    return scripts if kind == "slurm" else {**scripts, CHAIN: chain_script(kind, folder, jobs)}


def _name(config: JobConfig) -> str:
    return config.launch.name or Path(config.run.out).name


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o755 if path.suffix == ".sh" else 0o644)


def _progress(made: Launch) -> dict[str, Any]:
    """Return the last that the run has logged."""
    found: dict[str, Any] = {"folder": made.run}
    for row in last_rows(RunFolder(Path(made.run)).metrics):
        if row["event"] == "step":
            found |= {"step": row["step"] + 1, "steps": row["steps"], "loss": row["loss"]}
        elif row["event"] == "dev":
            found |= {"dev": {name: value for name, value in row.items() if "@" in name}}
    return found
