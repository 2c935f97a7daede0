"""`dipole launch ray` on a real Ray cluster of this machine that wants a token."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import clean_environment, config as config, dipole
from tests.e2e.test_launch import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of a running cluster, with the address of its dashboard under ADDRESS."""
    folder = tmp_path_factory.mktemp("r")
    port, dashboard = free_port(), free_port()
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    words += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    words += ["--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
    words += [f"--dashboard-agent-listen-port={free_port()}"]  # its default may be another cluster's on this machine
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean_environment() | environment
        )
    client = {**environment, "ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        wait_for(lambda: process.poll() is not None or answers(client), 180)
        assert process.poll() is None, (folder / "log").read_text()
        yield client
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for member in family:
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


def answers(client: dict[str, str]) -> bool:
    code = "import sys; from ray.job_submission import JobSubmissionClient as C; C(sys.argv[1]).list_jobs()"
    words = [sys.executable, "-c", code, client["ADDRESS"]]
    return subprocess.run(words, capture_output=True, env=clean_environment() | client).returncode == 0


def test_a_run_on_a_ray_cluster(cluster: dict[str, str], config: Path, tmp_path: Path) -> None:
    places = [f"--launch.folder={tmp_path / 'launches'}", f"--run.out={tmp_path / 'run'}"]
    words = [*places, f"--ray.address={cluster['ADDRESS']}", "--launch.jobs=train,embed", "--embed.ray_address=auto"]
    told = dipole("launch", "ray", config, *words, expect=2, environment={"RAY_AUTH_MODE": "disabled"})["stderr"]
    assert re.search(r"refuses or does not answer: .+; check ray\.address", told), told
    assert not list((tmp_path / "launches").glob("*"))

    launched = Path(dipole("launch", "ray", config, *words, environment=cluster)["folder"])

    def states() -> list[str]:
        return [row["state"] for row in dipole("launch", "status", launched, environment=cluster)["jobs"]]

    deadline = time.monotonic() + 200
    while (found := states()) != ["COMPLETED", "COMPLETED"]:
        logs = "\n".join(path.read_text() for path in sorted(launched.glob("logs/*")))
        assert set(found) <= {"WAITING", "RUNNING", "COMPLETED"}, logs
        assert time.monotonic() < deadline, logs
        time.sleep(0.5)
    assert (tmp_path / "run/embeddings/embedding_set.json").exists()
    assert "is over already" in dipole("launch", "cancel", launched, expect=2, environment=cluster)["stderr"]
    for path in launched.rglob("*"):
        assert not path.is_file() or cluster["RAY_AUTH_TOKEN"].encode() not in path.read_bytes(), path


def test_a_cancelled_one_stops(cluster: dict[str, str], config: Path, tmp_path: Path) -> None:
    places = [f"--launch.folder={tmp_path / 'launches'}", f"--run.out={tmp_path / 'run'}"]
    words = [*places, f"--ray.address={cluster['ADDRESS']}", "--train.steps=4000"]
    launched = Path(dipole("launch", "ray", config, *words, environment=cluster)["folder"])
    wait_for(lambda: dipole("launch", "status", launched, environment=cluster)["run"].get("step", 0) > 1, 200)
    dipole("launch", "cancel", launched, environment=cluster)
    wait_for(
        lambda: dipole("launch", "status", launched, environment=cluster)["jobs"][0]["state"] == "CANCELLED", 120
    )
    assert [*(tmp_path / "run/checkpoints").glob("step-*")]  # from which it can go on
