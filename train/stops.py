"""How a run is asked to stop: a signal or the clock sets a flag, and all ranks leave after the same step."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import psutil
import torch

from data_shards.errors import UserError
from data_shards.parent_death import die_with_parent as die_with_parent
from train.collectives import max_over_ranks, rank
from train.exit_codes import EXIT_DIVERGED as EXIT_DIVERGED, EXIT_STOPPED as EXIT_STOPPED, EXIT_STUCK as EXIT_STUCK

BEGAN = "DIPOLE_BEGAN"
"""In the environment of ranks: when the command that started them began, in seconds of the epoch."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_TIME_LIMIT = 1 << 10  # above any signal's number


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """When a run stops by itself, with a checkpoint, to be resumed."""

    time_limit_s: float = 0.0
    """Seconds that the process may run, such as a queue's limit; 0 is none."""
    margin_s: float = 120.0
    """The run stops after the first step that ends later than this before the limit: time for a step, a dev
    evaluation and a checkpoint."""

    def __post_init__(self) -> None:
        """Check the times."""
        if self.time_limit_s < 0 or self.margin_s < 0:
            raise UserError("stop.time_limit_s and stop.margin_s must be 0 or more")
        if 0 < self.time_limit_s <= self.margin_s:
            raise UserError(
                f"stop.time_limit_s = {self.time_limit_s:g} leaves no time beside stop.margin_s = {self.margin_s:g}; "
                "raise the one or lower the other"
            )


class StopFlag:
    """Catches SIGTERM, SIGINT and SIGUSR1, and watches rank 0's clock."""

    def __init__(self, config: StopConfig | None = None) -> None:
        """Install the handlers; only the main thread may."""
        config = config or StopConfig()
        self._signal = 0
        self._ends = float("inf")
        if config.time_limit_s:
            # Counted from the start of the process, not of this object: imports and data took their time already. Of
            # the command where there is one: before these ranks, those of another stage may have run for hours.
            began = min(psutil.Process().create_time(), float(os.environ.get(BEGAN, "inf")))
            running_s = time.time() - began
            self._ends = time.monotonic() - running_s + config.time_limit_s - config.margin_s
        for number in _SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number

    def asked_here(self) -> bool:
        """Whether this rank caught a signal, or is rank 0 and out of time."""
        return self._code() != 0

    def asked_anywhere(self, device: torch.device) -> bool:
        """Whether any rank was asked: a collective, so that all ranks leave together."""
        return max_over_ranks(int(self.asked_here()), device) > 0

    def reason(self, device: torch.device) -> str:
        """Return why the run stops, the same on every rank: a collective, for when all have agreed to leave."""
        code = max_over_ranks(self._code(), device)
        if code == _TIME_LIMIT:
            return "time limit"
        return f"signal {signal.Signals(code).name}" if code else "asked"

    def _code(self) -> int:
        # One clock decides: several would disagree about the step at which time is over.
        if rank() == 0 and time.monotonic() >= self._ends:
            return _TIME_LIMIT
        return self._signal


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
