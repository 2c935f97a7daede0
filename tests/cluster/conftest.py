"""A real Slurm of two nodes, started for these tests and ended after them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import data as data, dipole, tiny_toml

_SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
_CLIENTS = ("sbatch", "slurmctld", "slurmd", "munged")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """The folder of a running cluster; `SLURM_CONF` points to it."""
    missing = [name for name in _CLIENTS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("needs root: slurmd starts jobs as their owners")
    folder = Path(tempfile.mkdtemp(prefix="dipole-slurm-"))
    try:
        done = subprocess.run([_SCRIPT, "up", folder], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        os.environ["SLURM_CONF"] = done.stdout.strip()
        yield folder
    finally:
        subprocess.run([_SCRIPT, "down", folder], check=False, timeout=180)
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def toml(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of two ranks on two nodes that takes long enough to be interrupted."""
    path = tmp_path_factory.mktemp("config") / "slurm.toml"
    path.write_text(
        tiny_toml(data, ['[slurm]\ntime_limit = "30"\ncpus_per_task = 2', '[evaluate]\nsplit = "dev"'])
        .replace("steps = 12", "steps = 200")
        .replace("checkpoint_every_steps = 2", "checkpoint_every_steps = 20")
        .replace("every_steps = 6", "every_steps = 60")
    )
    return path


@pytest.fixture(scope="session")
def uninterrupted(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same training on this machine, never stopped.

    Others start from its first snapshot: how a tokenizer is trained is not the same each time.
    """
    run = tmp_path_factory.mktemp("reference") / "run"
    dipole("train", toml, "--out", run, environment=ONE_THREAD)
    return run


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For runs that are compared bit by bit."""


def launch(toml: Path, folder: Path, *overrides: str) -> Path:
    """Launch on Slurm; return the launch folder."""
    words = [f"--launch.folder={folder / 'launches'}", f"--run.out={folder / 'run'}", *overrides]
    answer = dipole("launch", "slurm", toml, "--launch.env=OMP_NUM_THREADS=1", *words)
    return Path(answer["folder"])


def jobs(launched: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of `launch status`, by job."""
    return {row["job"]: row for row in dipole("launch", "status", launched)["jobs"]}


def wait_for(what: Callable[[], Any], seconds: float, launched: Path) -> Any:
    """Wait until something is true, and return it; all logs are shown where it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "\n".join(
            f"== {path}\n{path.read_text()[-3000:]}" for path in sorted(launched.glob("logs/*"))
        )
        time.sleep(0.5)
    return found


def job_id(launched: Path, job: str = "train") -> str:
    """Return a job's id, from the launch folder: much quicker than `launch status`."""
    rows = json.loads((launched / "launch.json").read_text())["jobs"]
    return str(next(row["id"] for row in rows if row["name"] == job))


def state(launched: Path, job: str = "train") -> str:
    """Return a job's state as Slurm has it."""
    number = next(
        row["id"] for row in json.loads((launched / "launch.json").read_text())["jobs"] if row["name"] == job
    )
    done = subprocess.run(["scontrol", "show", "job", "-o", number], capture_output=True, text=True)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word).get("JobState", "GONE")


def hurry(launched: Path) -> None:
    """Let jobs that were queued again start at once: Slurm holds them back for two minutes."""
    for row in json.loads((launched / "launch.json").read_text())["jobs"]:
        if row["id"]:
            subprocess.run(["scontrol", "update", f"jobid={row['id']}", "StartTime=now"], capture_output=True)


def steps(run: Path) -> list[tuple[int, float]]:
    """Return step and loss of every logged step."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [(row["step"], row["loss"]) for row in rows if row["event"] == "step"]
