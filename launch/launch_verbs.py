"""`dipole launch …`: send jobs to a cluster or to the background, and look after them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from launch.clusters.folder import Kind


@dataclass(frozen=True, kw_only=True)
class LaunchLocal:
    """Run the jobs of a config on this machine, in the background; they outlive the terminal.

    What runs is `launch.jobs` of the config, such as `--launch.jobs=train,embed,index,evaluate`. Launched again after
    whatever stopped it, a run goes on where it was.
    """

    config: tyro.conf.Positional[Path]
    """TOML file of the run."""
    dry_run: bool = False
    """Print the scripts; write nothing."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Launch."""
        return _launch(self.config, overrides, "local", dry=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class LaunchSlurm:
    """Submit the jobs of a config to Slurm, each to start once the one before it has ended well.

    A training that meets its time limit or is preempted stops with a checkpoint and is queued again until it is done.
    `[slurm]` and `[launch]` of the config say what is asked for; `--slurm.extra="--FLAG …"` hands on what they lack.
    """

    config: tyro.conf.Positional[Path]
    """TOML file of the run."""
    dry_run: bool = False
    """Print the scripts; write nothing, and ask no cluster."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Launch."""
        return _launch(self.config, overrides, "slurm", dry=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class LaunchRay:
    """Submit the jobs of a config to a Ray cluster, as one job of it.

    They run one after another on a node that Ray chooses; embedding and mining use the whole cluster where
    `workers.address` and `embed.ray_address` are "auto". The launch folder has to be on a disk that all nodes share.
    """

    config: tyro.conf.Positional[Path]
    """TOML file of the run."""
    dry_run: bool = False
    """Print the scripts; write nothing, and ask no cluster."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Launch."""
        return _launch(self.config, overrides, "ray", dry=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class LaunchStatus:
    """How the jobs of a launch stand, and how far its run is."""

    launch: tyro.conf.Positional[str] = "last"
    """Launch folder, its name, or the beginning of it."""
    folder: Path = Path("launches")
    """Where launch folders are."""

    def run(self) -> dict[str, Any]:
        """Ask."""
        from launch.clusters.folder import find_launch
        from launch.clusters.standing import status

        return status(find_launch(self.launch, self.folder))


@dataclass(frozen=True, kw_only=True)
class LaunchLogs:
    """What the jobs of a launch have printed."""

    launch: tyro.conf.Positional[str] = "last"
    """Launch folder, its name, or the beginning of it."""
    folder: Path = Path("launches")
    """Where launch folders are."""
    job: str | None = None
    """One job alone, such as `train`."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Go on until all jobs are over."""

    def run(self) -> dict[str, Any]:
        """Print, and return which files were read."""
        from data_shards.errors import UserError
        from launch.clusters.folder import find_launch
        from launch.clusters.log_tail import follow
        from launch.clusters.standing import all_over

        found = find_launch(self.launch, self.folder)
        names = [job.name for job in found.jobs]
        if self.job is not None and self.job not in names:
            raise UserError(f"launch {found.name} has no job {self.job!r}; it has {', '.join(names)}")
        wanted = [self.job] if self.job else [*names, "launch"]

        def logs() -> list[Path]:
            return [path for name in wanted for path in found.logs(name)]

        for text in follow(logs, lambda: all_over(found), wait=self.follow):
            print(text, end="", flush=True)
        return {"launch": found.name, "logs": [str(path) for path in logs()], "text": ""}


@dataclass(frozen=True, kw_only=True)
class LaunchCancel:
    """End a launch: what runs is told to stop with a checkpoint, and nothing is queued again.

    On Slurm it has the cluster's KillWait for that; where that is short, the newest checkpoint is an older one.
    """

    launch: tyro.conf.Positional[str]
    """Launch folder, its name, the beginning of it, or `last`."""
    folder: Path = Path("launches")
    """Where launch folders are."""

    def run(self) -> dict[str, Any]:
        """Cancel, and return how it stands then."""
        from launch.clusters.folder import find_launch
        from launch.clusters.standing import cancel, status

        return status(cancel(find_launch(self.launch, self.folder)))


@dataclass(frozen=True, kw_only=True)
class LaunchList:
    """All launches, oldest first."""

    folder: Path = Path("launches")
    """Where launch folders are."""

    def run(self) -> dict[str, Any]:
        """List."""
        from launch.clusters.folder import list_launches

        rows = [
            {
                "launch": made.name,
                "kind": made.kind,
                "created": time.strftime("%F %T", time.localtime(made.created)),
                "jobs": [f"{job.name} {job.id}" if job.id else job.name for job in made.jobs],
                "run": made.run,
                **({"cancelled": True} if made.cancelled else {}),
            }
            for made in list_launches(self.folder)
        ]
        return {"folder": str(self.folder), "launches": rows}


def _launch(path: Path, overrides: Sequence[str], kind: Kind, *, dry: bool) -> dict[str, Any]:
    from launch.clusters.launching import dry_run, launch
    from launch.config import load_job_config

    config = load_job_config(path, overrides)
    if dry:
        scripts = dry_run(config, kind)
        return {"scripts": scripts, "text": "\n".join(scripts.values())}
    made = launch(config, kind)
    return {
        "launch": made.name,
        "folder": str(made.folder),
        "jobs": [{"job": job.name, "id": job.id} for job in made.jobs],
        "follow": f"dipole launch logs -f {made.folder}",
    }
