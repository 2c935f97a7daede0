"""Invariant 8: one fails, all fail, soon, and with the first cause on top; real ranks under a real torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_shards.atomic import read_json
from launch.failures import failure_of
from tests.distributed import endangered_rank as script
from train.run_folder import RunFolder
from train.stops import EXIT_STUCK

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
RANKS = 3


def run_ranks(run: RunFolder, accident: str) -> tuple[int, str]:
    """Start the ranks and wait until all are gone; returns torchrun's exit code and all that was printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += ["--shutdown-timeout", "2", "--module", "tests.distributed.endangered_rank", str(run.root), accident]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )
    return done.returncode, done.stdout


def seconds_after_the_accident(run: RunFolder) -> float:
    """Since the ranks had all found each other; the steps before the accident take less than a second."""
    return time.time() - max(path.stat().st_mtime for path in run.root.glob("pid-*"))


def none_is_left(run: RunFolder) -> bool:
    pids = [int(path.read_text()) for path in run.root.glob("pid-*")]
    assert len(pids) == RANKS
    return not any(psutil.pid_exists(pid) and "endangered" in str(psutil.Process(pid).cmdline()) for pid in pids)


@pytest.mark.parametrize("accident", ["sleep", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_rank_that_hangs_ends_all_and_is_named(tmp_path: Path, accident: str) -> None:
    """Asleep it finds out itself; stopped by a signal, as on a machine that is gone, only the others can.

    torchrun takes 30 s until it kills a rank that does not answer, and cannot be told otherwise.
    """
    run = RunFolder(tmp_path)
    code, _ = run_ranks(run, accident)
    assert code != 0
    assert seconds_after_the_accident(run) < 60, "3 s of patience, torchrun's 30 s, the rest is a busy machine"
    assert none_is_left(run)
    failure: dict[str, Any] = read_json(run.failure)
    assert (failure["rank"], failure["exit_code"]) == (script.VICTIM, EXIT_STUCK), failure
    wanted = {
        "sleep": r"rank 1 has been in step 5, phase forward, for [3-6] s \(tests/distributed/endangered_rank\.py:\d+",
        "stop": r"rank 1 has given no sign of life for \d+ s; its last was step \d, phase",
    }[accident]
    with pytest.raises(RuntimeError, match=f"^{wanted}") as error:
        raise failure_of(run, run.logs / "train.log")
    assert error.value.exit_code == EXIT_STUCK  # type: ignore[attr-defined]
    stacks = {path.name: path.read_text() for path in run.logs.glob("stacks-*")}
    if accident == "sleep":
        assert "_accident" in stacks["stacks-rank-00001.txt"]
    else:
        assert "all_reduce" in "".join(stacks.values())
        assert "stacks-rank-00001.txt" not in stacks


def test_a_rank_that_is_killed_is_the_cause_and_not_the_connection_that_broke(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    code, _ = run_ranks(run, "kill")
    assert code != 0
    assert seconds_after_the_accident(run) < 30
    assert none_is_left(run)
    failure = read_json(run.failure)
    assert failure["rank"] == script.VICTIM, failure
    assert failure["cause"].startswith("rank 1 was killed (out of memory?) in step "), failure
    assert "RuntimeError" in failure["cause"], "what was seen of it stays readable"


def test_a_rank_that_raises_is_the_cause_and_not_its_echo(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    code, _ = run_ranks(run, "raise")
    assert code != 0
    assert none_is_left(run)
    failure = read_json(run.failure)
    assert (failure["rank"], failure["cause"]) == (script.VICTIM, "ZeroDivisionError: division by zero")
    assert "_accident" in failure["traceback"]


def test_who_waits_for_one_that_may_take_its_time_does_not_give_up(tmp_path: Path) -> None:
    """The others are in a collective for twice their patience; the one they wait for was allowed more."""
    run = RunFolder(tmp_path)
    code, output = run_ranks(run, "slow")
    assert code == 0, output
    assert not run.failure.exists()
    assert len(list(run.root.glob("done-*"))) == RANKS
