"""Files that are either whole or absent.

Whatever a later step trusts (manifests, sidecars, done markers, checkpoints, versions) is written here:
to a temporary name beside its place, flushed to disk, then renamed. A reader never meets half a file. A crash
leaves only a `.tmp-…` that no reader takes; where it is a folder, the next writer of the same place removes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_shards.errors import UserError

_READ_BLOCK_BYTES = 1 << 20
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # what file systems answer that know no such thing


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; rename it to `path` if the block ends well.

    No two writers share a temporary name, be they threads or on machines with one file system; on an exception the
    file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        fsync_file(temporary)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `path` if the block ends well.

    Raises:
        FileExistsError: `path` is there already; a published folder is never overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".tmp-*-{path.name}"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            (fsync_dir if entry.is_dir() else fsync_file)(entry)
        fsync_dir(temporary)
        os.rename(temporary, path)
        fsync_dir(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def drop_dir(path: Path) -> None:
    """Delete a folder, if it is there, such that half of it never passes for a damaged whole one."""
    if path.exists():
        dropped = path.with_name(f".tmp-dropped-{path.name}")
        shutil.rmtree(dropped, ignore_errors=True)
        os.rename(path, dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def allocate(file: IO[bytes], size: int) -> None:
    """Take an open file's room on the disk, filled with zeros: others then count it, and a full disk shows now.

    Raises:
        OSError: there is no room.
    """
    if size == 0:
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        os.truncate(file.fileno(), size)


def fsync_file(path: Path) -> None:
    """Flush one file's bytes to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def fsync_dir(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it was damaged or not written by dipole") from None


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
