"""`dipole embed`: a corpus's vectors, each passage once."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launch.embed_progress import embed_progress

if TYPE_CHECKING:
    from index_build.embedding_set import EmbeddingSet

_log = logging.getLogger(__name__)

_SMALL_MODEL_BYTES = 200 << 20  # of weights: one such leaves most of a GPU idle between its batches
_SMALL_MODELS_PER_GPU = 3
_SHOWN_LEFT_OUT = 10


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed a corpus with a snapshot, each passage once.

    Whatever is killed in between: run it again, and only what is missing or damaged is done. A passage that cannot be
    embedded is left out, and listed with the reason.
    """

    model: Path
    """Folder of the encoder."""
    corpus: str
    """Folder made by `dipole shards corpus`, a Parquet file, or a folder of them; or a URL of one."""
    out: Path
    """Folder of the embedding set, new or begun."""
    keep: Literal["float32", "float16", "int8", "binary"] = "float16"
    """In what form vectors are kept: int8 has a scale a vector, binary one bit a dimension."""
    dim: int | None = None
    """Cut vectors to this length, for encoders trained with Matryoshka sizes; by default all is kept."""
    since: Path | None = None
    """A set by the same snapshot, of an older state of the corpus: only what is new or changed is embedded."""
    workers: int | None = None
    """Worker processes; by default one for each CPU that this process may use, or up to three for each GPU."""
    max_workers: int | None = None
    """Grow to so many while work waits and the cluster has CPUs free; by default their number stays."""
    threads_per_worker: int = 1
    """CPU threads of each."""
    tokens_per_batch: int | None = None
    """Most tokens in a batch, padding counted, halved where memory is short; by default what suits the device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the encoder computes."""
    ray_address: str | None = None
    """Of an existing Ray cluster that sees the same files; by default Ray is started here, and ended again."""

    def run(self) -> dict[str, Any]:
        """Embed, and return what the set holds."""
        from data_shards.corpora import open_corpus
        from encoder.snapshot import check_is_model
        from index_build.corpus_job import Wish
        from index_build.ray_pool import EmbedPool

        check_is_model(self.model)  # all three before Ray is started for nothing
        wish = Wish(kept=self.keep, dim=self.dim, since=self.since)
        open_corpus(self.corpus)
        gpus = 0 if self.ray_address else _gpus()
        pool = EmbedPool(
            workers=self._workers(gpus),
            max_workers=self.max_workers,
            threads_per_worker=self.threads_per_worker,
            precision=self.precision,
            tokens_per_batch=self.tokens_per_batch,
            address=self.ray_address,
            gpus=gpus,
        )
        with pool, embed_progress(lambda: pool.work) as (step, pace):
            made = pool.embed_corpus(self.model, self.corpus, self.out, step, wish=wish)
        work = pool.work
        return {
            "embeddings": str(self.out),
            "passages": made.rows,
            "dim": made.dim,
            "kept": made.kept,
            "parts": len(made.parts),
            "hash": made.hash,
            "snapshot": made.snapshot["hash"],
            "quarantined": _quarantined(made),
            "passages_per_s": round(pace.per_s, 1),
            "padding_share": round(work.padding_share, 4),
            **({"since": work.changes} if work.changes else {}),
        }

    def _workers(self, gpus: int) -> int:
        if self.workers is not None:
            return self.workers
        cpus = len(os.sched_getaffinity(0)) // max(self.threads_per_worker, 1)
        default = min(cpus, gpus * _models_per_gpu(self.model)) if gpus else cpus
        return max(1, default if self.max_workers is None else min(default, self.max_workers))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _models_per_gpu(model: Path) -> int:
    weights = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    return _SMALL_MODELS_PER_GPU if weights <= _SMALL_MODEL_BYTES else 1


def _quarantined(made: EmbeddingSet) -> int:
    for each in made.quarantined[:_SHOWN_LEFT_OUT]:
        _log.warning("passage %r is left out: %s", each.id, each.reason)
    return len(made.quarantined)
