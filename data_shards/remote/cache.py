"""Copies of remote files on a local disk: whole or absent, within a budget, shared by all processes of a node.

A copy has a folder of its own, named by its key, with a lock, the file, and whatever is derived from it (a sidecar).
Who holds the lock fills, opens or removes; so one process fetches while the others wait, a file that is held is never
removed, and a lock dies with its holder. Half a file is only ever a `.tmp-…` that the next holder clears away.

A removed file's bytes stay readable through descriptors that are already open.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_shards.atomic import allocate, atomic_path
from data_shards.errors import UserError
from data_shards.file_lock import locked

_LOCK_NAME, _ROOM_LOCK_NAME = "lock", "room.lock"
_TEMPORARY = ".tmp-"  # what `atomic_path` begins its names with
_KEY = re.compile("[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_POLL_S = 0.1

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    used_ns: int
    """When it was last asked for; 0 where only leftovers are there, so that they go first."""
    bytes: int
    folder: Path


class _BusyError(Exception):
    """Somebody else holds the file, or the room for it."""


class ShardCache:
    """A folder of copies with a budget."""

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        """Name the folder, which is made when the first file comes.

        Args:
            folder: on a disk of this machine.
            budget_bytes: most bytes kept, those of files being fetched included.
        """
        self.folder = folder
        self.budget_bytes = budget_bytes

    @contextmanager
    def hold(
        self, key: str, name: str, *, size: int | None, fill: Callable[[BinaryIO], None], wait: bool = True
    ) -> Iterator[Path | None]:
        """Yield the copy of a file, which is there and whole until the block ends.

        Args:
            key: 64 hex digits that name the file's content: two contents never share one.
            name: what the copy is called.
            size: its bytes, where they are known.
            fill: writes the content to an open file; called where there is no copy.
            wait: wait for others that fetch or hold the same file, and for room; otherwise yield None.

        Raises:
            UserError: the folder cannot be written, the disk is full, or the budget is too small.
        """
        path = self.folder / key / name
        with self._locked(path.with_name(_LOCK_NAME), wait) as mine:
            yield path if mine and self._make_ready(path, size, fill, wait) else None

    @contextmanager
    def _locked(self, path: Path, wait: bool) -> Iterator[bool]:
        lock = locked(path, wait=wait)
        try:
            mine = lock.__enter__()
        except OSError as error:
            raise self._unusable(error) from None
        try:
            yield mine
        finally:
            lock.__exit__(None, None, None)

    def _make_ready(self, path: Path, size: int | None, fill: Callable[[BinaryIO], None], wait: bool) -> bool:
        try:
            if not _is_whole(path, size):
                self._fill_once_more(path, size, fill, wait)
            os.utime(path)
        except _BusyError:
            return False
        except OSError as error:
            raise self._unusable(error) from None
        return True

    def _fill_once_more(self, path: Path, size: int | None, fill: Callable[[BinaryIO], None], wait: bool) -> None:
        """Fill a file; where the disk is full, once more with the cache emptied."""
        for leftover in path.parent.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
        try:
            return self._fill(path, size, fill, wait)
        except OSError as error:
            if error.errno not in _FULL:
                raise
        _log.warning("the disk of the shard cache %s is full: the cache is emptied", self.folder)
        self._make_room(path.parent, self.budget_bytes)
        try:
            return self._fill(path, size, fill, wait)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            wanted = "" if size is None else f" ({size} bytes)"
            raise UserError(
                f"the disk of the shard cache {self.folder} is full: no room for {path.name}{wanted} even with the"
                " cache emptied; free some, or set cache.dir to a larger disk"
            ) from None

    def _fill(self, path: Path, size: int | None, fill: Callable[[BinaryIO], None], wait: bool) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            self._reserve(path, file, size or 0, wait)
            fill(file)
            file.truncate()  # a first try may have written more
            if size is None:
                self._reserve(path, file, file.tell(), wait)

    def _reserve(self, path: Path, file: BinaryIO, size: int, wait: bool) -> None:
        """Make room within the budget and take it on the disk, before a byte is fetched."""
        if size > self.budget_bytes:
            gib = math.ceil(size / (1 << 30) * 100) / 100
            raise UserError(
                f"{path.name} has {size} bytes, more than the whole budget of the shard cache"
                f" ({self.budget_bytes}); set cache.budget_gib to {gib} at least, better to several shards"
            )
        while True:
            with locked(self.folder / _ROOM_LOCK_NAME):
                if self._make_room(path.parent, size):
                    return allocate(file, size)
            if not wait:
                raise _BusyError
            time.sleep(_ROOM_POLL_S)

    def _make_room(self, own: Path, size: int) -> bool:
        """Remove the least recently used until `size` more bytes fit; tell whether they do."""
        entries = sorted(entry for entry in self._entries() if entry.folder != own)
        used = sum(entry.bytes for entry in entries)
        for entry in entries:
            if used + size <= self.budget_bytes:
                break
            if _remove(entry.folder):
                used -= entry.bytes
        return used + size <= self.budget_bytes

    def _entries(self) -> Iterator[_Entry]:
        """Yield what lies in the cache; folders that are not of its making are left alone."""
        for folder in self.folder.iterdir():
            if not _KEY.fullmatch(folder.name) or not (folder / _LOCK_NAME).exists():
                continue
            size, used_ns = 0, 0
            for file in _files(folder):
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue
                size += stat.st_size
                if file.name != _LOCK_NAME and not file.name.startswith(_TEMPORARY):
                    used_ns = max(used_ns, stat.st_mtime_ns)
            yield _Entry(used_ns, size, folder)

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"the shard cache {self.folder} cannot be used ({error.strerror or error});"
            " set cache.dir to a folder that can be written"
        )


def _is_whole(path: Path, size: int | None) -> bool:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return False
    return size is None or found == size


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:  # removed since it was listed
        return []


def _remove(folder: Path) -> bool:
    """Remove a copy and what was derived from it, unless somebody holds it."""
    lock = folder / _LOCK_NAME
    with locked(lock, wait=False) as mine:
        if not mine:
            return False
        for file in _files(folder):
            if file != lock:
                file.unlink(missing_ok=True)
        lock.unlink()
    with suppress(OSError):  # not empty: somebody asked for it again in the meantime
        folder.rmdir()
    return True
