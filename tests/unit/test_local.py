"""Watching over ranks and miner: who failed first is who is named. Real processes stand in for both."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import UserError
from launch import local
from launch.children import Child
from launch.config import RunConfig, load_config
from launch.kept_miner import KeptMiner
from launch.local import Outcome, TrainingFailedError, _killed_rank, train_here
from train.run_folder import RunFolder

# Ranks that stop when asked, with a checkpoint, as the real ones do; `sys.argv[1]` is the run folder.
STOPPABLE = """
import json, signal, sys, time
def stop(*_):
    open(sys.argv[1] + "/stopped.json", "w").write(json.dumps({"step": 3, "of": 9}))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1] + "/metrics.jsonl", "a").write(json.dumps({"event": "step", "time": time.time()}) + "\\n")
time.sleep(60)
"""
FINISH = """
import json, sys, time
open(sys.argv[1] + "/metrics.jsonl", "a").write(json.dumps({"step": 8, "time": time.time()}) + "\\n")
open(sys.argv[1] + "/done.json", "w").write(json.dumps({"steps": 9}))
"""
FAIL = """
import json, sys
row = {"rank": 1, "cause": "ZeroDivisionError: division by zero", "user_error": USER_ERROR, "traceback": "..."}
open(sys.argv[1] + "/failure.json", "w").write(json.dumps(row))
sys.exit(1)
"""
IDLE = "import time; time.sleep(60)"


def train(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, *, ranks: str, miner: str = IDLE, **options: Any
) -> Outcome:
    """Train with scripts in place of the ranks and the miner."""

    def start(name: str, script: str) -> Child:
        log = run.logs / f"{name}.log"
        return Child(name, [sys.executable, "-c", script, str(run.root)], log=log, environment={})

    monkeypatch.setattr(local, "prepare_run", lambda config, *, resume: run)
    monkeypatch.setattr(local, "_start_ranks", lambda run, config, **others: start("training", ranks))
    kept = partial(KeptMiner, start=lambda: start("miner", miner))
    monkeypatch.setattr(local, "KeptMiner", kept)
    return train_here(config(), **options)


def config() -> RunConfig:
    return load_config(None, ["--refresh.first_step=3", "--refresh.miner_restarts=0"])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_run_that_is_done_passes_every_new_event_on(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []
    run.metrics.write_text('{"step": 7, "time": 1.0}\n')
    outcome = train(run, monkeypatch, ranks=FINISH, on_event=rows.append)
    assert outcome == Outcome(run=run, finished=True, step=9)
    assert [row["step"] for row in rows] == [8], "step 7 is of an earlier attempt"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_the_ranks_are_asked_and_the_run_can_be_resumed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stop(row: dict[str, Any]) -> None:
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert train(run, monkeypatch, ranks=STOPPABLE, on_event=stop) == Outcome(run=run, finished=False, step=3)
    assert signal.getsignal(number) == before


def test_a_dead_miner_is_the_cause_even_where_the_ranks_stopped_in_good_order(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for its memory, say: it cannot leave a word. The ranks' checkpoint must not pass for a wanted stop."""
    miner = """
import os, sys, time
print("embedding", flush=True)
while not os.path.exists(sys.argv[1] + "/metrics.jsonl"):
    time.sleep(0.02)
os.kill(os.getpid(), 9)
"""
    with pytest.raises(TrainingFailedError, match=r"^the miner ended \(exit code -9\):\nembedding$"):
        train(run, monkeypatch, ranks=STOPPABLE, miner=miner)
    assert json.loads(run.stopped.read_text())["step"] == 3, "the run can be resumed"


def test_a_failed_rank_is_named_with_its_cause(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingFailedError, match=r"^rank 1: ZeroDivisionError: division by zero\n\(log: .*\)$"):
        train(run, monkeypatch, ranks=FAIL.replace("USER_ERROR", "False"))


def test_a_person_s_mistake_found_by_a_rank_stays_one(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="^ZeroDivisionError: division by zero$"):
        train(run, monkeypatch, ranks=FAIL.replace("USER_ERROR", "True"))


def test_ranks_that_end_without_a_word_are_named_with_the_end_of_their_log(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingFailedError, match=r"^the training ended \(exit code 3\):\nlast words$"):
        train(run, monkeypatch, ranks="import sys; print('last words', flush=True); sys.exit(3)")


def test_flags_of_an_earlier_attempt_do_not_count(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.stopped.write_text('{"step": 1, "of": 9}')
    run.failure.write_text('{"rank": 0, "cause": "old", "user_error": true}')
    with pytest.raises(TrainingFailedError, match="exit code 3"):
        train(run, monkeypatch, ranks="import sys; sys.exit(3)", resume=True)


def test_nothing_is_left_when_the_callback_fails(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(row: dict[str, Any]) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        train(run, monkeypatch, ranks=STOPPABLE, on_event=fail)
    assert run.stopped.exists(), "the ranks were asked to stop"


def test_rows_are_followed_through_cut_lines_and_a_replaced_file(tmp_path: Path) -> None:
    """A resumed run replaces the file with its older rows, which were passed on before."""
    path = tmp_path / "metrics.jsonl"
    with local._follow(path, since=10.0) as rows:
        assert rows() == []
        with open(path, "a") as file:
            file.write('{"time": 9}\n{"time": 11}\n{"ti')
            file.flush()
            assert rows() == [{"time": 11}]
            file.write('me": 12}\n')
            file.flush()
            assert rows() == [{"time": 12}]
        replaced = tmp_path / "new"
        replaced.write_text('{"time": 9}\n{"time": 13}\n')
        replaced.replace(path)
        assert rows() == [{"time": 13}]
        assert rows() == []


def test_a_killed_rank_is_named_before_its_echo() -> None:
    def report(root: int, other: int) -> str:
        return (
            "ChildFailedError: \nFailures:\n[1]:\n"
            f"  rank      : 0 (local_rank: 0)\n  exitcode  : {other} (pid: 10) \n---\n"
            "Root Cause (first observed failure):\n[0]:\n"
            f"  rank      : 1 (local_rank: 1)\n  exitcode  : {root} (pid: 11)  (X)\n"
        )

    assert _killed_rank(report(-9, 1)) == "rank 1 was killed by SIGKILL (out of memory?)"
    assert _killed_rank(report(1, -9)) == "rank 0 was killed by SIGKILL (out of memory?)"
    assert _killed_rank(report(-11, -6)) == "rank 1 was killed by SIGSEGV"
    assert _killed_rank(report(1, -15)) is None
    assert _killed_rank(report(-9, 1) + "resumed\n" + report(1, 1)) is None, "that was an earlier try"
    assert _killed_rank("all is well") is None
