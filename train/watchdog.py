"""A thread in every rank that writes its heartbeat, and ends the process when the run comes no further.

A collective waits for ever, or for half an hour, for a rank that hangs, and then tells nothing of it. So every rank
says what it is at; whoever finds itself stuck names the one that is furthest behind, and goes. Then the launcher ends
what is left.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace

import psutil

from data_shards.errors import UserError
from train.first_cause import leave_cause
from train.heartbeats import (
    Heartbeat,
    Heartbeats,
    furthest_behind,
    main_thread_is_at,
    read_heartbeats,
    table,
    write_heartbeat,
)
from train.run_folder import RunFolder
from train.stops import EXIT_STUCK

_log = logging.getLogger(__name__)
# All counted in heartbeats.
_GRACE_BEATS = 2  # beyond the timeout
_FIRST_BEATS = 8  # beyond the timeout, where another is to go first
_SILENT_BEATS = 6  # without a heartbeat a rank is taken for dead
_LONGEST_GAP_BEATS = 2  # what a beat counts at most


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """How a run notices that it comes no further."""

    timeout_s: float = 1200.0
    """A rank that comes to no new phase of a step for this long ends the run; 0 turns that off. At most two thirds of
    engine.timeout_s count: the collectives of those who wait would give up first, and name nobody."""
    beat_every_s: float = 10.0
    """Seconds between two heartbeats."""

    def within(self, collective_s: float) -> WatchdogConfig:
        """Return what to do where collectives give up after so long."""
        if not self.timeout_s:
            return self
        timeout_s = min(self.timeout_s, collective_s * 2 / 3)
        return replace(self, timeout_s=timeout_s, beat_every_s=min(self.beat_every_s, timeout_s / 2))

    def __post_init__(self) -> None:
        """Check the times."""
        if not self.beat_every_s > 0:
            raise UserError(f"watchdog.beat_every_s must be above 0, came {self.beat_every_s:g}")
        if self.timeout_s and self.timeout_s < self.beat_every_s:
            raise UserError(
                f"watchdog.timeout_s = {self.timeout_s:g} is below watchdog.beat_every_s = {self.beat_every_s:g}; "
                "raise it, or set it to 0 to turn the watchdog off"
            )


@dataclass(frozen=True, slots=True)
class _Phase:
    name: str
    step: int
    allow_s: float


class Watchdog:
    """The main thread says what it begins; the watchdog's own thread writes it down and counts the time."""

    def __init__(self, run: RunFolder, config: WatchdogConfig, *, rank: int, world: int) -> None:
        """Keep the parts; `start` begins."""
        self._run, self._config, self._rank, self._world = run, config, rank, world
        self._host, self._started = socket.gethostname(), psutil.Process().create_time()
        self._phase = self._counted = _Phase("start", 0, config.timeout_s or math.inf)
        self._age_s = 0.0
        self._closing = threading.Event()
        self._can_write = True
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Write the first heartbeat and begin to watch; before the process group, whose start may hang too."""
        self._write(ended=False)
        self._thread.start()

    def phase(self, name: str, step: int, *, allow_s: float | None = None) -> None:
        """Say what begins now; it costs less than a microsecond.

        Args:
            name: such as forward, backward, checkpoint.
            step: the optimiser step.
            allow_s: how long it may take, where that is not `WatchdogConfig.timeout_s`; waiting for the miner is no
                hang. It never shortens that, and does nothing where the watchdog is off.
        """
        usual = self._config.timeout_s or math.inf
        self._phase = _Phase(name, step, max(usual, allow_s or 0.0))

    def close(self) -> None:
        """End the thread and leave word that this rank left by itself; also on the way out of an error."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(self._config.beat_every_s)
        self._write(ended=True)

    def _watch(self) -> None:
        every = self._config.beat_every_s
        seen = time.monotonic()
        while not self._closing.wait(every):
            now = time.monotonic()
            # Counted in beats, not read from a clock: a job that was suspended for an hour has not hung for one.
            self._count(min(now - seen, _LONGEST_GAP_BEATS * every))
            seen = now
            if self._age_s > self._counted.allow_s + _GRACE_BEATS * every:
                self._end_if_stuck()
            self._write(ended=False)

    def _count(self, elapsed_s: float) -> None:
        if (phase := self._phase) is not self._counted:
            self._counted, self._age_s = phase, 0.0
        self._age_s += elapsed_s

    def _heartbeat(self, *, ended: bool) -> Heartbeat:
        where, waiting = main_thread_is_at()
        return Heartbeat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            started=self._started,
            step=self._counted.step,
            phase=self._counted.name,
            phase_s=round(self._age_s, 3),
            allow_s=self._counted.allow_s,
            waiting=waiting,
            where=where,
            time=time.time(),
            ended=ended,
        )

    def _write(self, *, ended: bool) -> None:
        try:
            write_heartbeat(self._run, self._heartbeat(ended=ended))
            self._can_write = True
        except OSError as error:
            if self._can_write:  # said once: a full disk has its own end, at the next checkpoint
                _log.warning("the heartbeat cannot be written: %s", error)
            self._can_write = False

    def _end_if_stuck(self) -> None:
        """End the process, unless whom all wait for may still take its time."""
        beats = {**read_heartbeats(self._run, self._world), self._rank: self._heartbeat(ended=False)}
        silent_s = _SILENT_BEATS * self._config.beat_every_s
        last, cause = furthest_behind(beats, self._world, silent_s=silent_s)
        fresh = last in beats and time.time() - beats[last].time <= silent_s
        if last != self._rank and fresh:
            # It lives, and will end itself with the stacks that tell most; unless even its watchdog hangs.
            patience_s = self._counted.allow_s + _FIRST_BEATS * self._config.beat_every_s
            if beats[last].phase_s <= beats[last].allow_s or self._age_s <= patience_s:
                return
        self._end(last, cause, beats)

    def _end(self, last: int, cause: str, beats: Heartbeats) -> None:
        """Leave stacks and cause behind. `os._exit`: the main thread hangs and will clean nothing up."""
        try:
            self._run.logs.mkdir(parents=True, exist_ok=True)
            with open(self._run.logs / f"stacks-rank-{self._rank:05d}.txt", "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            leave_cause(self._run.failure, rank=last, cause=cause, exit_code=EXIT_STUCK, details=table(beats))
            _log.error("%s; this rank ends with exit code %d", cause, EXIT_STUCK)
        finally:
            os._exit(EXIT_STUCK)
