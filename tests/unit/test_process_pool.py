"""Processes that do parts: every item once, the first mistake stops all, and none outlives the block."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_shards.errors import UserError
from launch.process_pool import process_pool

ROOT = Path(__file__).parents[2]

# Top-level, so that a new process finds them by name.


def square(number: int) -> int:
    return number * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise UserError("three is no good")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_long(place: str) -> None:
    Path(place, str(os.getpid())).touch()
    time.sleep(60)


def test_every_item_comes_back_once_and_the_processes_go() -> None:
    with process_pool(2) as run:
        assert sorted(run(square, range(20))) == [n * n for n in range(20)]
        assert list(run(square, [])) == []
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


def test_a_mistake_in_a_worker_is_told_as_it_is() -> None:
    with pytest.raises(UserError, match="^three is no good$"), process_pool(1) as run:
        list(run(refuse_three, range(10)))
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_and_no_hang() -> None:
    message = "a worker process was killed; if memory ran out, take fewer --workers"
    with pytest.raises(UserError, match=message), process_pool(1) as run:
        list(run(die, [1]))


def test_leaving_in_haste_ends_running_work(tmp_path: Path) -> None:
    """Ctrl-C must not wait for parts of minutes."""
    handler_before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a trainer's test may have its own
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), process_pool(1) as run:
        _start_and_interrupt(run(sleep_long, [str(tmp_path)]), tmp_path)
    signal.signal(signal.SIGINT, handler_before)
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == []


def test_sigterm_leaves_neither_processes_nor_semaphores(tmp_path: Path) -> None:
    """Python would warn of "leaked semaphore objects": a user takes that for a fault of the data."""
    script = f"""
        from launch.process_pool import process_pool
        from tests.unit.test_process_pool import sleep_long
        if __name__ == "__main__":
            with process_pool(2) as run:
                list(run(sleep_long, [{str(tmp_path)!r}] * 2))
        """
    (tmp_path.parent / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, str(tmp_path.parent / "script.py")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    process.terminate()
    assert (process.communicate(timeout=30)[0], process.returncode) == ("", 143)
    assert len(workers) == 2
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


def _start_and_interrupt(results: Iterator[None], place: Path) -> None:
    def interrupt() -> None:
        while not list(place.iterdir()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    next(results)
