"""A pool of Ray actors that embed: a corpus unit by unit, or texts chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from encoder.embed import Precision
from encoder.model import Side
from index_build.corpus_job import Progress, Wish, Work, embed_corpus
from index_build.embedding_set import EmbeddingSet
from index_build.ray_crew import Bounds, Crew, Job, WorkerError as WorkerError
from index_build.ray_session import ray_session
from index_build.ray_worker import EmbedWorker, Snapshot

_TEXTS_PER_JOB = 1_024  # fixed: a text's vector may depend, in its last bits, on what it is batched with


class EmbedPool(AbstractContextManager["EmbedPool"]):
    """Workers that keep an encoder loaded between calls; leaving the block ends them all."""

    def __init__(
        self,
        *,
        workers: int = 1,
        max_workers: int | None = None,
        threads_per_worker: int = 1,
        address: str | None = None,
        gpus: int = 0,
        precision: Precision = "float32",
        tokens_per_batch: int | None = None,
        start_timeout_s: float = 120.0,
        worker: type[EmbedWorker] = EmbedWorker,
    ) -> None:
        """Say what the pool is to be; it starts on entering.

        Args:
            workers: processes to begin with.
            max_workers: to so many their number grows, while work waits and the cluster has CPUs free; by default it
                does not.
            threads_per_worker: CPUs of each.
            address: an existing Ray cluster; without it Ray is started on this machine, for this pool alone.
            gpus: of this machine, that a Ray started here may give out.
            precision: in which the encoder computes.
            tokens_per_batch: most tokens in a forward pass, padding counted; by default what suits the device.
            start_timeout_s: how long a worker may take to come up, or wait for a free CPU.
            worker: what the workers are.

        Raises:
            UserError: a number is below 1, or the most workers are fewer than the least.
        """
        bounds = Bounds(
            least=workers,
            most=workers if max_workers is None else max_workers,
            threads=threads_per_worker,
            start_timeout_s=start_timeout_s,
        )
        self._cpus, self._gpus, self._address = bounds.most * threads_per_worker, gpus, address
        self.precision: Precision = precision
        self.work = Work()
        """What the last `embed_corpus` has computed, or the one under way."""
        self._crew = Crew(bounds, lambda: (worker, (threads_per_worker, precision, tokens_per_batch)))
        self._stack = ExitStack()

    def __enter__(self) -> EmbedPool:
        """Start Ray and the workers; they come up while the first call prepares its work."""
        with ExitStack() as stack:
            stack.enter_context(ray_session(self._cpus, self._address, self._gpus))
            stack.callback(self._crew.dismiss)
            self._crew.start()
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
        return self._crew.pids

    def embed_corpus(
        self,
        snapshot: Path,
        corpus: str | Path,
        out: Path,
        progress: Progress | None = None,
        *,
        wish: Wish | None = None,
    ) -> EmbeddingSet:
        """Embed a corpus; what is done already, by this snapshot in this form, is not done again.

        A passage that cannot be embedded is left out, with a reason; see `EmbeddingSet.quarantined`.

        Args:
            snapshot: folder of the encoder.
            corpus: where it lies; see `open_corpus`.
            out: folder of the embedding set, new or begun.
            progress: called with (passages done, passages in all) after each unit.
            wish: the form of the set; its precision is the pool's.

        Returns:
            The finished set.

        Raises:
            UserError: `out` holds parts of another snapshot, form or corpus, or another command writes there; the
                snapshot is not a model; the corpus is damaged or repeats an id; the disk is full.
            WorkerError: a worker failed otherwise, or died again and again on the same unit.
        """
        self.work = Work()
        wish = replace(wish or Wish(), precision=self.precision)
        return embed_corpus(self._crew.run, snapshot, corpus, out, wish, self.work, progress)

    def embed_texts(self, snapshot: Path, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """Embed texts on all workers.

        Returns:
            float32 [len(texts), dim], in the order of `texts`; the same whatever the number of workers.

        Raises:
            UserError, WorkerError: as `embed_corpus`.
        """
        pinned = Snapshot.at(snapshot)
        chunks = [list(texts[at : at + _TEXTS_PER_JOB]) for at in range(0, max(len(texts), 1), _TEXTS_PER_JOB)]
        calls = [Job("embed_texts", (pinned, chunk, side), f"embedding {len(chunk)} texts") for chunk in chunks]
        found = dict(self._crew.run(calls))
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
            Job(
                "score_pairs",
                (pinned, list(queries[at : at + _TEXTS_PER_JOB]), list(passages[at : at + _TEXTS_PER_JOB])),
                f"asking the teacher of {len(queries[at : at + _TEXTS_PER_JOB])} passages",
            )
            for at in range(0, len(queries), _TEXTS_PER_JOB)
        ]
        found = dict(self._crew.run(calls))
        return np.concatenate([np.empty(0, np.float32), *(found[number] for number in range(len(calls)))])
