"""What one worker of the pool does. A plain class: Ray makes an actor of it, tests call it directly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.errors import ShardCorruptError, UserError
from data_shards.reader import CorpusDataset
from data_shards.shard_reader import ShardReader
from encoder.embed import Precision, embed_texts
from encoder.model import Encoder, Side
from encoder.snapshot import load_encoder, snapshot_hash
from index_build.cross_encoder import CrossEncoder
from index_build.embedding_part import PartRecord, Provenance, write_part


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
    """One corpus shard to embed."""

    snapshot: Snapshot
    """By which encoder."""
    corpus: Path
    """The corpus's folder."""
    shard: int
    """Number of the shard, and of the part."""
    out: Path
    """Folder of the embedding set."""
    provenance: Provenance
    """What the part's done marker will say."""


class EmbedWorker:
    """Keeps one encoder loaded; another snapshot replaces it."""

    def __init__(self, threads: int, precision: Precision, tokens_per_batch: int) -> None:
        """Take this process's share of the machine."""
        torch.set_num_threads(threads)
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizer's threads
        self._precision: Precision = precision
        self._tokens_per_batch = tokens_per_batch
        self._loaded: tuple[str, Encoder] | None = None
        self._teacher: tuple[str, CrossEncoder] | None = None

    def ready(self) -> int:
        """Return this process's id: the worker is up."""
        return os.getpid()

    def embed_shard(self, job: ShardJob) -> PartRecord:
        """Embed one corpus shard and write its part.

        Raises:
            UserError: the snapshot is not a model or has changed, or the shard is damaged.
        """
        encoder = self._encoder(job.snapshot)
        corpus = CorpusDataset(job.corpus)
        entry = corpus.manifest.shards[job.shard]
        if entry.sha256 != job.provenance.shard_sha256:
            raise UserError(f"{job.corpus} has changed while it was embedded; run `dipole embed` again")
        ShardReader(job.corpus / entry.path, entry, verify=True)
        passages = list(corpus.iter_shard(job.shard))
        if len(passages) != entry.samples:
            what = f"{len(passages)} passages, the manifest says {entry.samples}"
            raise ShardCorruptError(job.corpus / entry.path, 0, what)
        texts = [passage.content for passage in passages]
        vectors = self._embed(encoder, texts, "passage")
        return write_part(job.out, job.shard, vectors, passages, job.provenance)

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

    def _encoder(self, snapshot: Snapshot) -> Encoder:
        if self._loaded is None or self._loaded[0] != snapshot.hash:
            self._loaded = None  # never two encoders in memory
            # Ray shows a worker the GPUs that are its own, and none where the cluster has none.
            encoder = load_encoder(snapshot.path).to("cuda" if torch.cuda.is_available() else "cpu")
            if (found := snapshot_hash(snapshot.path)) != snapshot.hash:
                raise UserError(f"{snapshot.path} is {found} here, was {snapshot.hash}: it has changed meanwhile")
            self._loaded = (snapshot.hash, encoder)
        return self._loaded[1]
