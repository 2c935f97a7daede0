"""Embedding a whole corpus: what is to be done, what is done already, and the set that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_shards.corpora import Corpus, absolute, open_corpus
from data_shards.errors import UserError
from data_shards.file_lock import locked
from encoder.embed import Precision
from index_build.embedding_part import PartRecord, Provenance, finished_part, part_files
from index_build.embedding_set import EmbeddingSet, publish_set, retract_set
from index_build.full_disk import told_in_one_line
from index_build.kept_vectors import Kept, check_kept
from index_build.ray_crew import Job
from index_build.ray_worker import PartDone, ShardJob, Snapshot
from index_build.since import changes, open_old, prepared

Progress = Callable[[int, int], None]
RunJobs = Callable[[Sequence[Job]], Iterator[tuple[int, Any]]]

_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a set is to be."""

    precision: Precision = "float32"
    """In which the encoder computes."""
    kept: Kept = "float16"
    """In what form vectors are kept."""
    dim: int | None = None
    """To what length they are cut; None keeps all."""
    since: Path | None = None
    """An older set, of which is copied what has not changed."""

    def __post_init__(self) -> None:
        """Check the form and the length."""
        check_kept(self.kept, self.dim)


@dataclass
class Work:
    """What was computed, as it goes on."""

    embedded: int = 0
    """Passages computed."""
    copied: int = 0
    """Passages copied from an older set."""
    found: int = 0
    """Passages that were done before."""
    tokens: int = 0
    """Computed, without padding."""
    slots: int = 0
    """Computed, padding counted."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What became of an older set's passages."""

    @property
    def padding_share(self) -> float:
        """How much of what was computed is padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    def add(self, done: PartDone) -> None:
        """Count a unit."""
        self.embedded += done.record.passages - done.copied
        self.copied += done.copied
        self.tokens += done.tokens
        self.slots += done.slots


def embed_corpus(
    run: RunJobs, snapshot: Path, location: str | Path, out: Path, wish: Wish, work: Work, progress: Progress | None
) -> EmbeddingSet:
    """Embed a corpus with somebody's workers; see `EmbedPool.embed_corpus`."""
    pinned = Snapshot.at(snapshot)
    location = absolute(location)
    corpus = open_corpus(location)
    out = out.absolute()
    with ExitStack() as stack:
        stack.enter_context(told_in_one_line(out))
        stack.enter_context(_alone(out))
        jobs = _jobs(pinned, corpus, location, out, wish)
        _refuse_surplus_parts(out, len(jobs))
        records = _finished_parts(out, jobs)
        todo = [job for job in jobs if job.shard not in records]
        done = work.found = sum(record.passages for record in records.values())
        old = None if wish.since is None else _old(wish.since, out, jobs[0].provenance)
        if todo:
            retract_set(out)
            if old is not None:
                stack.enter_context(prepared(old, out))
        if progress:
            progress(done, len(corpus))
        calls = [Job("embed_shard", (job,), f"embedding {job.provenance.shard}") for job in todo]
        for number, part in run(calls):
            records[todo[number].shard] = part.record
            work.add(part)
            done += part.record.passages
            if progress:
                progress(done, len(corpus))
        parts = [records[shard] for shard in range(len(jobs))]
        _publish(out, parts, pinned, corpus, old, work)
        return EmbeddingSet.open(out)


def _jobs(snapshot: Snapshot, corpus: Corpus, location: str, out: Path, wish: Wish) -> list[ShardJob]:
    jobs = [
        ShardJob(
            snapshot=snapshot,
            corpus=location,
            shard=number,
            out=out,
            provenance=Provenance(
                snapshot_hash=snapshot.hash,
                precision=wish.precision,
                shard=unit.name,
                shard_sha256=unit.checksum,
                kept=wish.kept,
                dim=wish.dim,
            ),
            since=None if wish.since is None else wish.since.absolute(),
        )
        for number, unit in enumerate(corpus.units)
    ]
    if not jobs:
        raise UserError(f"{corpus.location} has no passages; there is nothing to embed")
    return jobs


def _old(since: Path, out: Path, wanted: Provenance) -> EmbeddingSet:
    if since.absolute() == out:
        raise UserError(f"--since and --out are both {out}; give the new set a folder of its own")
    return open_old(since, wanted)


def _publish(
    out: Path, parts: list[PartRecord], snapshot: Snapshot, corpus: Corpus, old: EmbeddingSet | None, work: Work
) -> None:
    about: dict[str, Any] = {
        "snapshot": {"path": str(snapshot.path), "hash": snapshot.hash},
        "corpus": {"path": corpus.location, "dataset_id": corpus.dataset_id},
    }
    if not sum(part.rows for part in parts):
        reasons = [each.reason for part in parts for each in part.quarantined]
        raise UserError(f"no passage of {corpus.location} can be embedded ({(reasons or ['it has none'])[0]})")
    if old is not None:
        new = EmbeddingSet(out, {**about, "hash": ""}, parts)
        work.changes = asdict(changes(old, new.hashes.ids, new.exact_hashes, out))
    publish_set(out, parts, **about, since=work.changes or None)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep others off a set's folder.

    Raises:
        UserError: another command is at work there, or it cannot be made.
    """
    lock = out / _LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); choose another --out") from None
    with locked(lock, wait=False) as got:
        if not got:
            raise UserError(f"another `dipole embed` is writing {out}; wait for it, or choose another --out")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


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
