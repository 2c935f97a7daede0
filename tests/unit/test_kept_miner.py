"""A miner that dies is started again, so often and no more. Real processes stand in for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import kept_miner
from launch.children import Child
from launch.kept_miner import KeptMiner
from tests.unit.negatives_helper import publish
from train.cadence import RefreshConfig
from train.run_folder import RunFolder

KILLED = "import os; os.kill(os.getpid(), 9)"
FAILED = "import sys; print('no corpus', flush=True); sys.exit(1)"
IDLE = "import time; time.sleep(60)"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_miner, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def keep(run: RunFolder, scripts: list[str], **options: object) -> tuple[KeptMiner, list[str]]:
    """Return a miner whose lives run these scripts, the last one for ever, and the lives so far."""
    lives: list[str] = []

    def start() -> Child:
        lives.append(scripts[min(len(lives), len(scripts) - 1)])
        return Child("miner", [sys.executable, "-c", lives[-1]], log=run.logs / "miner.log", environment={})

    config = RefreshConfig(**{"first_step": 1, "miner_restarts": 2, **options})  # type: ignore[arg-type]
    return KeptMiner(run, config, start=start), lives


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("way", ["phased", "async"])
def test_a_killed_miner_is_started_again(run: RunFolder, way: str) -> None:
    miner, lives = keep(run, [KILLED, KILLED, IDLE], way=way)
    until(lambda: miner.exit_code() is not None or len(lives) == 3)
    assert miner.exit_code() is None
    miner.end(1)
    assert len(lives) == 3


def test_one_that_is_killed_again_and_again_ends_a_run_in_phases(run: RunFolder) -> None:
    miner, lives = keep(run, [KILLED])
    until(lambda: miner.exit_code() is not None)
    miner.end(0)
    assert (miner.exit_code(), len(lives)) == (-9, 3)


def test_a_version_in_between_shows_that_it_came_further(run: RunFolder) -> None:
    miner, lives = keep(run, [KILLED])
    for version in (1, 2):
        wanted = 2 * version
        while len(lives) < wanted:
            assert miner.exit_code() is None
        publish(run, version)
    until(lambda: miner.exit_code() is not None)
    miner.end(0)
    assert len(lives) > 5


def test_a_failure_of_its_own_is_told_at_once_in_phases(run: RunFolder) -> None:
    miner, lives = keep(run, [FAILED])
    until(lambda: miner.exit_code() is not None)
    assert (miner.exit_code(), len(lives), miner.last_lines()) == (1, 1, "no corpus")
    miner.end(0)


def test_beside_training_the_run_goes_on_without_it(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    miner, lives = keep(run, [FAILED], way="async")
    until(lambda: "training goes on with the negatives it has" in caplog.text or miner.exit_code() is not None)
    assert (miner.exit_code(), len(lives)) == (None, 3)
    assert "ended 3 times in a row (exit code 1)" in caplog.text
    miner.end(0)


def test_asked_to_stop_it_stays_away(run: RunFolder) -> None:
    miner, lives = keep(run, [IDLE])
    miner.ask_to_stop()
    assert miner.wait(20) == -15
    assert miner.exit_code() is None
    assert len(lives) == 1
    miner.end(0)


def test_once_it_has_served_what_was_asked_it_is_done(run: RunFolder) -> None:
    config = RefreshConfig(first_step=1)
    command = [sys.executable, "-c", "pass"]
    start = lambda: Child("miner", command, log=run.logs / "miner.log", environment={})  # noqa: E731
    miner = KeptMiner(run, config, once=True, start=start)
    assert miner.wait(20) == 0
    miner.end(0)
    assert miner.exit_code() == 0
