"""How a run is asked to stop: a signal sets a flag, and all ranks leave after the same step."""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path
from types import FrameType
from typing import IO

import torch

from data_shards.parent_death import die_with_parent as die_with_parent
from train.collectives import max_over_ranks

EXIT_STOPPED = 75
"""Exit code of a rank that stopped when asked, with a checkpoint: EX_TEMPFAIL, "try again later"."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Catches SIGTERM, SIGINT and SIGUSR1."""

    def __init__(self) -> None:
        """Install the handlers; only the main thread may."""
        self._signal = 0
        for number in _SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def asked_here(self) -> bool:
        """Whether this rank caught a signal."""
        return self._signal != 0

    def asked_anywhere(self, device: torch.device) -> bool:
        """Whether any rank caught one: a collective, so that all ranks leave together."""
        return max_over_ranks(int(self.asked_here()), device) > 0


def hold(lock: Path, *, alone: bool = False) -> IO[bytes] | None:
    """Hold a lock until the file is closed or the process ends, however it ends.

    Args:
        lock: the file; made where it is not there.
        alone: whether nobody else may hold it at this moment. Afterwards others may join.

    Returns:
        The open file; None where another holds it.
    """
    file = open(lock, "ab")
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    return file
