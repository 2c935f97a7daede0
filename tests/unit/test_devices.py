"""Who gets which devices. The GPUs are made up: there is none to be counted where these tests have to pass."""

from __future__ import annotations

import pytest

from data_shards.errors import UserError
from launch import devices
from launch.config import RunConfig, load_config
from launch.devices import Devices, split_devices, threads_per_rank

ASYNC = ["--refresh.way=async", "--refresh.first_step=5"]


@pytest.fixture
def _four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,GPU-5f,7")


def config(*overrides: str) -> RunConfig:
    return load_config(None, list(overrides))


@pytest.mark.usefixtures("_four_gpus")
def test_beside_training_the_miner_has_what_the_ranks_leave() -> None:
    assert split_devices(config(*ASYNC, "--run.ranks=3")) == Devices(
        ranks={"CUDA_VISIBLE_DEVICES": "2,3,GPU-5f"}, miner={"CUDA_VISIBLE_DEVICES": "7"}
    )


@pytest.mark.usefixtures("_four_gpus")
@pytest.mark.parametrize(
    "others",
    [["--refresh.first_step=5"], ["--refresh.way=async"], [*ASYNC, "--workers.address=ray://head:10001"]],
    ids=["phased", "nothing is mined", "on a cluster of its own"],
)
def test_else_everybody_sees_all(others: list[str]) -> None:
    assert split_devices(config(*others, "--run.ranks=4")) == Devices()


@pytest.mark.usefixtures("_four_gpus")
def test_ranks_that_leave_no_gpu_are_refused() -> None:
    message = r'^refresh\.way = "async" needs a GPU for the miner, and run\.ranks = 4 takes all 4; lower run\.ranks'
    with pytest.raises(UserError, match=message):
        split_devices(config(*ASYNC, "--run.ranks=4"))


@pytest.mark.parametrize(
    ("overrides", "threads"),
    [
        (["--run.ranks=2"], 4),
        (["--run.ranks=3"], 2),
        (["--run.ranks=2", *ASYNC, "--workers.count=2", "--workers.threads=2"], 2),
        (["--run.ranks=2", *ASYNC, "--workers.count=8"], 1),
        (["--run.ranks=2", *ASYNC, "--workers.count=2", "--workers.address=auto"], 4),
    ],
)
def test_ranks_leave_the_miner_its_threads(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], threads: int
) -> None:
    monkeypatch.setattr(devices, "has_cuda", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    assert threads_per_rank(config(*overrides)) == threads


def test_a_rank_has_the_threads_that_slurm_gives_and_that_a_person_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_cuda", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert threads_per_rank(config("--run.ranks=8", "--run.nodes=2")) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_per_rank(config("--run.ranks=8", "--run.nodes=2")) == 5
