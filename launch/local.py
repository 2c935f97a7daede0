"""Runs a training from this machine: torchrun for the ranks, a miner beside it, and one that watches both."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

import psutil

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from data_shards.negatives import published_versions
from launch.children import Child, Companion
from launch.config import RunConfig
from launch.devices import Devices, has_cuda, split_devices, threads_per_rank
from launch.failures import TrainingFailedError, failure_of
from launch.kept_miner import KeptMiner, mining_failed
from launch.rank_command import check_nodes, rank_command
from launch.runs import prepare_run, save_config
from train.exit_codes import EXIT_STUCK
from train.run_folder import RunFolder
from train.stops import BEGAN, hold

_log = logging.getLogger(__name__)
_GRACE_S = 60.0
"""From asking to killing: a step, a checkpoint."""
_TICK_S = 0.2
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Row = dict[str, Any]
OnEvent = Callable[[Row], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a training ended."""

    run: RunFolder
    finished: bool
    """False after a stop that was asked for."""
    step: int
    """Steps that are done."""
    stage: Literal["adapt", "train"] = "train"
    """What they are steps of."""


def train_here(config: RunConfig, *, resume: bool = False, on_event: OnEvent = lambda row: None) -> Outcome:
    """Train on this machine until the end, a stop, or a failure.

    Args:
        config: of the run.
        resume: go on with the run that the folder holds.
        on_event: called with every row of `metrics.jsonl` as it is written.

    Raises:
        UserError: the config does not fit data, folder or machine.
        TrainingFailedError: a rank or the miner failed.
    """
    check_nodes(config)
    devices = split_devices(config)
    run = prepare_run(config, resume=resume)
    lock = hold(run.lock, alone=True)
    if lock is None:
        raise UserError(
            f"{run.root} is in use by a training that is running or about to end; wait for it, or stop it"
        )
    if resume:
        save_config(run, config)  # with what may change on the way, such as data.on_error
    run.stopped.unlink(missing_ok=True)
    run.failure.unlink(missing_ok=True)
    began = time.time()
    try:
        with _stop_on_signal() as stop, _follow(run.metrics, since=began) as rows:
            if config.adapt.on and not run.adapted.exists():
                ranks, dead = _stage([lambda: _start_ranks(run, config, "adapt")], stop, rows, on_event)
                if stop and run.adapted.exists():
                    write_json(run.stopped, {"step": 0, "reason": f"signal {signal.Signals(stop[0]).name}"})
                if stop or not run.adapted.exists():
                    return _outcome(run, ranks, dead)
            return _train(run, config, devices, stop, rows, on_event)
    finally:
        lock.close()


def _train(
    run: RunFolder,
    config: RunConfig,
    devices: Devices,
    stop: list[int],
    rows: Callable[[], list[Row]],
    on_event: OnEvent,
) -> Outcome:
    """Run the ranks, with the miner beside them, or in turn with it where both need the same devices."""
    beside = config.refresh.on and not config.refresh.gives_back(
        cuda=has_cuda(), cluster=bool(config.workers.address)
    )
    while True:
        run.mining.unlink(missing_ok=True)
        starts: list[Callable[[], Companion]] = [lambda: _start_ranks(run, config, environment=devices.ranks)]
        if beside:
            starts.append(lambda: KeptMiner(run, config.refresh, environment=devices.miner))
        ranks, dead = _stage(starts, stop, rows, on_event)
        if dead is not None or not run.mining.exists():
            return _outcome(run, ranks, dead)
        left = read_json(run.mining)
        if not stop:
            mined, _ = _stage([lambda: KeptMiner(run, config.refresh, once=True)], stop, rows, on_event)
            if not stop and left["version"] not in published_versions(run.negatives):
                raise mining_failed(run, left["version"], mined)
        if stop:
            write_json(run.stopped, {"step": left["step"], "reason": f"signal {signal.Signals(stop[0]).name}"})
            return Outcome(run=run, finished=False, step=left["step"])


def _stage(
    starts: Sequence[Callable[[], Companion]], stop: list[int], rows: Callable[[], list[Row]], on_event: OnEvent
) -> tuple[Companion, Companion | None]:
    """Start the ranks, and what runs beside them, and see them to their end.

    Returns:
        The ranks, and who ended before them without being asked to, if anyone did.
    """
    children: list[Companion] = []
    try:
        for start in starts:
            children += [start()]  # one by one: where the second cannot start, the first has to end
        return children[0], _watch(children, stop, rows, on_event)
    finally:
        for child in children:
            child.end(_GRACE_S)


def _watch(
    children: list[Companion], stop: list[int], rows: Callable[[], list[Row]], on_event: OnEvent
) -> Companion | None:
    """Return when the ranks are done, or when anything failed; the caller ends what is left.

    Returns:
        Who ended before the ranks without being asked to, if anyone did.
    """
    ranks, *others = children
    asked = False
    while ranks.wait(_TICK_S) is None:
        _pass_on(rows(), on_event)
        if stop and not asked:
            asked = True
            _log.info("stopping after this step; the run can be resumed")
            ranks.ask_to_stop()
        if not asked and (dead := next((child for child in others if child.exit_code() is not None), None)):
            return dead
    _pass_on(rows(), on_event)
    return None


def _pass_on(rows: list[Row], on_event: OnEvent) -> None:
    for row in rows:
        on_event(row)


def _outcome(run: RunFolder, ranks: Companion, dead: Companion | None) -> Outcome:
    if run.done.exists():
        return Outcome(run=run, finished=True, step=read_json(run.done)["steps"])
    # Ranks that were stopped because another died leave the same flag as those that a person stopped.
    if run.stopped.exists() and dead is None:
        row = read_json(run.stopped)
        return Outcome(run=run, finished=False, step=row["step"], stage=row.get("stage", "train"))
    if run.failure.exists() and read_json(run.failure).get("exit_code") == EXIT_STUCK:
        raise failure_of(run, ranks.log)  # torchrun may have killed the stuck rank: that is no cause
    if dead is None and (killed := _killed_rank(ranks.log.read_text(encoding="utf-8", errors="replace"))):
        raise TrainingFailedError(f"{killed}\ngo on with: dipole train {run.config} --resume")
    if run.failure.exists():
        raise failure_of(run, ranks.log)
    culprit = dead or ranks
    raise TrainingFailedError(f"the {culprit.name} ended (exit code {culprit.exit_code()}):\n{culprit.last_lines()}")


def _killed_rank(log: str) -> str | None:
    """Say which rank was killed, by torchrun's last report; what the other ranks tell then is only its echo.

    torchrun's own "root cause" is whom it saw first, which may be the echo. Ranks that it ended itself have SIGTERM,
    ranks that gave up on a lost peer may have SIGABRT: neither is a cause.
    """
    report = log.rpartition("ChildFailedError")[2] if "ChildFailedError" in log else ""
    for rank, number in re.findall(r"rank +: (\d+) [^\n]*\n +exitcode +: -(\d+) ", report):
        if int(number) not in (signal.SIGTERM, signal.SIGABRT):
            name = signal.Signals(int(number)).name
            return f"rank {rank} was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return None


def _start_ranks(
    run: RunFolder, config: RunConfig, *stage: str, environment: Mapping[str, str] | None = None
) -> Child:
    command = rank_command(config, ["launch.train_worker", str(run.root), *stage], shutdown_s=int(_GRACE_S) - 10)
    own = {"OMP_NUM_THREADS": str(threads_per_rank(config)), "TOKENIZERS_PARALLELISM": "false"}
    own[BEGAN] = str(psutil.Process().create_time())
    if not has_cuda():
        own["DS_ACCELERATOR"] = "cpu"
    log = run.logs / f"{'adapt' if stage else 'train'}.log"
    name = "adapting" if stage else "training"
    own |= environment or {}
    return Child(name, command.words, log=log, environment=own, stop_signal=command.stop_signal)


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Collect what asks for a stop instead of dying of it; the old handlers come back afterwards."""
    caught: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, handler) for number in _STOPS}
    try:
        yield caught
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def _follow(path: Path, *, since: float) -> Iterator[Callable[[], list[Row]]]:
    """Yield a function that returns the rows logged after `since`, each once."""
    file: IO[str] | None = None
    rest = ""

    def new_rows() -> list[Row]:
        nonlocal file, rest
        if path.exists() and (file is None or os.fstat(file.fileno()).st_ino != path.stat().st_ino):
            # A resumed run cuts the file back by replacing it.
            if file:
                file.close()
            file, rest = open(path, encoding="utf-8"), ""
        *lines, rest = (rest + file.read() if file else "").split("\n")
        return [row for row in map(json.loads, filter(None, lines)) if row["time"] >= since]

    try:
        yield new_rows
    finally:
        if file:
            file.close()
