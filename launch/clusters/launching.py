"""Makes a launch: folder, scripts, submission."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from data_shards.atomic import atomic_path
from data_shards.errors import UserError
from launch.clusters.code import snapshot_code
from launch.clusters.folder import Kind, Launch, LaunchedJob, new_folder
from launch.clusters.jobs import absolute, check_here, jobs_of
from launch.clusters.place import CHAIN
from launch.clusters.scripts import chain_script, job_script
from launch.clusters.standing import place_of
from launch.config import JobConfig, to_toml


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
