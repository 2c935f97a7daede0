"""A rank's work under its watchdog: what training and adapting have in common from beginning to end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch

from data_shards.atomic import write_json
from data_shards.order import GlobalOrder
from train.checkpoint import TrainState
from train.collectives import barrier, rank, world_size
from train.engine import Precision
from train.first_cause import leave_error
from train.job import TrainJob
from train.keeper import Keeper
from train.stops import StopFlag
from train.watchdog import Watchdog


class Work(Protocol):
    """A stage of a run on one rank."""

    def run(self) -> int:
        """Go to the end, or to where it is asked to stop; return the exit code."""

    def close(self, exit_code: int, why: str) -> None:
        """Let what runs beside it come to its end; `why` is one line where it failed."""


def run_watched(job: TrainJob, begin: Callable[[TrainJob, Watchdog], Work]) -> int:
    """Begin a stage, run it, and close it whatever happens; return its exit code."""
    config = job.watchdog.within(job.engine.timeout_s)
    watchdog = Watchdog(job.run, config, rank=launched("RANK", 0), world=launched("WORLD_SIZE", 1))
    watchdog.start()
    work = None
    exit_code, why = 1, ""
    try:
        work = begin(job, watchdog)
        exit_code = work.run()
    except BaseException as error:
        # At once: closing takes time, and the echo of this on another rank must not be told first.
        exit_code = leave_error(job.run, error, rank=launched("RANK", 0), world=launched("WORLD_SIZE", 1))
        why = str(error)
        raise
    finally:
        if work is not None:
            work.close(exit_code, why)
        watchdog.close()
    return exit_code


def first_state(job: TrainJob, dataset_id: str, order: GlobalOrder, precision: Precision) -> TrainState:
    """Return what a stage is, at its first step."""
    return TrainState(
        step=0,
        engine=job.engine.kind,
        world_size=world_size(),
        dataset_id=dataset_id,
        batch_size=order.batch_size,
        seed=job.seed,
        order=order.identity,
        negatives_version=0,
        precision=precision,
    )


def leave(job: TrainJob, keeper: Keeper, stop: StopFlag, device: torch.device, **where: object) -> str:
    """Leave the resume flag once the checkpoint is there; every rank calls it.

    Args:
        job: what this rank is told.
        keeper: of the checkpoint.
        stop: whose word it is.
        device: where the process group's tensors live.
        where: what the flag says of the place.

    Returns:
        Why the stage stops.
    """
    keeper.wait()
    reason = stop.reason(device)
    if rank() == 0:
        write_json(job.run.stopped, {**where, "reason": reason})
    barrier()
    return reason


def launched(name: str, default: int) -> int:
    """Return what torchrun told this process, before there is a process group to ask."""
    return int(os.environ.get(name, default))
