"""A pool of Ray actors that embed: a corpus shard by shard, or texts chunk by chunk.

Work is given out one job a worker. A worker that dies is replaced and its job done again; a job that fails by
itself fails the whole, at once, with its cause first.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from data_shards.reader import CorpusDataset
from encoder.embed import Precision
from encoder.model import Side
from index_build.embedding_part import PartRecord, Provenance, finished_part, part_files
from index_build.embedding_set import EmbeddingSet, publish_set, retract_set
from index_build.ray_session import ray_session
from index_build.ray_worker import EmbedWorker, ShardJob, Snapshot

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_TEXTS_PER_JOB = 1_024  # fixed: a text's vector may depend, in its last bits, on what it is batched with
_DEATHS_PER_JOB = 3
_POLL_S = 5.0


class WorkerError(RuntimeError):
    """A worker failed; the message's first line is the cause, the worker's own traceback follows."""


@dataclass(frozen=True)
class _Job:
    method: str
    arguments: tuple[Any, ...]
    what: str


@dataclass(eq=False)
class _Worker:
    actor: Any
    started: float
    pid: int = 0


class EmbedPool(AbstractContextManager["EmbedPool"]):
    """Workers that keep an encoder loaded between calls; leaving the block ends them all."""

    def __init__(
        self,
        *,
        workers: int = 1,
        threads_per_worker: int = 1,
        address: str | None = None,
        precision: Precision = "float32",
        tokens_per_batch: int = 4096,
        start_timeout_s: float = 120.0,
    ) -> None:
        """Say what the pool is to be; it starts on entering.

        Args:
            workers: processes.
            threads_per_worker: CPUs of each.
            address: an existing Ray cluster; without it Ray is started on this machine, for this pool alone.
            precision: in which the encoder computes.
            tokens_per_batch: most tokens in a forward pass, padding counted.
            start_timeout_s: how long a worker may take to come up, or wait for a free CPU.

        Raises:
            UserError: a number is below 1.
        """
        if workers < 1 or threads_per_worker < 1:
            raise UserError(
                f"workers is {workers} and threads_per_worker {threads_per_worker}; both must be at least 1"
            )
        self._wanted = workers
        self._threads = threads_per_worker
        self._address = address
        self.precision: Precision = precision
        self._tokens_per_batch = tokens_per_batch
        self._start_timeout_s = start_timeout_s
        self._workers: list[_Worker] = []
        self._starting: dict[Any, _Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> EmbedPool:
        """Start Ray and the workers; they come up while the first call prepares its work."""
        with ExitStack() as stack:
            stack.enter_context(ray_session(self._wanted * self._threads, self._address))
            stack.callback(self._kill_all)
            for _ in range(self._wanted):
                self._start_worker()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, and Ray where we started it."""
        self._stack.close()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are up, on whatever host they are."""
        return [worker.pid for worker in self._workers]

    def embed_corpus(self, snapshot: Path, corpus: Path, out: Path, progress: Progress | None = None) -> EmbeddingSet:
        """Embed a corpus; what is done already, by this snapshot at this precision, is not done again.

        Args:
            snapshot: folder of the encoder.
            corpus: folder of the corpus.
            out: folder of the embedding set, new or begun.
            progress: called with (passages done, passages in all) after each shard.

        Returns:
            The finished set.

        Raises:
            UserError: `out` holds parts of another snapshot, precision or corpus; the snapshot is not a model; the
                corpus is damaged or repeats an id.
            WorkerError: a worker failed otherwise, or died again and again on the same shard.
        """
        pinned = Snapshot.at(snapshot)
        dataset = CorpusDataset(corpus.absolute())
        jobs = self._shard_jobs(pinned, dataset, out.absolute())
        out.mkdir(parents=True, exist_ok=True)
        _refuse_surplus_parts(out, len(jobs))
        records = _finished_parts(out, jobs)
        done = sum(record.rows for record in records.values())
        todo = [job for job in jobs if job.shard not in records]
        if todo:
            retract_set(out)
        if progress:
            progress(done, len(dataset))
        calls = [_Job("embed_shard", (job,), f"embedding {job.provenance.shard}") for job in todo]
        for number, record in self._run(calls):
            records[todo[number].shard] = record
            done += record.rows
            if progress:
                progress(done, len(dataset))
        publish_set(
            out,
            [records[shard] for shard in range(len(jobs))],
            snapshot={"path": str(pinned.path), "hash": pinned.hash},
            corpus={"path": dataset.location, "dataset_id": dataset.dataset_id},
        )
        return EmbeddingSet.open(out)

    def embed_texts(self, snapshot: Path, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """Embed texts on all workers.

        Returns:
            float32 [len(texts), dim], in the order of `texts`; the same whatever the number of workers.

        Raises:
            UserError, WorkerError: as `embed_corpus`.
        """
        pinned = Snapshot.at(snapshot)
        chunks = [list(texts[at : at + _TEXTS_PER_JOB]) for at in range(0, max(len(texts), 1), _TEXTS_PER_JOB)]
        calls = [_Job("embed_texts", (pinned, chunk, side), f"embedding {len(chunk)} texts") for chunk in chunks]
        found = dict(self._run(calls))
        return np.concatenate([found[number] for number in range(len(chunks))])

    def score_pairs(self, teacher: Path, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float32]:
        """Score pairs with a cross-encoder, on all workers.

        Args:
            teacher: folder of the cross-encoder.
            queries: [n].
            passages: [n], one for each query.

        Returns:
            float32 [n]; the same whatever the number of workers.

        Raises:
            UserError, WorkerError: as `embed_corpus`.
        """
        pinned = Snapshot.at(teacher)
        calls = [
            _Job(
                "score_pairs",
                (pinned, list(queries[at : at + _TEXTS_PER_JOB]), list(passages[at : at + _TEXTS_PER_JOB])),
                f"asking the teacher of {len(queries[at : at + _TEXTS_PER_JOB])} passages",
            )
            for at in range(0, len(queries), _TEXTS_PER_JOB)
        ]
        found = dict(self._run(calls))
        return np.concatenate([np.empty(0, np.float32), *(found[number] for number in range(len(calls)))])

    def _shard_jobs(self, snapshot: Snapshot, dataset: CorpusDataset, out: Path) -> list[ShardJob]:
        return [
            ShardJob(
                snapshot=snapshot,
                corpus=Path(dataset.location),
                shard=number,
                out=out,
                provenance=Provenance(
                    snapshot_hash=snapshot.hash,
                    precision=self.precision,
                    shard=entry.path,
                    shard_sha256=entry.sha256,
                ),
            )
            for number, entry in enumerate(dataset.manifest.shards)
        ]

    def _run(self, jobs: Sequence[_Job]) -> Iterator[tuple[int, Any]]:
        """Yield (number of the job, its result) as jobs end."""
        import ray

        for _ in range(self._wanted - len(self._workers) - len(self._starting)):
            self._start_worker()  # in the place of those that an earlier call has lost
        waiting = deque(range(len(jobs)))
        idle = deque(self._workers)
        running: dict[Any, tuple[_Worker, int]] = {}
        deaths: Counter[int] = Counter()
        while waiting or running:
            while waiting and idle:
                worker, number = idle.popleft(), waiting.popleft()
                job = jobs[number]
                running[getattr(worker.actor, job.method).remote(*job.arguments)] = (worker, number)
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
                    self._replace(worker, error, deaths[number], jobs[number].what)
                    waiting.appendleft(number)
                else:
                    yield number, result
                    idle.append(worker)
            self._give_up_on_late_workers()

    def _start_worker(self) -> None:
        import ray

        gpus = gpus_per_worker(ray.cluster_resources().get("GPU", 0.0), self._wanted)
        remote = ray.remote(EmbedWorker).options(num_cpus=self._threads, num_gpus=gpus, max_restarts=0)
        actor = remote.remote(self._threads, self.precision, self._tokens_per_batch)
        self._starting[actor.ready.remote()] = _Worker(actor=actor, started=time.monotonic())

    def _welcome(self, reference: Any) -> list[_Worker]:
        """Take in a worker that has come up; one that failed to is an error of its own."""
        import ray

        worker = self._starting.pop(reference)
        try:
            worker.pid = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise WorkerError(f"a worker did not start: {_last_line(error)}\n\n{error}") from error
        self._workers.append(worker)
        return [worker]

    def _replace(self, worker: _Worker, error: Exception, deaths: int, what: str) -> None:
        import ray

        self._workers.remove(worker)
        with suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)
        if deaths >= _DEATHS_PER_JOB:
            raise WorkerError(f"{what} ended its worker {deaths} times; the last time: {error}") from error
        _log.warning("worker process %d died while %s; another one does it again", worker.pid, what)
        self._start_worker()

    def _give_up_on_late_workers(self) -> None:
        """Go on without workers that find no free CPU in time, unless they are all there is."""
        import ray

        now = time.monotonic()
        late = [key for key, worker in self._starting.items() if now - worker.started > self._start_timeout_s]
        for key in late:
            with suppress(ray.exceptions.RayError):
                ray.kill(self._starting.pop(key).actor)
        if late and not self._workers:
            raise WorkerError(
                f"none of {self._wanted} workers of {self._threads} CPUs came up in {self._start_timeout_s:.0f} s; "
                "ask for fewer, or free CPUs of the Ray cluster"
            )
        if late:
            _log.warning("%d workers did not come up in time; going on with %d", len(late), len(self._workers))

    def _kill_all(self) -> None:
        import ray

        for worker in (*self._workers, *self._starting.values()):
            with suppress(Exception):  # it may be dead already; what matters is that none is left
                ray.kill(worker.actor)
        self._workers.clear()
        self._starting.clear()


def gpus_per_worker(gpus: float, workers: int) -> float:
    """Return each worker's share: one GPU at most, and where there are fewer than workers, several take turns on one.

    A share divides a GPU evenly, since no worker can have parts of two.
    """
    if not gpus:
        return 0.0
    return 1.0 / math.ceil(workers / gpus)


def _finished_parts(out: Path, jobs: Sequence[ShardJob]) -> dict[int, PartRecord]:
    """Return the records of the parts that are done and whole; checksums are compared by several threads."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        found = list(threads.map(lambda job: finished_part(out, job.shard, job.provenance), jobs))
    return {job.shard: record for job, record in zip(jobs, found, strict=True) if record is not None}


def _refuse_surplus_parts(out: Path, parts: int) -> None:
    """Refuse a folder with done parts beyond this corpus's shards."""
    last = part_files(out, parts - 1).done.name
    surplus = sorted(path.name for path in out.glob("part-*.done.json") if path.name > last)
    if surplus:
        raise UserError(
            f"{out} already holds {surplus[0]}, but this corpus has {parts} shards: the set is of another corpus; "
            "choose another --out"
        )


def _cause_first(error: Any, what: str) -> Exception:
    """Return what the worker raised: a user's mistake as it is, anything else as a `WorkerError`."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    return WorkerError(f"{type(cause).__name__}: {cause} (while {what})\n\n{error}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
