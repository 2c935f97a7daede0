"""Makes a launch: folder, scripts, submission; then tells how it stands, and ends it."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.atomic import atomic_path
from data_shards.errors import UserError
from launch.clusters import here, slurm
from launch.clusters.code import snapshot_code
from launch.clusters.folder import Kind, Launch, LaunchedJob, new_folder
from launch.clusters.jobs import absolute, check_here, jobs_of
from launch.clusters.scripts import chain_script, job_script
from launch.config import JobConfig, to_toml
from launch.metrics_tail import last_rows
from train.run_folder import RunFolder

_CHAIN = "all"
_STOP_S = 120.0


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
        if kind == "slurm":
            for job in jobs:
                slurm.submit(made.script(job.name), test_only=True)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return _submit(made)


def _submit(made: Launch) -> Launch:
    """Submit all jobs; each id is written down before the next one is asked for."""
    if made.kind == "local":
        number = here.start(made.script(_CHAIN), made.folder / "logs" / "launch.log")
        made = replace(made, jobs=tuple(replace(job, id=number) for job in made.jobs))
        made.save()
        return made
    after = None
    for job in made.jobs:
        after = slurm.submit(made.script(job.name), after=after)
        made = made.with_id(job.name, after)
        made.save()
    return made


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
    ids = [job.id for job in made.jobs if job.id]
    asked = slurm.job_states(ids) if made.kind == "slurm" else {}
    rows: list[dict[str, Any]] = []
    for job in made.jobs:
        code = made.exit_code(job.name)
        if made.kind == "slurm":
            known = asked.get(job.id or "", {})
            state = known.get("state") or _ended(code, made.cancelled)
            row = {"job": job.name, "id": job.id, "state": state, "exit_code": code}
            row |= {name: value for name, value in known.items() if name != "state" and value not in ("", "None")}
        else:
            row = {"job": job.name, "id": job.id, "state": _state_here(made, job, rows), "exit_code": code}
        rows.append(row)
    return rows


def is_over(made: Launch) -> bool:
    """Whether no job of a launch will run any more."""
    states = [row["state"] for row in job_rows(made)]
    return all(state not in ("WAITING", "RUNNING", "UNKNOWN") and slurm.is_over(state) for state in states)


def cancel(made: Launch) -> Launch:
    """End all jobs of a launch; what runs is told to stop, with a checkpoint, and nothing of it is queued again.

    Raises:
        UserError: it is over, or does not stop.
    """
    if is_over(made):
        raise UserError(f"launch {made.name} is over already; nothing is left to cancel")
    made = replace(made, cancelled=True)
    made.save()  # first: what is cancelled must not be taken for lost should this command die
    ids = [job.id for job in made.jobs if job.id]
    if made.kind == "slurm":
        slurm.cancel(ids)
    elif ids and not here.stop(ids[0], within_s=_STOP_S):
        raise UserError(f"process {ids[0].partition('@')[0]} has not stopped in {_STOP_S:.0f} s; end it with kill -9")
    return made


def _scripts(config: JobConfig, kind: Kind, folder: Path) -> dict[str, str]:
    jobs = jobs_of(config, folder / "config.toml")
    if kind == "local" and config.run.nodes > 1:
        raise UserError(f"run.nodes is {config.run.nodes}, and `launch local` has this machine alone; set it to 1")
    scripts: dict[str, str] = {job.name: job_script(config, job, kind=kind, folder=folder) for job in jobs}
    return {**scripts, _CHAIN: chain_script(folder, jobs)} if kind == "local" else scripts


def _name(config: JobConfig) -> str:
    return config.launch.name or Path(config.run.out).name


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o755 if path.suffix == ".sh" else 0o644)


def _ended(code: int | None, cancelled: bool) -> str:
    """Say how a job ended that the cluster has forgotten."""
    if cancelled:
        return "CANCELLED"
    if code is None:
        return "UNKNOWN"
    return "COMPLETED" if code == 0 else "FAILED"


def _state_here(made: Launch, job: LaunchedJob, before: list[dict[str, Any]]) -> str:
    code = made.exit_code(job.name)
    if code is not None:
        return _ended(code, made.cancelled and code != 0)
    if job.id is None or not here.is_running(job.id):
        return "CANCELLED" if made.cancelled else "FAILED"  # killed before it could write its exit code
    return "RUNNING" if all(row["state"] == "COMPLETED" for row in before) else "WAITING"


def _progress(made: Launch) -> dict[str, Any]:
    """Return the last that the run has logged."""
    found: dict[str, Any] = {"folder": made.run}
    for row in last_rows(RunFolder(Path(made.run)).metrics):
        if row["event"] == "step":
            found |= {"step": row["step"] + 1, "steps": row["steps"], "loss": row["loss"]}
        elif row["event"] == "dev":
            found |= {"dev": {name: value for name, value in row.items() if "@" in name}}
    return found
