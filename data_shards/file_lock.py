"""Locks between the processes and threads of one machine; they vanish with their holder, however it ends.

`flock` belongs to the open file, which a forked child shares with its parent: there the descriptors are closed at
once, or a loader's worker would hold a dead rank's locks. The lock's file may be removed by whoever holds it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_guard = threading.Lock()
_open_descriptors: set[int] = set()


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock while the block runs; yield whether it was got.

    Args:
        path: the lock's file; made, with its folder, where it is not there.
        wait: block until it is free; otherwise yield False where another holds it.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = _acquire(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(descriptor)


def _acquire(path: Path, wait: bool) -> int | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _guard:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                _open_descriptors.add(descriptor)
        except FileNotFoundError:  # its folder was removed since it was made
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _release(descriptor)
            return None
        except BaseException:
            _release(descriptor)
            raise
        if _is_at(descriptor, path):
            return descriptor
        _release(descriptor)  # the last holder removed the file: this lock guards nothing any more


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _release(descriptor: int) -> None:
    with _guard:
        if descriptor in _open_descriptors:  # not so in a child that was forked inside the block
            _open_descriptors.remove(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _forget_in_child() -> None:
    for descriptor in _open_descriptors:
        os.close(descriptor)
    _open_descriptors.clear()
    _guard.release()


# The guard is held over the fork, so that no descriptor is opened but not yet noted at that moment.
os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_in_child)
