"""What a user may say about an index: size of memory, wanted recall, and what to prefer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_shards.errors import UserError
from index_build.gpu import Device, Layout

Prefer = Literal["memory", "latency"]
OnDisk = Literal["auto", "never", "always"]


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How an index is built."""

    factory: str = "auto"
    """FAISS factory string. `auto` chooses by size, dimension, memory and wanted recall: see `index_choice`."""
    flat_up_to: int = 5_000
    """Largest corpus that `auto` searches exactly."""
    wanted_recall: float = 0.95
    """The cheapest search parameters that reach it are chosen."""
    recall_k: int = 10
    """Neighbours at which recall is measured."""
    recall_queries: int = 1_000
    """Most queries used: half of them choose the search parameters, the other half measure."""
    memory_gib: float | None = None
    """Most memory that building and searching may take; by default four fifths of what the machine has free."""
    prefer: Prefer = "memory"
    """`latency` takes more memory and a longer build for quicker searches: a graph (HNSW) where it fits."""
    on_disk: OnDisk = "auto"
    """Whether inverted lists stay on disk: `auto` leaves them there where codes good enough do not fit in memory."""
    train_rows_per_list: int = 64
    """Sampled vectors for each list that k-means is trained on; at least 10,000 in all where there are so many."""
    device: Device = "auto"
    """Where mining searches, and where k-means is trained: `auto` takes the GPUs if there are any. All else is done
    on the CPU."""
    gpu_layout: Layout = "replicate"
    """On several GPUs: the whole index on each, or `shard`: a part of it."""
    seed: int = 0
    """Of the samples."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.wanted_recall <= 1:
            raise UserError(f"index.wanted_recall is {self.wanted_recall}, wanted above 0 and at most 1")
        if self.recall_k < 1 or self.recall_queries < 2 or self.train_rows_per_list < 1:
            raise UserError("index.recall_k and train_rows_per_list must be at least 1, recall_queries at least 2")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise UserError(
                f"index.memory_gib is {self.memory_gib}, wanted above 0; leave it out to use what is free"
            )
        if "IDMap" in self.factory:
            raise UserError(
                f"index.factory {self.factory!r}: rows number themselves, and an ID map over IVF mixes ids up; "
                "leave IDMap out"
            )
