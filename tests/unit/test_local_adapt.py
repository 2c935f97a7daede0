"""The two stages of a training, one after the other. Real processes stand in for the ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch import local
from launch.children import Child
from launch.config import RunConfig, load_config
from launch.failures import TrainingFailedError
from launch.local import Outcome, train_here
from train.run_folder import RunFolder
from train.stops import BEGAN

# `sys.argv[1]` is the run folder. What each does is written down, so that the order can be seen.
BEGIN = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(sys.argv[1])
def event(name):
    with open(root / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"event": name, "time": time.time()}) + "\\n")
"""
ADAPT = BEGIN + 'event("adapt"); (root / "snapshots" / "adapted").mkdir(parents=True)'
TRAIN = BEGIN + 'event("step"); (root / "done.json").write_text(json.dumps({"steps": 9}))'
STOPPABLE = (
    BEGIN
    + """
def stop(*_):
    (root / "stopped.json").write_text(json.dumps({"stage": "adapt", "step": 3, "of": 9}))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
event("adapt")
time.sleep(60)
"""
)
# Asked in its last step, so that it finishes instead.
FINISHING = BEGIN + 'signal.signal(signal.SIGTERM, signal.SIG_IGN); event("adapt"); time.sleep(1)\n' + ADAPT


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def go(run: RunFolder, monkeypatch: pytest.MonkeyPatch, adapt: str, train: str = TRAIN, **options: Any) -> Outcome:
    def start(run: RunFolder, config: RunConfig, *stage: str, **others: object) -> Child:
        script = adapt if stage == ("adapt",) else train
        command = [sys.executable, "-c", script, str(run.root)]
        return Child("ranks", command, log=run.logs / "ranks.log", environment={})

    monkeypatch.setattr(local, "prepare_run", lambda config, *, resume: run)
    monkeypatch.setattr(local, "_start_ranks", start)
    return train_here(load_config(None, ["--adapt.steps=4"]), **options)


def events(run: RunFolder) -> list[str]:
    return [json.loads(line)["event"] for line in run.metrics.read_text().splitlines()]


def stop_at_once(row: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_stage_comes_first_and_then_training(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[str] = []
    outcome = go(run, monkeypatch, ADAPT, on_event=lambda row: rows.append(row["event"]))
    assert outcome == Outcome(run=run, finished=True, step=9, stage="train")
    assert rows == ["adapt", "step"]


def test_with_its_snapshot_there_the_stage_is_behind(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.adapted.mkdir(parents=True)
    assert go(run, monkeypatch, "raise SystemExit('adapted twice')").finished
    assert events(run) == ["step"]


def test_stopped_in_the_stage_training_does_not_begin(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = go(run, monkeypatch, STOPPABLE, on_event=stop_at_once)
    assert outcome == Outcome(run=run, finished=False, step=3, stage="adapt")
    assert events(run) == ["adapt"]


def test_asked_to_stop_as_the_stage_ends_training_does_not_begin(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = go(run, monkeypatch, FINISHING, on_event=lambda row: stop_at_once(row) if row else None)
    assert outcome == Outcome(run=run, finished=False, step=0, stage="train")
    assert json.loads(run.stopped.read_text()) == {"step": 0, "reason": "signal SIGTERM"}
    assert "step" not in events(run)


def test_the_ranks_of_both_stages_are_told_when_the_command_began(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit is the command's, not each stage's own."""
    told = []
    monkeypatch.setattr(
        local, "Child", lambda *_, environment, log, **others: told.append((log.name, environment[BEGAN]))
    )
    config = load_config(None, [])
    local._start_ranks(run, config, "adapt")
    local._start_ranks(run, config)
    began = str(psutil.Process().create_time())
    assert told == [("adapt.log", began), ("train.log", began)]


def test_a_stage_that_fails_is_the_end(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingFailedError, match=r"ended \(exit code 3\)"):
        go(run, monkeypatch, "raise SystemExit(3)")
    assert not run.metrics.exists()
