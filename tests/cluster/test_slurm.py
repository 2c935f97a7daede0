"""`dipole launch slurm` on a real Slurm of two nodes: what a queue does to a training, and what comes out of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import hurry, job_id, jobs, launch, state, steps, wait_for
from tests.e2e.conftest import dipole

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.usefixtures("slurm")]


def final_weights(run: Path) -> bytes:
    return (run / "snapshots/final/model.safetensors").read_bytes()


def as_in(reference: Path) -> str:
    return f"--encoder.model={reference / 'snapshots/initial'}"


def over(launched: Path) -> bool:
    hurry(launched)
    return state(launched) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def test_a_chain_of_jobs_runs_on_two_nodes(toml: Path, uninterrupted: Path, tmp_path: Path) -> None:
    launched = launch(
        toml, tmp_path, "--run.nodes=2", "--launch.jobs=train,embed,index,evaluate", as_in(uninterrupted)
    )
    log = dipole("launch", "logs", launched, "-f")  # follows until all are over
    assert [path for path in log["logs"] if "/evaluate-" in path]
    rows = jobs(launched)
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(rows, "COMPLETED")
    assert [*rows] == ["train", "embed", "index", "evaluate"]
    assert rows["train"]["nodes"] == "n[1-2]"
    assert steps(tmp_path / "run") == steps(uninterrupted)
    assert final_weights(tmp_path / "run") == final_weights(uninterrupted)
    assert json.loads((launched / "evaluate.json").read_text())["metrics"]["model"]["ndcg@10"] > 0
    again = dipole("launch", "cancel", launched, expect=2)
    assert "is over already" in again["stderr"]


@pytest.mark.slow
def test_a_time_limit_requeues_as_often_as_it_takes(toml: Path, tmp_path: Path) -> None:
    # Slurm's own clock, which signals within a minute of what is asked; evaluating at every step makes the run long.
    words = ["--slurm.time_limit=2", "--slurm.warn_s=80", "--train.steps=200", "--dev.every_steps=1"]
    launched = launch(toml, tmp_path, "--run.nodes=2", *words)
    wait_for(lambda: over(launched), 500, launched)
    row = jobs(launched)["train"]
    assert row["state"] == "COMPLETED", row
    assert int(row["restarts"]) >= 1
    assert [step for step, _ in steps(tmp_path / "run")] == [*range(200)]


def test_the_batch_signal_requeues_once_and_resumes(toml: Path, uninterrupted: Path, tmp_path: Path) -> None:
    launched = launch(toml, tmp_path, "--run.nodes=2", as_in(uninterrupted))
    wait_for(lambda: len(steps(tmp_path / "run")) > 20, 120, launched)
    number = job_id(launched)
    subprocess.run(["scancel", "--batch", "--signal=USR1", number], check=True)  # what a time limit sends
    wait_for(lambda: "back into the queue" in (launched / f"logs/train-{number}.log").read_text(), 120, launched)
    wait_for(lambda: over(launched), 240, launched)
    row = jobs(launched)["train"]
    assert (row["state"], row["restarts"]) == ("COMPLETED", "1"), row
    assert steps(tmp_path / "run") == steps(uninterrupted)
    assert final_weights(tmp_path / "run") == final_weights(uninterrupted)


def test_a_preempted_job_resumes(toml: Path, uninterrupted: Path, tmp_path: Path) -> None:
    launched = launch(toml, tmp_path, "--run.nodes=2", as_in(uninterrupted))
    wait_for(lambda: len(steps(tmp_path / "run")) > 20, 120, launched)
    words = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--cpus-per-task=2", "--output=/dev/null"]
    subprocess.run([*words, "--wrap=sleep 1"], check=True, capture_output=True)
    number = job_id(launched)
    wait_for(lambda: "back into the queue" in (launched / f"logs/train-{number}.log").read_text(), 120, launched)
    wait_for(lambda: over(launched), 240, launched)
    row = jobs(launched)["train"]
    assert (row["state"], row["restarts"]) == ("COMPLETED", "1"), row
    assert steps(tmp_path / "run") == steps(uninterrupted)


def test_what_is_cancelled_stays_cancelled(toml: Path, tmp_path: Path) -> None:
    launched = launch(toml, tmp_path, "--run.nodes=2", "--launch.jobs=train,embed")
    wait_for(lambda: len(steps(tmp_path / "run")) > 20, 120, launched)
    answer = dipole("launch", "cancel", launched)
    assert answer["launch"] == launched.name
    wait_for(lambda: state(launched) == "CANCELLED" and state(launched, "embed") == "CANCELLED", 120, launched)
    hurry(launched)
    number = job_id(launched)
    wait_for(lambda: "ended with exit code" in (launched / f"logs/train-{number}.log").read_text(), 120, launched)
    assert "back into the queue" not in (launched / f"logs/train-{number}.log").read_text()
    rows = jobs(launched)
    assert [row["state"] for row in rows.values()] == ["CANCELLED", "CANCELLED"]
    assert [*(tmp_path / "run/checkpoints").glob("step-*")]  # so that a person may go on


def test_a_dead_node_requeues_the_job(toml: Path, uninterrupted: Path, tmp_path: Path, slurm: Path) -> None:
    launched = launch(toml, tmp_path, "--run.nodes=2", as_in(uninterrupted))
    wait_for(lambda: len(steps(tmp_path / "run")) > 20, 120, launched)
    kill_node(slurm, "n2")
    try:
        wait_for(lambda: state(launched) != "RUNNING", 180, launched)
    finally:
        subprocess.run(["slurmd", "-N", "n2"], check=True)
    wait_for(lambda: over(launched), 240, launched)
    row = jobs(launched)["train"]
    assert row["state"] == "COMPLETED", row
    assert int(row["restarts"]) >= 1
    assert steps(tmp_path / "run") == steps(uninterrupted)


def kill_node(slurm: Path, node: str) -> None:
    """Kill a node's daemon, its step daemons and all that they have started."""
    import psutil

    daemon = psutil.Process(int((slurm / f"slurmd.{node}.pid").read_text()))
    steps_there = [
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "slurmstepd" and node in " ".join(open_files(process))
    ]
    for process in (daemon, *steps_there):
        for child in (*process.children(recursive=True), process):
            if child.is_running():
                child.kill()


def open_files(process: object) -> list[str]:
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        return [file.path for file in process.open_files()] + process.cmdline() + [process.cwd()]
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--slurm.partition=nowhere", "set slurm.partition to one of: batch; urgent"),
        ("--slurm.gpus_per_node=9", "GPUs of each"),
        ("--slurm.extra=--nonsense", "unrecognized option"),
    ],
)
def test_what_slurm_refuses_is_one_line_and_nothing_is_submitted(
    toml: Path, tmp_path: Path, override: str, message: str
) -> None:
    words = [f"--launch.folder={tmp_path / 'launches'}", f"--run.out={tmp_path / 'run'}", override]
    answer = dipole("launch", "slurm", toml, *words, expect=2)
    assert message in answer["stderr"], answer["stderr"]
    assert answer["stderr"].strip().count("\n") == 0
    assert not list((tmp_path / "launches").glob("*"))


def test_no_planted_key_is_written_anywhere(toml: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("WANDB_API_KEY=planted-5f0c\nAWS_SECRET_ACCESS_KEY=planted-77aa\n")
    keys.chmod(0o600)
    probe = f'echo "keys of $WANDB_API_KEY" | sha256sum > {tmp_path / "seen"}'
    launched = launch(
        toml, tmp_path, f"--launch.secrets_file={keys}", f"--launch.prologue={probe}", "--train.steps=4"
    )
    wait_for(lambda: over(launched), 240, launched)
    assert state(launched) == "COMPLETED"
    wanted = subprocess.run(["sha256sum"], input="keys of planted-5f0c\n", capture_output=True, text=True).stdout
    assert (tmp_path / "seen").read_text() == wanted  # the job did have it
    for folder in (launched, tmp_path / "run"):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"planted-" not in path.read_bytes(), path
    assert os.path.exists(launched / "code.diff") or "commit" in (launched / "launch.json").read_text()
