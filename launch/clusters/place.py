"""Where a launch runs: what this machine, Slurm and Ray have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from launch.clusters.folder import Launch

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "LOST")
"""What the state of a job begins with that will not run any more. LOST: nobody knows it, and it left no word."""
CHAIN = "all"
"""The script that runs all jobs one after another."""


class Place(Protocol):
    """One of them. All errors are `UserError`s of one line."""

    def check(self, made: Launch) -> None:
        """Refuse what would not be taken, before anything is submitted."""

    def submit(self, made: Launch) -> Launch:
        """Submit all jobs; each id is saved before the next one is asked for."""

    def rows(self, made: Launch) -> list[dict[str, Any]]:
        """Return `state`, and what else is known, of each job."""

    def cancel(self, made: Launch) -> None:
        """Tell what runs to stop, and take the rest out."""


def ended(code: int | None, cancelled: bool) -> str:
    """Say how a job ended, by what its script wrote down."""
    if cancelled and code != 0:
        return "CANCELLED"
    if code is None:
        return "LOST"
    return "COMPLETED" if code == 0 else "FAILED"


def is_over(row: Mapping[str, Any]) -> bool:
    """Whether a job will not run any more."""
    return str(row["state"]).startswith(OVER)


def chain_rows(made: Launch, state: str) -> list[dict[str, Any]]:
    """Return the rows of jobs that one process runs one after another.

    Args:
        made: their launch.
        state: of the process: PENDING, RUNNING, or anything else for one that has ended.
    """
    rows: list[dict[str, Any]] = []
    for job in made.jobs:
        code = made.exit_code(job.name)
        if code is not None or state not in ("PENDING", "RUNNING"):
            rows.append({"state": ended(code, made.cancelled)})
        elif state == "RUNNING" and all(row["state"] == "COMPLETED" for row in rows):
            rows.append({"state": "RUNNING"})
        else:
            rows.append({"state": "WAITING"})
    return rows
