"""Invariant 3: killed at any moment and resumed, a run is the run that was never killed, bit for bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from data_shards.negatives import published_versions
from data_shards.reader import PairDataset
from launch.config import load_config
from tests.e2e.conftest import dipole, tiny_toml
from tests.e2e.watching import Watched, losses, steps_logged
from tests.resuming import assert_same_weights, copy_run

pytestmark = [pytest.mark.distributed, pytest.mark.ray]
_MINING = ["[refresh]\nfirst_step = 5\nevery_steps = 3", "[mining]\nmax_relative_score = 1.0", "[workers]\ncount = 1"]


@pytest.fixture(scope="module")
def mined_config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny config with refreshes before steps 5, 8 and 11: versions must be exact too."""
    path = tmp_path_factory.mktemp("config") / "mined.toml"
    path.write_text(tiny_toml(data, _MINING))
    return path


@pytest.fixture(scope="module")
def start(mined_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first steps: all others continue copies of it, from the same weights."""
    run = tmp_path_factory.mktemp("start") / "run"
    watched = Watched("train", mined_config, "--out", run)
    watched.wait_for(lambda: steps_logged(run) >= 1)
    watched.process.send_signal(signal.SIGTERM)
    assert watched.wait()[0] == 75
    return run


@pytest.fixture(scope="module")
def uninterrupted(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, left alone to its end."""
    run = copy_run(start, tmp_path_factory.mktemp("uninterrupted") / "run")
    answer = dipole("train", run / "config.toml", "--resume")
    assert answer["steps"] == 12
    assert published_versions(run / "negatives") == [1, 2, 3]
    return run


def _assert_same(run: Path, wanted: Path) -> None:
    assert losses(run) == losses(wanted)
    assert sorted(losses(run)) == list(range(12))
    assert_same_weights(run / "snapshots" / "final", wanted / "snapshots" / "final")


@pytest.mark.parametrize(
    ("at_step", "victim"),
    [
        (9, "rank"),
        (6, "command"),
        pytest.param(5, "rank", marks=pytest.mark.slow),
        pytest.param(11, "command", marks=pytest.mark.slow),
    ],
)
def test_resume_is_exact_after_kill_9(start: Path, uninterrupted: Path, tmp_path: Path, at_step: int, victim: str):
    run = copy_run(start, tmp_path / "run")
    watched = Watched("train", run / "config.toml", "--resume")
    try:
        watched.wait_for(lambda: steps_logged(run) >= at_step)
        (watched.rank(1) if victim == "rank" else watched.process).kill()
        code, output = watched.wait()
        assert code == (1 if victim == "rank" else -signal.SIGKILL)
        assert victim != "rank" or "training failed: rank 1 was killed by SIGKILL" in output
        assert watched.ends_within(60) == []
    finally:
        watched.clean_up()
    assert not (run / "done.json").exists(), "it should have been killed before its end"
    dipole("train", run / "config.toml", "--resume")
    _assert_same(run, uninterrupted)


@pytest.mark.parametrize("give_back", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_a_killed_miner_is_started_again_and_the_run_is_the_same(uninterrupted: Path, tmp_path: Path, give_back: str):
    """In phases, with the ranks' devices given back to it or not: nobody has to resume anything.

    The run is set back to step 10, and its newest negatives, of step 11, are lost.
    """
    run = copy_run(uninterrupted, tmp_path / "run")
    (run / "done.json").unlink()
    for lost in ("snapshots/final", "checkpoints/step-0000012", "negatives/v000003", "mining"):
        shutil.rmtree(run / lost, ignore_errors=True)
    watched = Watched("train", run / "config.toml", "--resume", f"--refresh.give_back={give_back}")
    try:
        watched.wait_for(lambda: list((run / "mining").rglob("part-*.npy")))
        (miner,) = watched.running("launch.miner")
        assert (give_back == "off") == bool(watched.running("launch.train_worker"))
        miner.kill()
        code, output = watched.wait()
        assert code == 0, output
        assert "the miner ended (exit code -9) and is started again in 1 s" in output
        assert watched.ends_within(10) == []
    finally:
        watched.clean_up()
    _assert_same(run, uninterrupted)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stop_leaves_no_process_and_a_run_that_resumes(
    start: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals
):
    run = copy_run(start, tmp_path / "run")
    watched = Watched("train", run / "config.toml", "--resume")
    try:
        watched.wait_for(lambda: steps_logged(run) >= 6)
        watched.process.send_signal(number)
        code, output = watched.wait()
        assert code == 75, output
        assert f"go on with: dipole train {run / 'config.toml'} --resume" in output
        assert watched.ends_within(10) == []
    finally:
        watched.clean_up()
    dipole("train", run / "config.toml", "--resume")
    _assert_same(run, uninterrupted)


def test_resumed_at_another_world_size_the_order_is_the_same(start: Path, uninterrupted: Path, tmp_path: Path):
    """One rank instead of two: same samples in the same steps, so nearly the same losses (other summation order).

    Dropout is drawn by each rank for itself, so the losses are near, not equal.
    """
    run = copy_run(start, tmp_path / "run")
    answer = dipole("train", run / "config.toml", "--resume", "--ranks", 1)
    assert answer["steps"] == 12
    found, wanted = losses(run), losses(uninterrupted)
    assert found.keys() == wanted.keys()
    assert max(abs(found[step] - wanted[step]) for step in range(4)) < 0.2
    pairs = PairDataset(load_config(run / "config.toml").data.pairs)
    order = pairs.order(batch_size=16, seed=1)
    for step in range(12):
        slices = [order.rank_slice(step, rank, 2).tolist() for rank in range(2)]
        assert slices[0] + slices[1] == order.rank_slice(step, 0, 1).tolist()
