"""One rank's part in refreshes: asks for negatives when they are due, waits or goes on, takes what has come.

phased    ask -> wait (or leave the devices to the miner and come back) -> take, from this step on
async     ask -> go on … a version arrives, all ranks have read it -> take, from the next step not made yet
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from data_shards.atomic import write_json
from data_shards.errors import DamagedVersionError, ShardCorruptError, UserError
from data_shards.negatives import NegativesVersion, published_versions
from data_shards.order import GlobalOrder
from train.arrivals import WORDS, Arrivals
from train.cadence import Flatness
from train.checkpoint import TrainState
from train.collectives import barrier, max_over_ranks, rank, world_size
from train.job import TrainJob
from train.negatives_plan import NegativesPlan, Use, lived_to, set_aside
from train.refresh import RefreshFailedError, RefreshRequest, wait_for_version

_log = logging.getLogger(__name__)
_TRIES = 2
"""A version that was damaged on the way to the disk is mined once more."""
_SLACK_S = 60.0
_LATE = 3
"""Negatives older than so many intervals are worth a warning."""


class Refresher:
    """Every rank calls its methods together."""

    def __init__(
        self, job: TrainJob, *, order: GlobalOrder, total: int, dataset_id: str, device: torch.device
    ) -> None:
        """Read what earlier lives of the run decided.

        Args:
            job: what this rank is told. The log is still as the life before left it.
            order: its steps resolve durations.
            total: steps of the run.
            dataset_id: of the training pairs.
            device: where the process group's tensors live.
        """
        self._config, self._run, self._device = job.refresh, job.run, device
        self._dataset_id, self._total, self._depth = dataset_id, total, job.batch.prefetch_steps
        self._cadence = job.refresh.cadence(order, total)
        self._leaves = job.refresh.gives_back(cuda=device.type == "cuda", cluster=bool(job.ray_address))
        self.plan = NegativesPlan(job.run, dataset_id)
        self._warned = 0
        # Behind a step lie what is read ahead, and the batch that is being made.
        self._ahead = self._depth + 2
        self._arrivals: Arrivals | None = None
        self._lived_to = 0
        if job.refresh.on and job.refresh.way == "async":
            self._arrivals = Arrivals(job.run, dataset_id, lead=rank() == 0, world=world_size())
            self._lived_to = lived_to(job.run)

    @property
    def waits(self) -> bool:
        """Whether training stands still until a version is there."""
        return self._arrivals is None

    @property
    def allow_s(self) -> float:
        """How long waiting may take, and more: that the miner is late is for the waiting to say."""
        return _TRIES * self._config.timeout_s + _SLACK_S

    def due(self, state: TrainState) -> bool:
        """Whether a refresh comes before the next step."""
        # One that is still being mined has to show first what it teaches. Asked of the step before, since what a life
        # that came further has taken says nothing here.
        use = self.plan.begun(state.step - 1)
        flat = Flatness(*state.flatness).flat and (use.version if use is not None else 0) == state.refreshes
        return self._config.on and self._cadence.due(
            state.step, asked=state.refreshes, last=state.refresh_step, flat=flat
        )

    def read_to(self, state: TrainState) -> int:
        """Return the step up to which batches can be made: behind it they need negatives that are not mined yet."""
        if not self._config.on:
            return self._total
        return max(state.step + 1, self._cadence.next_step(asked=state.refreshes, last=state.refresh_step))

    def ask(self, state: TrainState) -> RefreshRequest:
        """Leave a request for the miner; its snapshot has to be there."""
        step, first = state.step, self._cadence.first or self._total
        version = state.refreshes + 1
        if self._cadence.warm_up and version == 1:
            request = RefreshRequest(
                version=version,
                snapshot=str(self._run.initial.relative_to(self._run.root)),
                snapshot_step=0,
                from_step=0,
                to_step=min(self._total, first if self.waits else first + self._reach()),
                sources=("bm25",),
            )
        else:
            begin = step + self._lag(step) // 2
            request = RefreshRequest(
                version=version,
                snapshot=str(self._run.snapshot(step).relative_to(self._run.root)),
                snapshot_step=step,
                from_step=begin,
                to_step=min(self._total, begin + self._reach(self._lag(step))),
            )
        if rank() == 0:
            request.write(self._run)
        barrier()  # else another rank may still see that the miner failed, in the run that this one resumes
        return request

    def leaves_for(self, request: RefreshRequest) -> bool:
        """Whether the ranks are to give their devices back, since the miner needs them first."""
        if not self._leaves:
            return False
        missing = rank() == 0 and request.version not in published_versions(self._run.negatives)
        return max_over_ranks(int(missing), self._device) > 0

    def leave(self, request: RefreshRequest) -> None:
        """Leave word of what the ranks have left for; the checkpoint is there."""
        if rank() == 0:
            write_json(self._run.mining, {"version": request.version, "step": request.snapshot_step})
        barrier()

    def wait(self, request: RefreshRequest, *, give_up: Callable[[], bool]) -> bool:
        """Wait for a version, and take it; false after giving up.

        Raises:
            RefreshFailedError: the miner failed, took too long, or what it wrote is damaged again and again.
        """
        for _ in range(_TRIES):
            found, damage = self._wait_once(request.version, give_up)
            if max_over_ranks(int(damage is not None), self._device) == 0:
                if found is not None:
                    self.plan.take(found, request.snapshot_step, write=rank() == 0)
                return found is not None
            if rank() == 0:
                set_aside(self._run, request.version, damage or "another rank cannot read it")
            barrier()
        raise RefreshFailedError(f"negatives version {request.version} was damaged {_TRIES} times; check the disk")

    def say(self, state: TrainState) -> Sequence[float]:
        """Return what travels in a step's sum, see `Arrivals`."""
        if self._arrivals is None:
            return (0.0,) * WORDS
        # That a version was not in use yet is history as well, whenever it came.
        new = state.step + 1 + self._ahead >= self._lived_to
        return self._arrivals.say(self.plan.newest, state.refreshes if new else 0)

    def hear(self, step: int, said: Sequence[float]) -> None:
        """Take a version that all ranks have, from the first step on that nobody has made a batch for."""
        version = self._arrivals.hear(said) if self._arrivals else None
        if version is not None:
            self.plan.take(version, step + self._ahead, write=rank() == 0)

    def begins(self, step: int) -> Use | None:
        """Return the use that begins with a step, if one does."""
        use = self.plan.begun(step)
        return use if use is not None and use.from_step == step else None

    def counted(self, state: TrainState, hard_loss: float | None) -> TrainState:
        """Return the state after a step that had this loss over hard negatives; another version counts anew."""
        version = self.plan.at(state.step)
        state = replace(state, negatives_version=version.manifest.version if version else 0)
        if not self._config.flat_steps or hard_loss is None:
            return state
        flatness = Flatness() if self.begins(state.step) else Flatness(*state.flatness)
        return replace(state, flatness=list(flatness.after(hard_loss, self._config)))

    def check_age(self, state: TrainState) -> None:
        """Say when the negatives in use are old, and end where they are too old.

        Raises:
            RefreshFailedError: they are older than `max_age_steps`.
        """
        if self.waits or not state.refreshes:
            return
        version = self.plan.at(state.step)
        age = state.step - (version.manifest.snapshot_step if version else self._cadence.first)
        what = f"step {state.step}: negatives are {age} steps old" if version else f"no negatives after {age} steps"
        if 0 < self._config.max_age_steps < age:
            raise RefreshFailedError(
                f"{what}, refresh.max_age_steps is {self._config.max_age_steps}; see {self._run.logs / 'miner.log'}, "
                "and give the miner more workers or refresh less often"
            )
        if 0 < _LATE * self._cadence.every < age and self._warned != state.refreshes:
            self._warned = state.refreshes
            _log.warning("%s, wanted every %d; see %s", what, self._cadence.every, self._run.logs / "miner.log")

    def prune(self, oldest_step: int) -> None:
        """Delete versions and snapshots that no checkpoint needs any more."""
        if rank() == 0:
            self.plan.prune(oldest_step=oldest_step, keep=self._config.keep_versions)

    def close(self) -> None:
        """End what runs beside the steps."""
        if self._arrivals:
            self._arrivals.close()

    def _lag(self, step: int) -> int:
        """Return how many steps passed from the last snapshot to its version's use; nothing in phases."""
        return 0 if self.waits else self.plan.lag(step)

    def _reach(self, lag: int = 0) -> int:
        """Return how many steps a version is mined for: beside training it may serve twice as long."""
        every = self._cadence.every or self._total
        return every if self.waits else 2 * max(every, lag)

    def _wait_once(
        self, version: int, give_up: Callable[[], bool]
    ) -> tuple[NegativesVersion | None, UserError | None]:
        try:
            found = wait_for_version(
                self._run,
                version,
                dataset_id=self._dataset_id,
                timeout_s=self._config.timeout_s,
                give_up=give_up,
            )
        except (ShardCorruptError, DamagedVersionError) as error:
            return None, error
        return found, None
