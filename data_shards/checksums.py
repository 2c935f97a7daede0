"""Checksums of large files that bring none: computed once, and remembered until the file changes."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from data_shards.atomic import atomic_path, sha256_file

_SETTLED_S = 2.0  # a file as young may change again without its time telling


def remembered_sha256(path: Path, memory: Path) -> str:
    """Return the hex SHA-256 of a file.

    It is read again only where its place, size, inode or time of change differ from those that it was read with.

    Args:
        path: the file.
        memory: folder in which checksums are remembered; where it cannot be written, nothing is.

    Raises:
        OSError: the file cannot be read.
    """
    before = path.stat()
    seen = f"{path.absolute()}\0{before.st_size}\0{before.st_ino}\0{before.st_mtime_ns}"
    note = memory / f"{hashlib.sha256(seen.encode()).hexdigest()}.sha256"
    with suppress(OSError, UnicodeDecodeError):
        known = note.read_text("ascii")
        if len(known) == 64:
            return known
    found = sha256_file(path)
    after = path.stat()
    is_settled = time.time() - after.st_mtime > _SETTLED_S
    if is_settled and os.path.samestat(before, after) and before.st_mtime_ns == after.st_mtime_ns:
        with suppress(OSError), atomic_path(note) as temporary:
            temporary.write_text(found, "ascii")
    return found
