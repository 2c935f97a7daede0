"""The hidden folder beside an import's output, where its finished parts outlive a kill."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import UserError
from data_shards.file_lock import locked

_log = logging.getLogger(__name__)

_LOCK = "lock"


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Yield the work folder of an output, made or found again; it is removed when the block ends well.

    After an error it stays where it holds finished parts, since they make the next try shorter.

    Raises:
        UserError: another import works on the same output, or the disk is full.
    """
    work = out.parent / f".{out.name}.import"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{work} cannot be made ({error.strerror}); choose another --out") from None
    try:
        with locked(work / _LOCK, wait=False) as ours:
            if not ours:
                raise UserError(f"another import is writing {out}; wait for it, or choose another --out")
            try:
                yield work
            except BaseException:
                _keep_or_remove(work)
                raise
            shutil.rmtree(work)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the disk of {work} is full; free some of it and run again: what is done is kept") from error


def keep_only(work: Path, keys: Iterable[str]) -> None:
    """Remove what earlier tries left of other inputs or settings."""
    wanted = {*keys, _LOCK}
    for path in work.iterdir():
        if path.name.split(".")[0] in wanted:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _keep_or_remove(work: Path) -> None:
    done = sum(1 for _ in work.glob("[!.]*.done.json"))
    if done:
        parts = "1 finished part stays" if done == 1 else f"{done} finished parts stay"
        _log.info("%s in %s; the same command goes on from there", parts, work)
    else:
        shutil.rmtree(work, ignore_errors=True)
