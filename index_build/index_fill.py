"""Trains a FAISS index on a sample and fills it, chunk by chunk, within a memory budget.

    ROOT/.work-KEY/trained.faiss            trained, empty
    ROOT/.work-KEY/chunk-000003.faiss       rows of one chunk; its list sizes in `.sizes.npy`, which comes first

The key is a hash of all that the files depend on. A build that was killed finds them again and goes on; the folder
goes once the version is published, and those of other keys with it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_path
from data_shards.errors import UserError
from data_shards.npy import npy_bytes
from data_shards.permutation import permute, round_keys
from index_build.embedding_set import EmbeddingSet
from index_build.faiss_shape import can_merge, inverted, list_sizes, lists_of, reason, refined, row_bytes
from index_build.full_disk import is_full
from index_build.gpu import train_on_gpus
from index_build.index_choice import WORKING_BYTES, Choice
from index_build.index_config import IndexConfig
from index_build.index_merge import merge_in_memory, merge_on_disk
from index_build.index_rows import gather, row_blocks

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]
Progress = Callable[[int, int], None]

MOST_CHUNK_ROWS = 1_000_000
_LEAST_CHUNK_ROWS = 10_000
_LEAST_TRAINING_ROWS = 10_000
_TRAINING_SHARE = 0.4  # of the budget; k-means keeps the sample and little more


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who adds chunks."""

    count: int = 1
    """Processes; 1 is this one, with all its threads."""
    address: str | None = None
    """Of an existing Ray cluster, which has to see the same files; by default Ray is started on this machine."""


@dataclass(frozen=True, kw_only=True)
class ChunkJob:
    """One chunk, to be filled anywhere that sees the same files."""

    embeddings: Path
    trained: Path
    out: Path
    first: int
    stop: int
    threads: int
    """Of FAISS; 0 leaves them as they are."""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What is filled, how, and within what memory."""

    vectors: EmbeddingSet
    choice: Choice
    config: IndexConfig
    budget: int
    """Bytes of memory."""
    workers: Workers
    progress: Progress | None

    def key(self) -> str:
        """Return a name for the work: two builds with the same one share it."""
        config = self.config
        parts = (self.vectors.hash, self.choice.factory, config.seed, config.train_rows_per_list, faiss.__version__)
        chunks = (self.chunk_rows(), self.training_rows(lists_of(self.empty())))
        return hashlib.sha256(repr((parts, chunks)).encode()).hexdigest()[:16]

    def empty(self) -> faiss.Index:
        """Return the index untrained.

        Raises:
            UserError: FAISS cannot make it.
        """
        with told(self):
            return faiss.index_factory(self.vectors.dim, self.choice.factory, faiss.METRIC_INNER_PRODUCT)

    def chunk_rows(self) -> int:
        """Return the rows of a chunk: what is left of the budget holds a growing chunk, whose lists may double."""
        index = self.empty()
        if not can_merge(index):
            return self.vectors.rows
        held = 0 if self.choice.on_disk else self.choice.bytes
        left = max(0, self.budget - held - WORKING_BYTES) // self.workers.count
        rows = left // (2 * row_bytes(index))
        return int(np.clip(rows, _LEAST_CHUNK_ROWS, MOST_CHUNK_ROWS))

    def training_rows(self, lists: int) -> int:
        """Return how many rows are sampled for training."""
        wanted = max(self.config.train_rows_per_list * lists, _LEAST_TRAINING_ROWS)
        room = int(_TRAINING_SHARE * self.budget) // (4 * self.vectors.dim)
        return min(self.vectors.rows, wanted, max(room, lists))

    def bounds(self) -> list[tuple[int, int]]:
        """Return the first row of each chunk, and the one after its last."""
        step = self.chunk_rows()
        if self.workers.count > 1 and can_merge(self.empty()):  # something to do for all, and more than once
            step = min(step, max(_LEAST_CHUNK_ROWS, -(-self.vectors.rows // (2 * self.workers.count))))
        return [(at, min(at + step, self.vectors.rows)) for at in range(0, self.vectors.rows, step)]


def fill(job: Filling, work: Path, folder: Path) -> tuple[faiss.Index, dict[str, int]]:
    """Train and fill an index.

    Args:
        job: what.
        work: folder for what a killed build will find again; untouched where all is done in one go.
        folder: of the new version; lists that stay on disk are written there.

    Returns:
        The index, whose ids are row numbers, and what it was trained on.

    Raises:
        UserError: FAISS cannot build it on these vectors, or a disk is full.
    """
    bounds = job.bounds()
    if len(bounds) == 1 and not job.choice.on_disk:
        with told(job):
            index, training = _trained(job)
            for first, block in row_blocks(job.vectors, 0, job.vectors.rows):
                add_rows(index, block, first)
                _tell(job, first + len(block))
        return index, training
    with told(job), room_on(work):
        trained, training = _trained_file(job, work)
        chunks = [work / f"chunk-{number:06d}.faiss" for number in range(len(bounds))]
        _fill_chunks(job, trained, list(zip(chunks, bounds, strict=True)))
        if job.choice.on_disk:
            return merge_on_disk(trained, chunks, folder), training
        return merge_in_memory(trained, chunks), training


def add_rows(index: faiss.Index, block: Float32s, first: int) -> None:
    """Add vectors under the ids `first`, `first + 1`, …; flat codes number themselves and begin at 0."""
    fine = refined(index)
    if fine is not None:
        add_rows(fine.base_index, block, first)
        fine.refine_index.add(block)
        fine.ntotal = fine.base_index.ntotal
    elif inverted(index) is not None:
        index.add_with_ids(block, np.arange(first, first + len(block), dtype=np.int64))
    else:
        index.add(block)


def fill_chunk(job: ChunkJob) -> int:
    """Fill one chunk and write it; return how many rows it has."""
    if job.threads:
        faiss.omp_set_num_threads(job.threads)
    vectors = EmbeddingSet.open(job.embeddings)
    index = faiss.read_index(str(job.trained))
    for first, block in row_blocks(vectors, job.first, job.stop):
        add_rows(index, block, first)
    with atomic_path(sizes_of(job.out)) as temporary:
        temporary.write_bytes(npy_bytes(list_sizes(index)))
    with atomic_path(job.out) as temporary:
        faiss.write_index(index, str(temporary))
    return job.stop - job.first


def sizes_of(chunk: Path) -> Path:
    """Return where a chunk's list sizes are."""
    return chunk.with_suffix(".sizes.npy")


def sampled_rows(vectors: EmbeddingSet, wanted: int, seed: int, purpose: str, rows: int | None = None) -> Int64s:
    """Return distinct row numbers, sorted: a sample without replacement that depends on the arguments alone.

    Args:
        vectors: its hash is part of the sample's name.
        wanted: how many; fewer where there are fewer.
        seed: of the sample.
        purpose: samples for different ones have nothing to do with each other.
        rows: how many there are to draw from; by default all of the set.
    """
    rows = vectors.rows if rows is None else rows
    size = min(wanted, rows)
    if not size:
        return np.empty(0, np.int64)
    return np.sort(permute(np.arange(size), rows, round_keys(f"{vectors.hash} {purpose}\n{seed}")))


def drop_work(root: Path) -> None:
    """Remove what builds have left for their next try: a version was published."""
    for leftover in root.glob(".work-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def told(job: Filling) -> Iterator[None]:
    """Let FAISS's errors say what could not be built."""
    try:
        yield
    except RuntimeError as error:  # FAISS's only exception
        if _is_full(str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        vectors = job.vectors
        raise UserError(
            f"index.factory {job.choice.factory!r} cannot be built on {vectors.rows} vectors of {vectors.dim}: "
            f"{reason(error)}"
        ) from error


@contextmanager
def room_on(place: Path) -> Iterator[None]:
    """Tell a full disk in one line."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of {place.parent} is full; free some of it and run again: what was done is found, and the "
            "version that is searched stays as it is"
        ) from error


def _is_full(text: str) -> bool:
    return os.strerror(errno.ENOSPC) in text or "write error" in text


def _trained(job: Filling) -> tuple[faiss.Index, dict[str, int]]:
    index = job.empty()
    if index.is_trained:
        return index, {}
    rows = sampled_rows(job.vectors, job.training_rows(lists_of(index)), job.config.seed, "training")
    train_on_gpus(index, job.config.device)
    index.train(gather(job.vectors, rows))
    lists = inverted(index)
    if lists is not None:
        lists.clustering_index = None  # of the GPUs, if it was trained there
    return index, {"rows": len(rows), "seed": job.config.seed}


def _trained_file(job: Filling, work: Path) -> tuple[Path, dict[str, int]]:
    """Return where the trained index is: as a build before this one has left it, or as it is trained now."""
    path = work / "trained.faiss"
    if not path.exists():
        index, _ = _trained(job)
        with atomic_path(path) as temporary:
            faiss.write_index(index, str(temporary))
    lists = lists_of(faiss.read_index(str(path)))
    untrained = job.empty()
    training = {} if untrained.is_trained else {"rows": job.training_rows(lists), "seed": job.config.seed}
    return path, training


def _fill_chunks(job: Filling, trained: Path, wanted: list[tuple[Path, tuple[int, int]]]) -> None:
    """Fill the chunks that are not there yet, here or on Ray."""
    missing = [(path, bounds) for path, bounds in wanted if not path.exists()]
    done = sum(stop - first for path, (first, stop) in wanted if path.exists())
    _tell(job, done)
    here = job.workers.count == 1 and job.workers.address is None
    jobs = [
        ChunkJob(
            embeddings=job.vectors.folder.absolute(),
            trained=trained.absolute(),
            out=path.absolute(),
            first=first,
            stop=stop,
            threads=0 if here else 1,
        )
        for path, (first, stop) in missing
    ]
    for rows in _results(job.workers, jobs, here):
        done += rows
        _tell(job, done)


def _results(workers: Workers, jobs: list[ChunkJob], here: bool) -> Iterator[int]:
    if here or not jobs:
        yield from map(fill_chunk, jobs)
        return
    from index_build.ray_map import ray_map

    with ray_map(min(workers.count, len(jobs)), workers.address) as run:
        yield from run(partial(fill_chunk), jobs)


def _tell(job: Filling, done: int) -> None:
    if job.progress:
        job.progress(done, job.vectors.rows)
