"""The scripts of a launch: plain bash, one a job, each of which can be read and submitted by hand."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.clusters.folder import Kind
from launch.clusters.jobs import Job
from launch.config import JobConfig

_TEMPLATES = Path(__file__).parents[1] / "templates"


def job_script(config: JobConfig, job: Job, *, kind: Kind, folder: Path) -> str:
    """Return the script of a job.

    Args:
        config: of the launch.
        job: what it runs.
        kind: where.
        folder: the launch folder.
    """
    own = folder / f"{job.name}.sh"
    return _fill(
        "job.sh.j2",
        name=job.name,
        title=f"{job.name} of launch {folder.name}",
        kind=kind,
        by_hand=f"{'sbatch' if kind == 'slurm' else 'bash'} {shlex.quote(str(own))}",
        folder=str(folder),
        run=config.run.out if job.name == "train" else None,
        directives=slurm_directives(config, job, folder) if kind == "slurm" else [],
        secrets_file=config.launch.secrets_file,
        prologue=config.launch.prologue,
        venv=_venv(config),
        env=[tuple(row.split("=", 1)) for row in config.launch.env],
        nodes=job.nodes if kind == "slurm" else 1,
        done=str(job.done) if job.done else None,
        command=shlex.join(job.words),
        requeues=config.slurm.requeues,
    )


def chain_script(kind: Kind, folder: Path, jobs: Sequence[Job]) -> str:
    """Return the script that runs all jobs of a launch on one machine."""
    return _fill(
        "chain.sh.j2",
        title=f"launch {folder.name}",
        kind=kind,
        script=str(folder / "all.sh"),
        folder=str(folder),
        jobs=[job.name for job in jobs],
    )


def slurm_directives(config: JobConfig, job: Job, folder: Path) -> list[str]:
    """Return the `#SBATCH` lines of a job, without that word."""
    asked = config.slurm
    lines = [
        f"--job-name={_label(config)}-{job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={asked.cpus_per_task}",
        f"--time={asked.time_limit}",
        f"--output={folder}/logs/{job.name}-%j.log",
        "--open-mode=append",  # a job that was queued again goes on in the same log
        "--requeue",
        f"--signal=B:USR1@{asked.warn_s}",  # to this script alone, which passes it on
        f"--comment={folder.name}",
    ]
    if asked.gpus_per_node and job.on_devices:
        lines.append(f"--gpus-per-node={asked.gpus_per_node}")
    named = {"partition": asked.partition, "account": asked.account, "qos": asked.qos, "mem": asked.memory}
    lines += [f"--{flag}={value}" for flag, value in named.items() if value]
    return [_quoted(line) for line in [*lines, *asked.extra_flags]]


def _fill(template: str, **values: object) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # these are shell scripts: what is a value goes through `quote`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(template).render(**values)


def _venv(config: JobConfig) -> str:
    return str(Path(config.launch.venv).expanduser()) if config.launch.venv else sys.prefix


def _label(config: JobConfig) -> str:
    return config.launch.name or Path(config.run.out).name


def _quoted(directive: str) -> str:
    """Quote the value of a directive where sbatch would cut it at a blank."""
    flag, equals, value = directive.partition("=")
    return f'{flag}{equals}"{value}"' if " " in value else directive
