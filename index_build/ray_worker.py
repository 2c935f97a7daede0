"""What one worker of the pool does. A plain class: Ray makes an actor of it, tests call it directly."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.corpora import Corpus, open_corpus
from data_shards.errors import UserError
from data_shards.samples import Passage
from encoder.care import BrokenDeviceError, Embedded, embed_with_care
from encoder.embed import Precision, embed_texts
from encoder.model import Encoder, Side
from encoder.snapshot import load_encoder, snapshot_hash
from encoder.suspicion import Suspicion
from index_build.cross_encoder import CrossEncoder
from index_build.embedding_part import LeftOut, PartRecord, Provenance, pack_finite, write_part, write_stored
from index_build.embedding_set import EmbeddingSet
from index_build.full_disk import told_in_one_line
from index_build.since import OldRows, join_rows

_log = logging.getLogger(__name__)

_TOKENS_PER_BATCH = {"cpu": 4_096, "cuda": 32_768}
_INNOCENT_DEATHS = 2  # so many may have other causes; only then is it noted which passages come next
_HALVINGS = 4
_BROKEN_DEVICE = 71


class Snapshot(NamedTuple):
    """An encoder on disk, pinned by its hash."""

    path: Path
    hash: str

    @classmethod
    def at(cls, path: Path) -> Snapshot:
        """Pin the snapshot that is there now.

        Raises:
            UserError: there is no folder.
        """
        if not path.is_dir():
            raise UserError(f"{path} is not a model folder; give a snapshot or a transformers folder")
        return cls(path.absolute(), snapshot_hash(path))


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One unit of a corpus to embed."""

    snapshot: Snapshot
    """By which encoder."""
    corpus: str
    """Where it lies; see `open_corpus`."""
    shard: int
    """Number of the unit, and of the part."""
    out: Path
    """Folder of the embedding set."""
    provenance: Provenance
    """What the part's done marker will say."""
    since: Path | None = None
    """An older set, of which rows that have not changed are copied."""
    deaths: int = 0
    """Workers that it has cost."""

    @property
    def note(self) -> Path:
        """The file for suspicions against single passages."""
        return self.out / f".suspects-{self.shard:06d}.json"


class PartDone(NamedTuple):
    """What came of a unit."""

    record: PartRecord
    tokens: int
    """Computed, without padding."""
    slots: int
    """Computed, padding counted."""
    copied: int = 0
    """Rows that came from an older set."""


class EmbedWorker:
    """Keeps one encoder loaded; another snapshot replaces it."""

    def __init__(self, threads: int, precision: Precision, tokens_per_batch: int | None = None) -> None:
        """Take this process's share of the machine.

        Args:
            threads: of the CPU.
            precision: in which the encoder computes.
            tokens_per_batch: most tokens in a forward pass; by default what suits the device.
        """
        torch.set_num_threads(threads)
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizer's threads
        self._precision: Precision = precision
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokens_per_batch = tokens_per_batch or _TOKENS_PER_BATCH[self._device]
        self._loaded: tuple[str, Encoder] | None = None
        self._teacher: tuple[str, CrossEncoder] | None = None
        self._corpus: tuple[str, Corpus] | None = None

    def ready(self) -> int:
        """Return this process's id: the worker is up."""
        return os.getpid()

    def embed_shard(self, job: ShardJob) -> PartDone:
        """Embed one unit of a corpus and write its part.

        Raises:
            UserError: the snapshot is not a model or has changed, the unit is damaged, or the disk is full.
        """
        try:
            with told_in_one_line(job.out):
                return self._embed_shard(job)
        except BrokenDeviceError as error:
            _log.error("%s: this worker ends", error)
            os._exit(_BROKEN_DEVICE)  # the pool starts another, and finds the passage that did it if it was one

    def _embed_shard(self, job: ShardJob) -> PartDone:
        encoder = self._encoder(job.snapshot)
        passages = self._unit(job)
        old = None if job.since is None else OldRows(job.since, job.out).of(passages)
        fresh = np.arange(len(passages)) if old is None else np.flatnonzero(old < 0)
        found, suspicion = self._embed_carefully(encoder, job, [passages[row].content for row in fresh.tolist()])
        reasons = {int(fresh[at]): reason for at, reason in found.given_up.items()}
        left_out = [LeftOut(passages[row].id, row, reason) for row, reason in reasons.items()]
        for each in left_out:
            _log.warning("passage %r of %s is left out: %s", each.id, job.provenance.shard, each.reason)
        there = np.delete(np.arange(len(passages)), list(reasons))
        kept = [passages[row] for row in there.tolist()]
        vectors = np.delete(found.vectors, list(found.given_up), axis=0)
        if old is None or job.since is None:
            record = write_part(job.out, job.shard, vectors, kept, job.provenance, left_out)
        else:
            new = [passages[row] for row in there.tolist() if old[row] < 0]
            stored = pack_finite(vectors, new, job.provenance)
            joined = join_rows(EmbeddingSet.open(job.since), old[there], stored)
            record = write_stored(job.out, job.shard, joined, found.vectors.shape[1], kept, job.provenance, left_out)
        suspicion.clear()
        return PartDone(record, found.tokens, found.slots, len(passages) - len(fresh))

    def _embed_carefully(self, encoder: Encoder, job: ShardJob, texts: list[str]) -> tuple[Embedded, Suspicion]:
        by = job.provenance
        suspicion = Suspicion()
        if job.deaths >= _INNOCENT_DEATHS or job.note.exists():
            suspicion = Suspicion(job.note, f"{by.snapshot_hash} {by.shard_sha256} {by.shard} {job.since}")
        found = embed_with_care(
            encoder,
            texts,
            side="passage",
            precision=self._precision,
            # The kernel may have ended the others for want of memory.
            tokens_per_batch=max(self._tokens_per_batch >> min(max(job.deaths - 1, 0), _HALVINGS), 1),
            dim=by.dim,
            suspicion=suspicion,
        )
        if not job.deaths:
            self._tokens_per_batch = found.tokens_per_batch
        return found, suspicion

    def embed_texts(self, snapshot: Snapshot, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """Return the texts' vectors: float32 [len(texts), dim]."""
        return self._embed(self._encoder(snapshot), texts, side)

    def score_pairs(self, teacher: Snapshot, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float32]:
        """Return a cross-encoder's score of each query with its passage; it stays loaded beside the encoder."""
        if self._teacher is None or self._teacher[0] != teacher.hash:
            self._teacher = None
            self._teacher = (teacher.hash, CrossEncoder(teacher.path))
        fast = self._precision == "bfloat16"
        return self._teacher[1].score(queries, passages, tokens_per_batch=self._tokens_per_batch, autocast=fast)

    def _embed(self, encoder: Encoder, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        return embed_texts(
            encoder, texts, side=side, precision=self._precision, tokens_per_batch=self._tokens_per_batch
        )

    def _unit(self, job: ShardJob) -> list[Passage]:
        """Return a unit's passages, once it is the one that was asked for."""
        for again in (False, True):
            if again or self._corpus is None or self._corpus[0] != job.corpus:
                self._corpus = (job.corpus, open_corpus(job.corpus))
            corpus = self._corpus[1]
            if job.shard < len(corpus.units) and corpus.units[job.shard].checksum == job.provenance.shard_sha256:
                return corpus.read_unit(job.shard)
        raise UserError(f"{job.corpus} has changed while it was embedded; run `dipole embed` again")

    def _encoder(self, snapshot: Snapshot) -> Encoder:
        if self._loaded is None or self._loaded[0] != snapshot.hash:
            self._loaded = None  # never two encoders in memory
            # Ray shows a worker the GPUs that are its own, and none where the cluster has none.
            encoder = load_encoder(snapshot.path).to(self._device)
            if (found := snapshot_hash(snapshot.path)) != snapshot.hash:
                raise UserError(f"{snapshot.path} is {found} here, was {snapshot.hash}: it has changed meanwhile")
            self._loaded = (snapshot.hash, encoder)
        return self._loaded[1]
