"""Heartbeats: what each rank is at, in a small file of the run folder, so that any rank can tell who is behind.

    heartbeats/rank-00003.json

Files and not messages: who hangs in a collective cannot send, and a dead rank's last word stays readable. The clocks
of machines are taken to agree within some seconds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from train.run_folder import RunFolder

_HOUSE = str(Path(__file__).parents[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """What one rank was at when it wrote this."""

    rank: int
    host: str
    pid: int
    started: float
    """When the process was started: a process id may be given anew."""
    step: int
    phase: str
    phase_s: float
    """For how long it had been in the phase."""
    allow_s: float
    """For how long it may be."""
    waiting: bool
    """Whether its main thread was inside a collective, so that another is likelier to be the cause."""
    where: str
    """The line of ours that its main thread was at."""
    time: float
    """When it was written, seconds since 1970."""
    ended: bool
    """Whether the rank left by itself, in good order or with an error that it wrote down."""

    @property
    def place(self) -> str:
        """Step and phase, for people."""
        return f"step {self.step}, phase {self.phase}"


Heartbeats = Mapping[int, Heartbeat]


def heartbeat_path(run: RunFolder, rank: int) -> Path:
    """Where a rank writes."""
    return run.root / "heartbeats" / f"rank-{rank:05d}.json"


def write_heartbeat(run: RunFolder, beat: Heartbeat) -> None:
    """Replace the rank's file; whole or not at all, but not flushed to disk: it is worth nothing after a crash."""
    path = heartbeat_path(run, beat.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{beat.pid}-{path.name}")
    temporary.write_text(json.dumps(asdict(beat)) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_heartbeats(run: RunFolder, world: int) -> Heartbeats:
    """Return what can be read, by rank."""
    found = {}
    for rank in range(world):
        try:
            found[rank] = Heartbeat(**json.loads(heartbeat_path(run, rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
    return found


def furthest_behind(beats: Heartbeats, world: int, *, silent_s: float) -> tuple[int, str]:
    """Return the rank that the others wait for, and a sentence that says why it is that one.

    First who gives no sign of life, then who is in the earliest step; of those who is outside of collectives; of
    those who has been in its phase for longest.

    Args:
        beats: of all ranks that have one.
        world: how many there should be.
        silent_s: a heartbeat older than this, beside the newest one, is no sign of life.
    """
    newest = max((beat.time for beat in beats.values()), default=0.0)

    def silent(rank: int) -> bool:
        return rank not in beats or (not beats[rank].ended and newest - beats[rank].time > silent_s)

    def order(rank: int) -> tuple[float, ...]:
        if silent(rank):
            return (0, beats[rank].time if rank in beats else 0)
        beat = beats[rank]
        return (1, beat.step, beat.waiting, -beat.phase_s)

    last = min(range(world), key=order)
    others = "; the others wait for it" if world > 1 else ""
    if last not in beats:
        return last, f"rank {last} has given no sign of life{others}"
    beat = beats[last]
    if silent(last):
        ago = newest - beat.time
        return (
            last,
            f"rank {last} has given no sign of life for {ago:.0f} s; its last was {beat.place}, on {beat.host}",
        )
    where = f" ({beat.where})" if beat.where else ""
    return last, f"rank {last} has been in {beat.place}, for {beat.phase_s:.0f} s{where}{others}"


def gone(beats: Heartbeats) -> Heartbeat | None:
    """Return who is no longer there and left no word, of the ranks on this machine; what follows is its echo."""
    here = [beat for beat in beats.values() if beat.host == socket.gethostname() and not beat.ended]
    return min((beat for beat in here if not _runs(beat)), key=lambda beat: beat.time, default=None)


def table(beats: Heartbeats) -> str:
    """Return one line a rank, for the details of a failure."""
    lines = [
        f"rank {beat.rank} on {beat.host}: {beat.place}, {beat.phase_s:.1f} s, {beat.where or 'nowhere of ours'}"
        f"{', in a collective' if beat.waiting else ''}{', ended' if beat.ended else ''}"
        for beat in beats.values()
    ]
    return "\n".join(lines)


def main_thread_is_at() -> tuple[str, bool]:
    """Return the innermost line of ours that the main thread is at, and whether it is inside a collective."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    where, waiting = "", False
    while frame is not None:
        file = frame.f_code.co_filename
        waiting = waiting or f"{os.sep}torch{os.sep}distributed{os.sep}" in file
        if not where and file.startswith(_HOUSE) and "site-packages" not in file[len(_HOUSE) :]:
            where = f"{os.path.relpath(file, _HOUSE)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return where, waiting


def _runs(beat: Heartbeat) -> bool:
    try:
        process = psutil.Process(beat.pid)
        same = abs(process.create_time() - beat.started) < 1
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
