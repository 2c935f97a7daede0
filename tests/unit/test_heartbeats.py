"""Who is furthest behind, by what all ranks wrote last; and what is left behind as the first cause."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from math import inf
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_shards.atomic import read_json
from data_shards.errors import UserError
from launch.failures import TrainingFailedError, failure_of
from train.first_cause import leave_cause, leave_error
from train.health import TrainingDivergedError
from train.heartbeats import (
    Heartbeat,
    furthest_behind,
    gone,
    heartbeat_path,
    main_thread_is_at,
    read_heartbeats,
    table,
    write_heartbeat,
)
from train.run_folder import RunFolder
from train.stops import EXIT_DIVERGED

NOW = 1_800_000_000.0
WORLD = 3


def beat(rank: int, **changes: Any) -> Heartbeat:
    values: dict[str, Any] = {
        "rank": rank,
        "host": "node-7",
        "pid": 100 + rank,
        "started": NOW - 500,
        "step": 120,
        "phase": "backward",
        "phase_s": 60.0,
        "allow_s": 100.0,
        "waiting": False,
        "where": "",
        "time": NOW,
        "ended": False,
    }
    return Heartbeat(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({2: None, 1: {"step": 3}}, (2, "rank 2 has given no sign of life; the others wait for it")),
        (
            {2: {"time": NOW - 31, "step": 500}, 1: {"step": 3}},
            (2, "rank 2 has given no sign of life for 31 s; its last was step 500, phase backward, on node-7"),
        ),
        (
            {1: {"step": 119, "phase": "data"}, 0: {"phase_s": 90.0}},
            (1, "rank 1 has been in step 119, phase data, for 60 s; the others wait for it"),
        ),
        (
            {0: {"waiting": True, "phase_s": 61.0}, 2: {"waiting": True}, 1: {"where": "train/a.py:7 in run"}},
            (
                1,
                "rank 1 has been in step 120, phase backward, for 60 s (train/a.py:7 in run); the others wait for it",
            ),
        ),
        (
            {2: {"phase_s": 61.0}},
            (2, "rank 2 has been in step 120, phase backward, for 61 s; the others wait for it"),
        ),
        (
            {0: {"time": NOW - 99, "ended": True}, 2: {"phase_s": 61.0}},
            (2, "rank 2 has been in step 120, phase backward, for 61 s; the others wait for it"),
        ),
    ],
    ids=["never came", "silent", "an earlier step", "not in a collective", "longest in its phase", "left by itself"],
)
def test_who_is_furthest_behind(changes: dict[int, dict[str, Any] | None], wanted: tuple[int, str]) -> None:
    beats = {
        rank: beat(rank, **(changes.get(rank) or {})) for rank in range(WORLD) if changes.get(rank, {}) is not None
    }
    assert furthest_behind(beats, WORLD, silent_s=30) == wanted


def test_alone_nobody_waits() -> None:
    assert furthest_behind({0: beat(0)}, 1, silent_s=30) == (
        0,
        "rank 0 has been in step 120, phase backward, for 60 s",
    )


def test_what_is_written_is_read_back_and_damaged_files_are_nobody_s(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for rank in range(WORLD):
        write_heartbeat(run, beat(rank, allow_s=inf))
    heartbeat_path(run, 1).write_text('{"rank": 1')
    heartbeat_path(run, 2).write_text('{"rank": 2}')
    assert read_heartbeats(run, 5) == {0: beat(0, allow_s=inf)}
    assert sorted(path.name for path in (tmp_path / "heartbeats").iterdir()) == [
        f"rank-0000{rank}.json" for rank in range(WORLD)
    ]


def test_gone_is_who_left_no_word_on_this_machine() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        started = psutil.Process(process.pid).create_time()
        process.wait()
    here, me = socket.gethostname(), psutil.Process()
    dead = {"host": here, "pid": process.pid, "started": started}
    alive = beat(0, host=here, pid=os.getpid(), started=me.create_time())
    assert gone({0: alive, 1: beat(1, **dead, time=NOW - 1), 2: beat(2, **dead)}) == beat(1, **dead, time=NOW - 1)
    assert gone({0: alive, 1: beat(1, **dead, ended=True)}) is None
    assert gone({0: alive, 1: beat(1)}) is None, "another machine's processes cannot be seen"
    again = beat(1, host=here, pid=os.getpid(), started=me.create_time() - 50)
    assert gone({1: again}) == again, "the number was given to another process"


def test_where_the_main_thread_is_can_be_told_from_another() -> None:
    found: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: found.append(main_thread_is_at()))
    thread.start()
    thread.join()
    ((where, waiting),) = found
    assert where.startswith("tests/unit/test_heartbeats.py:")
    assert where.endswith("in test_where_the_main_thread_is_can_be_told_from_another")
    assert not waiting


def test_the_table_has_a_line_a_rank() -> None:
    beats = {0: beat(0, waiting=True), 1: beat(1, where="train/a.py:7 in run", ended=True)}
    assert table(beats).splitlines() == [
        "rank 0 on node-7: step 120, phase backward, 60.0 s, nowhere of ours, in a collective",
        "rank 1 on node-7: step 120, phase backward, 60.0 s, train/a.py:7 in run, ended",
    ]


def test_the_first_cause_stays(tmp_path: Path) -> None:
    path = tmp_path / "failure.json"
    assert leave_cause(path, rank=1, cause="first")
    assert not leave_cause(path, rank=0, cause="second")
    assert read_json(path)["cause"] == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["failure.json"]


def test_the_first_cause_stays_where_files_have_one_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("train.first_cause.os.link", refuse)
    test_the_first_cause_stays(tmp_path)


def raised(run: RunFolder, error: Exception, *, rank: int = 0) -> dict[str, Any]:
    try:
        raise error
    except Exception as caught:
        code = leave_error(run, caught, rank=rank, world=WORLD)
    row: dict[str, Any] = read_json(run.failure)
    assert row["exit_code"] == code
    assert type(error).__name__ in row["traceback"]
    return row


def test_what_a_rank_raised_is_the_cause(tmp_path: Path) -> None:
    row = raised(RunFolder(tmp_path), ZeroDivisionError("division by zero"), rank=2)
    assert (row["rank"], row["cause"], row["exit_code"]) == (2, "ZeroDivisionError: division by zero", 1)
    error = failure_of(RunFolder(tmp_path), Path("train.log"))
    assert isinstance(error, TrainingFailedError)
    assert str(error) == "rank 2: ZeroDivisionError: division by zero\n(log: train.log)"
    assert error.exit_code == 1


def test_a_person_s_mistake_stays_one(tmp_path: Path) -> None:
    row = raised(RunFolder(tmp_path), UserError("set it to 4"))
    assert (row["user_error"], row["cause"]) == (True, "set it to 4")
    error = failure_of(RunFolder(tmp_path), Path("train.log"))
    assert isinstance(error, UserError)
    assert str(error) == "set it to 4"


def test_divergence_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """And is nobody's echo, though its message may hold such words."""
    row = raised(RunFolder(tmp_path), TrainingDivergedError("the loss of step 3 is nan (nccl)"))
    assert (row["exit_code"], row["cause"]) == (EXIT_DIVERGED, "the loss of step 3 is nan (nccl)")
    error = failure_of(RunFolder(tmp_path), Path("train.log"))
    assert isinstance(error, TrainingFailedError)
    assert str(error) == "the loss of step 3 is nan (nccl)\n(log: train.log)"
    assert error.exit_code == EXIT_DIVERGED


def test_a_collective_that_timed_out_is_the_echo_of_who_is_behind(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for rank in range(WORLD):
        write_heartbeat(run, beat(rank, time=time.time(), step=120 - (rank == 1)))
    row = raised(run, RuntimeError("[gloo] Timed out waiting 1800000ms for recv operation to complete\nmore"))
    assert row["rank"] == 1
    assert row["cause"] == (
        "rank 1 has been in step 119, phase backward, for 60 s; the others wait for it "
        "(rank 0 saw RuntimeError: [gloo] Timed out waiting 1800000ms for recv operation to complete)"
    )
    assert "rank 2 on node-7" in row["traceback"]


def test_a_broken_connection_without_a_dead_rank_in_sight_is_told_as_it_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for rank in range(WORLD):
        write_heartbeat(run, beat(rank, time=time.time()))
    row = raised(run, RuntimeError("Connection closed by peer"))
    assert (row["rank"], row["cause"]) == (0, "RuntimeError: Connection closed by peer")


def test_the_first_cause_finds_room_on_a_full_disk(small_disk: Path) -> None:
    """What is raised there is that the disk is full, and a file that cannot be written would be all that is told."""
    run = RunFolder(small_disk)
    write_heartbeat(run, beat(0))
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize))
    error = OSError(errno.ENOSPC, "No space left on device")
    assert leave_error(run, error, rank=0, world=1) == 1
    assert read_json(run.failure)["cause"] == "OSError: [Errno 28] No space left on device"
