"""The worker processes of a pool: started, replaced when they die, more of them while work waits and CPUs are free.

Work is given out one job a worker. A worker that dies is replaced and its job done again; a job that fails by
itself fails the whole, at once, with its cause first.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from data_shards.errors import UserError
from encoder.suspicion import suspects_in
from index_build.ray_worker import ShardJob

_log = logging.getLogger(__name__)

_DEATHS_PER_JOB = 3
_DEATHS_WITH_SUSPECTS = 40  # halving a batch of thousands down to one passage takes a dozen
_POLL_S = 1.0


class WorkerError(RuntimeError):
    """A worker failed; the message's first line is the cause, the worker's own traceback follows."""


@dataclass(frozen=True)
class Job:
    """A call of a worker's method."""

    method: str
    arguments: tuple[Any, ...]
    what: str
    """For messages: what the worker was doing."""

    def after_a_death(self) -> Job:
        """Return the same job, which knows that it has cost one more worker."""
        counted = tuple(
            replace(each, deaths=each.deaths + 1) if isinstance(each, ShardJob) else each for each in self.arguments
        )
        return replace(self, arguments=counted)

    @property
    def has_suspects(self) -> bool:
        """Whether the worker left word of what it was computing."""
        return any(isinstance(each, ShardJob) and suspects_in(each.note) > 0 for each in self.arguments)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How many workers, and how large."""

    least: int
    """Started at once."""
    most: int
    """Reached while jobs wait and the cluster has room."""
    threads: int
    """CPUs of each."""
    start_timeout_s: float
    """How long a worker may take to come up, or wait for a free CPU."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.least < 1 or self.threads < 1:
            raise UserError(f"workers is {self.least} and threads_per_worker {self.threads}; both must be at least 1")
        if self.most < self.least:
            raise UserError(f"max_workers is {self.most}, less than the {self.least} workers to start with; raise it")


@dataclass(eq=False)
class _Worker:
    actor: Any
    started: float
    pid: int = 0


class Crew:
    """Worker processes, inside a Ray session."""

    def __init__(self, bounds: Bounds, hire: Callable[[], tuple[Any, tuple[Any, ...]]]) -> None:
        """Say what the workers are; `start` starts them.

        Args:
            bounds: of their number.
            hire: returns a worker's class and the arguments to make one with.
        """
        self._bounds = bounds
        self._hire = hire
        self._workers: list[_Worker] = []
        self._starting: dict[Any, _Worker] = {}
        self._grown = 0.0

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are up, on whatever host they are."""
        return [worker.pid for worker in self._workers]

    def start(self) -> None:
        """Start what is missing of the least number; they come up while the caller goes on."""
        for _ in range(self._bounds.least - len(self._workers) - len(self._starting)):
            self._start_worker()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the job, its result) as jobs end.

        Raises:
            UserError: a job raised it.
            WorkerError: a job failed otherwise, or ended its workers again and again.
        """
        import ray

        self.start()  # in the place of those that an earlier call has lost
        jobs = list(jobs)
        waiting = deque(range(len(jobs)))
        idle = deque(self._workers)
        running: dict[Any, tuple[_Worker, int]] = {}
        deaths: Counter[int] = Counter()
        while waiting or running:
            while waiting and idle:
                worker, number = idle.popleft(), waiting.popleft()
                job = jobs[number]
                running[getattr(worker.actor, job.method).remote(*job.arguments)] = (worker, number)
            if waiting:
                self._grow()
            ended, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=_POLL_S)
            for reference in ended:
                if reference in self._starting:
                    idle.extend(self._welcome(reference))
                    continue
                worker, number = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause_first(error, jobs[number].what) from error.cause
                except ray.exceptions.RayError as error:  # the worker or its node is gone, or the result with it
                    deaths[number] += 1
                    self._replace(worker, error, deaths[number], jobs[number])
                    jobs[number] = jobs[number].after_a_death()
                    waiting.appendleft(number)
                else:
                    yield number, result
                    idle.append(worker)
            self._give_up_on_late_workers()

    def dismiss(self) -> None:
        """End all workers."""
        import ray

        for worker in (*self._workers, *self._starting.values()):
            with suppress(Exception):  # it may be dead already; what matters is that none is left
                ray.kill(worker.actor)
        self._workers.clear()
        self._starting.clear()

    def _grow(self) -> None:
        """Start one more worker, where the bounds and the cluster have room and none is on its way."""
        import ray

        now = time.monotonic()
        if self._starting or len(self._workers) >= self._bounds.most or now - self._grown < _POLL_S:
            return
        self._grown = now
        free = ray.available_resources()
        gpus = self._gpu_share()
        # Shares like 1/3 do not add up to 1 exactly.
        if free.get("CPU", 0.0) >= self._bounds.threads and free.get("GPU", 0.0) + 1e-3 >= gpus:
            self._start_worker()

    def _gpu_share(self) -> float:
        import ray

        return gpus_per_worker(ray.cluster_resources().get("GPU", 0.0), self._bounds.most)

    def _start_worker(self) -> None:
        import ray

        kind, arguments = self._hire()
        remote = ray.remote(kind).options(num_cpus=self._bounds.threads, num_gpus=self._gpu_share(), max_restarts=0)
        actor = remote.remote(*arguments)
        self._starting[actor.ready.remote()] = _Worker(actor=actor, started=time.monotonic())

    def _welcome(self, reference: Any) -> list[_Worker]:
        """Take in a worker that has come up; one whose node went meanwhile is started anew, any other is an error."""
        import ray

        worker = self._starting.pop(reference)
        try:
            worker.pid = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise WorkerError(f"a worker did not start: {_last_line(error)}\n\n{error}") from error
        except ray.exceptions.RayError as error:
            if not self._workers and not self._starting:
                raise WorkerError(f"a worker did not start: {_last_line(error)}\n\n{error}") from error
            _log.warning("a worker was lost while it started (%s); going on with %d", *_lost(error, self._workers))
            return []
        self._workers.append(worker)
        return [worker]

    def _replace(self, worker: _Worker, error: Exception, deaths: int, job: Job) -> None:
        import ray

        self._workers.remove(worker)
        with suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)
        if deaths >= (_DEATHS_WITH_SUSPECTS if job.has_suspects else _DEATHS_PER_JOB):
            raise WorkerError(f"{job.what} ended its worker {deaths} times; the last time: {error}") from error
        _log.warning("worker process %d died while %s; another one does it again", worker.pid, job.what)
        self._start_worker()

    def _give_up_on_late_workers(self) -> None:
        """Go on without workers that find no free CPU in time, unless they are all there is."""
        import ray

        now = time.monotonic()
        timeout_s = self._bounds.start_timeout_s
        late = [key for key, worker in self._starting.items() if now - worker.started > timeout_s]
        for key in late:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._starting.pop(key).actor)
        if late and not self._workers and not self._starting:
            raise WorkerError(
                f"none of {self._bounds.least} workers of {self._bounds.threads} CPUs came up in {timeout_s:.0f} s; "
                "ask for fewer, or free CPUs of the Ray cluster"
            )
        if late:
            _log.warning("%d workers did not come up in time; going on with %d", len(late), len(self._workers))


def gpus_per_worker(gpus: float, workers: int) -> float:
    """Return each worker's share: one GPU at most, and where there are fewer than workers, several take turns on one.

    A share divides a GPU evenly, since no worker can have parts of two.
    """
    if not gpus:
        return 0.0
    return 1.0 / math.ceil(workers / gpus)


def _cause_first(error: Any, what: str) -> Exception:
    """Return what the worker raised: a user's mistake as it is, anything else as a `WorkerError`."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    return WorkerError(f"{type(cause).__name__}: {cause} (while {what})\n\n{error}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _lost(error: Exception, workers: Sequence[_Worker]) -> tuple[str, int]:
    return _last_line(error), len(workers)
