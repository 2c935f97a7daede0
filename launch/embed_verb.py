"""`dipole embed`: a corpus's vectors, each passage once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed a corpus with a snapshot, each passage once.

    Whatever is killed in between: run it again, and only what is missing or damaged is done.
    """

    model: Path
    """Folder of the encoder."""
    corpus: Path
    """Folder made by `dipole shards corpus`."""
    out: Path
    """Folder of the embedding set, new or begun."""
    workers: int | None = None
    """Worker processes; by default one for each CPU that this process may use."""
    threads_per_worker: int = 1
    """CPU threads of each."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the encoder computes; vectors are kept as float16 either way."""
    address: str | None = None
    """Of an existing Ray cluster; by default Ray is started on this machine and ended again."""

    def run(self) -> dict[str, Any]:
        """Embed, and return what the set holds."""
        from data_shards.reader import CorpusDataset
        from encoder.snapshot import check_is_model
        from index_build.ray_pool import EmbedPool

        check_is_model(self.model)  # both before Ray is started for nothing
        CorpusDataset(self.corpus)
        pool = EmbedPool(
            workers=len(os.sched_getaffinity(0)) if self.workers is None else self.workers,
            threads_per_worker=self.threads_per_worker,
            precision=self.precision,
            address=self.address,
        )
        with pool, progress_bar("embedding") as progress:
            made = pool.embed_corpus(self.model, self.corpus, self.out, progress)
        return {
            "embeddings": str(self.out),
            "passages": made.rows,
            "dim": made.dim,
            "parts": len(made.parts),
            "hash": made.hash,
            "snapshot": made.snapshot["hash"],
        }
