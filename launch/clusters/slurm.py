"""Slurm by its own clients: submit, ask, cancel. Each of its errors becomes one line with what to do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from launch.clusters.folder import Launch
from launch.clusters.place import ended

_TIMEOUT_S = 60


class Slurm:
    """Jobs of Slurm: see `Place`."""

    def check(self, made: Launch) -> None:
        """Ask Slurm whether it would take each script."""
        for job in made.jobs:
            submit(made.script(job.name), test_only=True)

    def submit(self, made: Launch) -> Launch:
        """Submit each job to start once the one before it has ended well."""
        after = None
        for job in made.jobs:
            after = submit(made.script(job.name), after=after)
            made = made.with_id(job.name, after)
            made.save()
        return made

    def rows(self, made: Launch) -> list[dict[str, Any]]:
        """See `Place`."""
        asked = job_states([job.id for job in made.jobs if job.id])
        rows = []
        for job in made.jobs:
            known = asked.get(job.id or "", {})
            row = {"state": known.pop("state", "") or ended(made.exit_code(job.name), made.cancelled)}
            rows.append(row | {name: value for name, value in known.items() if value not in ("", "None")})
        return rows

    def cancel(self, made: Launch) -> None:
        """See `Place`."""
        cancel([job.id for job in made.jobs if job.id])


def submit(script: Path, *, after: str | None = None, test_only: bool = False) -> str:
    """Submit a script.

    Args:
        script: with its `#SBATCH` lines.
        after: id of the job that has to end well first.
        test_only: only ask Slurm whether it would take it.

    Returns:
        The job's id; empty for a test.

    Raises:
        UserError: Slurm refuses it, or is not here.
    """
    words = ["sbatch", "--parsable"]
    words += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    words += ["--test-only"] if test_only else []
    done = _run([*words, str(script)])
    if done.returncode:
        raise UserError(_refusal(done.stderr, script))
    return done.stdout.strip().partition(";")[0]  # ID, or ID;CLUSTER


def job_states(ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Ask what became of jobs.

    Returns:
        For each id that Slurm still knows, `state`, `reason`, `nodes`, `restarts` and `time_left`.
    """
    found = {}
    for number in ids:
        done = _run(["scontrol", "show", "job", "-o", number])
        if done.returncode:
            continue  # forgotten, some minutes after its end
        fields = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
        found[number] = {
            "state": fields.get("JobState", "UNKNOWN"),
            "reason": fields.get("Reason", "None"),
            "nodes": fields.get("NodeList", "").replace("(null)", ""),
            "restarts": fields.get("Restarts", "0"),
            "run_time": fields.get("RunTime", ""),
        }
    return found


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs, the last first: one that waits must not start because the one before it has gone.

    Raises:
        UserError: Slurm refuses.
    """
    for number in reversed(ids):
        done = _run(["scancel", number])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UserError(f"scancel {number}: {_first_line(done.stderr)}")


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise UserError(
            f"there is no {words[0]} on this machine; run this where Slurm's clients are, such as a login node, or "
            "add --dry-run to see the scripts"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{words[0]} gave no answer in {_TIMEOUT_S} s; is Slurm's controller up? (`scontrol ping`)"
        ) from None


def _refusal(errors: str, script: Path) -> str:
    """Say why a script was refused, and what there is instead."""
    said = " ".join(line for line in errors.splitlines() if "error" in line.lower()) or _first_line(errors)
    reason = re.sub(r"(sbatch: |error: |allocation failure: |Batch job submission failed: )", "", said).strip()
    if "artition" in reason:
        return f"Slurm refuses {script.name}: {reason}; set slurm.partition to one of: {_partitions('%R')}"
    if "node configuration" in reason or "node count" in reason or "CPU count" in reason:
        return (
            f"Slurm refuses {script.name}: {reason}; check run.nodes, slurm.gpus_per_node, cpus_per_task and memory "
            f"against what there is (partition, nodes, CPUs, GPUs of each): {_partitions('%R %D nodes, %c CPUs, %G')}"
        )
    return f"Slurm refuses {script.name}: {reason}"


def _partitions(form: str) -> str:
    done = _run(["sinfo", "--noheader", "--format", form])
    return "; ".join(dict.fromkeys(line.strip() for line in done.stdout.splitlines())) or "none that sinfo shows"


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]
