"""A full disk in one line, wherever it shows."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def told_in_one_line(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises in the block into a `UserError`.

    Raises:
        UserError: the disk is full, or a file is larger than this process may write.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of {folder} is full; free some of it and run `dipole embed` again: what is done is kept"
        ) from error


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room; Arrow's carry no number."""
    return error.errno in _FULL or any(word in str(error) for word in ("No space left", "File too large"))
