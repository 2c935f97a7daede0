"""The sections of a config that say where and how its jobs run; `dipole train` reads past them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from data_shards.errors import UserError

JobName = Literal["train", "embed", "index", "evaluate"]
JOB_NAMES: tuple[JobName, ...] = ("train", "embed", "index", "evaluate")
"""In the order in which one needs the other."""

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
_TIME_LIMIT = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})")


@dataclass(frozen=True, kw_only=True)
class LaunchSection:
    """What is launched, and what every job of it finds around it."""

    jobs: tuple[JobName, ...] = ("train",)
    """What is done, each once the one before it has ended well: `train`, `embed`, `index`, `evaluate`."""
    name: str = ""
    """For people, in queues and lists; empty takes the run folder's."""
    folder: str = "launches"
    """Where launch folders are made, on a disk that all nodes share."""
    venv: str = ""
    """The virtual environment on the nodes; empty takes the one that this command runs in."""
    prologue: tuple[str, ...] = ()
    """Shell lines before each job, such as `module load cuda`."""
    env: tuple[str, ...] = ()
    """`NAME=value` for every job: NCCL and fabric settings, caches. No keys: they would stand in the script."""
    secrets_file: str = ""
    """A file of `NAME=value` lines, on the nodes, readable by its owner alone: where jobs take their keys from."""

    def __post_init__(self) -> None:
        """Check the order of the jobs, and that no key is given."""
        if not self.jobs:
            raise UserError(f"launch.jobs is empty; name some of {', '.join(JOB_NAMES)}")
        if list(self.jobs) != sorted(set(self.jobs), key=JOB_NAMES.index):
            raise UserError(
                f"launch.jobs is {', '.join(self.jobs)}; each needs what the one before it makes, so the order is "
                f"{', '.join(JOB_NAMES)}, each once"
            )
        if re.search(r"[^A-Za-z0-9._-]", self.name):
            raise UserError(f"launch.name {self.name!r} may hold letters, digits, dots, dashes and underscores")
        for row in self.env:
            if not _ASSIGNMENT.match(row):
                raise UserError(f"launch.env holds {row!r}, wanted NAME=value")
            name = row.partition("=")[0]
            if _SECRET_NAME.search(name):
                raise UserError(
                    f"launch.env would write {name} into the script; put it into a file that you alone can read and "
                    "name that as launch.secrets_file, or export it where you launch"
                )


@dataclass(frozen=True, kw_only=True)
class SlurmSection:
    """What is asked of Slurm."""

    partition: str = ""
    """Empty takes the cluster's default."""
    account: str = ""
    """Who pays."""
    qos: str = ""
    """Quality of service."""
    time_limit: str = "24:00:00"
    """Of each job, as sbatch takes it. A training that needs longer stops before it, and is queued again."""
    gpus_per_node: int = 0
    """For train and embed."""
    cpus_per_task: int = 1
    """CPUs of each node's part of a job: of all its ranks together."""
    memory: str = ""
    """Of each node, such as `64G`; empty takes the partition's default."""
    warn_s: int = 180
    """Seconds before the time limit at which a job is told to stop: a step, a dev evaluation, a checkpoint."""
    requeues: int = 50
    """How often a job goes back into the queue after a time limit or a preemption; then it fails."""
    extra: str = ""
    """More flags for sbatch, handed on as they are: `--slurm.extra="--constraint=h100 --exclusive"`."""

    def __post_init__(self) -> None:
        """Check numbers and flags."""
        if min(self.gpus_per_node, self.requeues) < 0 or min(self.cpus_per_task, self.warn_s) < 1:
            raise UserError("slurm.gpus_per_node and requeues must be 0 or more, cpus_per_task and warn_s at least 1")
        if not _TIME_LIMIT.fullmatch(self.time_limit):
            raise UserError(f"slurm.time_limit is {self.time_limit!r}, wanted minutes, HH:MM:SS or DAYS-HH:MM:SS")
        if wrong := next((word for word in self.extra_flags if not word.startswith("-")), None):
            raise UserError(f"slurm.extra holds {wrong!r}; write flags and values as one word, such as --qos=high")

    @property
    def extra_flags(self) -> list[str]:
        """The words of `extra`."""
        try:
            return shlex.split(self.extra)
        except ValueError as error:
            raise UserError(f"slurm.extra is {self.extra!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class RaySection:
    """What is asked of a Ray cluster."""

    address: str = "http://127.0.0.1:8265"
    """Of its dashboard."""
    cpus: float = 0.0
    """Of the node that the jobs run on, for training; Ray workers ask for their own. 0 asks for none."""
    gpus: float = 0.0
    """The same of GPUs."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.cpus, self.gpus) < 0:
            raise UserError("ray.cpus and ray.gpus must be 0 or more")
        if not self.address.startswith(("http://", "https://")):
            raise UserError(f"ray.address is {self.address!r}, wanted that of the dashboard: http://HOST:8265")


@dataclass(frozen=True, kw_only=True)
class EmbedSection:
    """The `embed` job of a launch."""

    model: str = ""
    """Folder of the encoder; empty takes what the run ends with."""
    corpus: str = ""
    """What is embedded; empty takes `data.corpus`."""
    out: str = ""
    """Folder of the embedding set; empty makes it in the run folder."""
    workers: int = 1
    """Ray workers."""
    ray_address: str = ""
    """An existing Ray cluster, such as `auto` inside of one; empty starts one on the node for the job."""

    def __post_init__(self) -> None:
        """Check the count."""
        if self.workers < 1:
            raise UserError(f"embed.workers must be at least 1, came {self.workers}")


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """The `evaluate` job of a launch."""

    data: str = ""
    """BEIR folder; empty takes `dev.data`."""
    split: str = "test"
    """Which judgements."""
