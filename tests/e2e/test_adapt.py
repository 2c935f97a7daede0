"""`dipole train` with the `adapt` stage: killed in it and behind it, the run is the one that was left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.config import load_config
from launch.runs import prepare_run
from tests.e2e.conftest import dipole, tiny_toml
from tests.e2e.watching import Watched, losses
from tests.resuming import assert_same_weights, copy_run
from train.tracker import read_metrics

pytestmark = pytest.mark.distributed
ADAPT_STEPS = 12
_ADAPT = f"[adapt]\nsteps = {ADAPT_STEPS}\nbatch_size = 16\ntokens_per_chunk = 128\nlearning_rate = 1e-3"


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is ready to begin: all others go on with copies of it, from the same weights.

    One rank, to save time; several are in the distributed tests.
    """
    folder = tmp_path_factory.mktemp("start")
    (folder / "adapt.toml").write_text(tiny_toml(data, [_ADAPT]))
    config = load_config(folder / "adapt.toml", [f"--run.out={folder / 'run'}", "--run.ranks=1"])
    return prepare_run(config, resume=False).root


def adapted(run: Path) -> list[dict[str, Any]]:
    """Return the stage's rows; a step that stands twice would be two."""
    return [row for row in read_metrics(run / "metrics.jsonl") if row["event"] == "adapt"]


@pytest.fixture(scope="module")
def uninterrupted(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = copy_run(start, tmp_path_factory.mktemp("uninterrupted") / "run")
    answer = dipole("train", run / "config.toml", "--resume")
    assert (answer["steps"], answer["finished"]) == (12, True)
    return run


def test_killed_in_the_stage_and_again_behind_it_the_run_is_the_one_that_was_not(
    start: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = copy_run(start, tmp_path / "run")
    _kill(run, lambda: len(adapted(run)) >= 6)
    assert not (run / "snapshots" / "adapted").exists(), "it should have been killed in the stage"
    _kill(run, lambda: len(losses(run)) >= 3)
    written = (run / "snapshots" / "adapted" / "model.safetensors").stat().st_mtime_ns
    answer = dipole("train", run / "config.toml", "--resume")
    assert answer["steps"] == 12
    assert (run / "snapshots" / "adapted" / "model.safetensors").stat().st_mtime_ns == written, "not adapted again"
    _assert_same(run, uninterrupted)


def _kill(run: Path, condition: Callable[[], bool]) -> None:
    """Go on with the run, and kill both the rank and the command."""
    watched = Watched("train", run / "config.toml", "--resume")
    try:
        watched.wait_for(condition)
        watched.rank(0).kill()
        watched.process.kill()
        watched.wait()
        assert watched.ends_within(60) == []
    finally:
        watched.clean_up()


def _assert_same(run: Path, wanted: Path) -> None:
    names = ("step", "loss", "accuracy", "grad_norm")
    assert [[row[name] for name in names] for row in adapted(run)] == [
        [row[name] for name in names] for row in adapted(wanted)
    ]
    assert [row["step"] for row in adapted(run)] == list(range(-ADAPT_STEPS, 0))
    assert losses(run) == losses(wanted)
    assert sorted(losses(run)) == list(range(12))
    for snapshot in ("adapted", "final"):
        assert_same_weights(run / "snapshots" / snapshot, wanted / "snapshots" / snapshot)
    assert not (run / "adapt" / "checkpoints").exists()
