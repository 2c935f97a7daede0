"""`dipole launch local`: jobs in the background, told to stop, lost, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import clean_environment, command, dipole

pytestmark = pytest.mark.distributed


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def launch(config: Path, folder: Path, *overrides: str) -> Path:
    words = [f"--launch.folder={folder / 'launches'}", f"--run.out={folder / 'run'}"]
    return Path(dipole("launch", "local", config, *words, *overrides)["folder"])


def test_jobs_run_one_after_another_and_are_looked_after(config: Path, tmp_path: Path) -> None:
    launched = launch(config, tmp_path, "--launch.jobs=train,evaluate", "--evaluate.split=dev")
    followed = subprocess.run(
        command("launch", "logs", "-f", "last", "--folder", tmp_path / "launches"),
        capture_output=True,
        text=True,
        timeout=200,
        env=clean_environment(),
    )
    assert "[train " in followed.stdout
    assert "ended with exit code 0" in followed.stdout
    status = dipole("launch", "status", launched.name, "--folder", tmp_path / "launches")
    assert [(row["job"], row["state"]) for row in status["jobs"]] == [
        ("train", "COMPLETED"),
        ("evaluate", "COMPLETED"),
    ]
    assert status["run"]["step"] == status["run"]["steps"] == 12
    assert (launched / "evaluate.json").exists()
    (row,) = dipole("launch", "list", "--folder", tmp_path / "launches")["launches"]
    assert (row["launch"], row["kind"]) == (launched.name, "local")
    # The script stands alone, and knows that nothing is left to do.
    again = subprocess.run(["bash", launched / "train.sh"], capture_output=True, text=True, timeout=100)
    assert "done already" in again.stdout, again.stdout


def test_cancelled_stops_with_a_checkpoint_and_launched_again_goes_on(config: Path, tmp_path: Path) -> None:
    more = "--train.steps=4000"
    launched = launch(config, tmp_path, more, "--launch.jobs=train,evaluate")
    wait_for(lambda: dipole("launch", "status", launched)["run"].get("step", 0) > 3)
    status = dipole("launch", "cancel", launched)
    assert [row["state"] for row in status["jobs"]] == ["CANCELLED", "CANCELLED"]
    assert status["jobs"][0]["exit_code"] == 75
    stopped = dipole("launch", "status", launched)["run"]["step"]
    again = launch(config, tmp_path, more)
    wait_for(lambda: dipole("launch", "status", again)["run"]["step"] > stopped + 2)
    assert [row["state"] for row in dipole("launch", "cancel", again)["jobs"]] == ["CANCELLED"]


def test_a_launch_that_is_killed_outright_is_told(config: Path, tmp_path: Path) -> None:
    launched = launch(config, tmp_path, "--train.steps=4000")
    wait_for(lambda: dipole("launch", "status", launched)["run"].get("step", 0) > 1)
    pid = int(dipole("launch", "status", launched)["jobs"][0]["id"].partition("@")[0])
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        if process.is_running():
            os.kill(process.pid, signal.SIGKILL)
    status = wait_for(lambda: (row := dipole("launch", "status", launched))["jobs"][0]["state"] != "RUNNING" and row)
    assert status["jobs"][0]["state"] == "LOST"
    assert "is over already" in dipole("launch", "cancel", launched, expect=2)["stderr"]


def test_mistakes_are_one_line(config: Path, tmp_path: Path) -> None:
    places = [f"--launch.folder={tmp_path / 'launches'}", f"--run.out={tmp_path / 'run'}"]
    told = dipole("launch", "status", "nothing", "--folder", tmp_path, expect=2)["stderr"]
    assert "holds no launches" in told
    told = dipole("launch", "local", config, *places, "--run.nodes=2", expect=2)["stderr"]
    assert "run.nodes is 2, and `launch local` trains on one machine; set it to 1" in told
    environment = {"PATH": "/usr/bin-nothing", "SLURM_CONF": ""}
    done = subprocess.run(
        command("launch", "slurm", config, *places),
        capture_output=True,
        text=True,
        env=clean_environment() | environment,
        timeout=100,
    )
    assert done.returncode == 2
    assert "there is no sbatch on this machine" in done.stderr
    assert not (tmp_path / "launches").exists() or not list((tmp_path / "launches").glob("*"))
    script = dipole("launch", "slurm", config, *places, "--dry-run", environment={"PATH": "/usr/bin-nothing"})
    assert script["scripts"]["train"].startswith("#!/bin/bash\n#SBATCH --job-name=run-train\n")
    assert not (tmp_path / "launches").exists() or not list((tmp_path / "launches").glob("*"))
