"""Locks between processes: they vanish with their holder, and a removed lock file guards nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from data_shards.file_lock import locked
from tests.unit.processes import start_python


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    """A loader's worker is forked while a thread of its parent fetches; the parent dies; the lock must be free."""
    script = """
        import os, sys, time
        from pathlib import Path
        from data_shards.file_lock import locked
        with locked(Path(sys.argv[1])):
            child = os.fork()
            if child == 0:
                os.close(1), os.close(2)
                time.sleep(30)
                os._exit(0)
            print(child, flush=True)
            time.sleep(30)
        """
    parent = start_python(script, tmp_path / "lock")
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        with locked(tmp_path / "lock", wait=False) as got:
            assert not got
        parent.kill()
        parent.wait(10)
        until = time.monotonic() + 10  # the child may not have run yet since it was forked
        free = False
        while not free and time.monotonic() < until:
            with locked(tmp_path / "lock", wait=False) as free:
                time.sleep(0.05)
        assert free
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_whose_file_was_removed_guards_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    order: list[str] = []

    def wait_for_it() -> None:
        with locked(lock) as got:
            order.append("second")
            assert got
            assert lock.exists()

    with locked(lock):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        time.sleep(0.1)
        order.append("first")
        lock.unlink()
        lock.parent.rmdir()
    waiting.join(10)
    assert order == ["first", "second"]
