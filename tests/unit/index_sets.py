"""Small embedding sets for the tests of indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.samples import Passage
from index_build.embedding_part import Provenance, write_part
from index_build.embedding_set import EmbeddingSet, publish_set


def embedding_set(
    folder: Path,
    vectors: np.ndarray,
    parts: int = 3,
    passages: list[Passage] | None = None,
    corpus: dict[str, str] | None = None,
) -> EmbeddingSet:
    """Write a set; passages are `p0`, `p1`, … where none are given."""
    records = []
    row = 0
    every = numbered(len(vectors)) if passages is None else passages
    for number, block in enumerate(np.array_split(vectors, parts)):
        by = Provenance(snapshot_hash="sha256:aa", precision="float32", shard=f"c{number}", shard_sha256="bb")
        records.append(write_part(folder, number, block, every[row : row + len(block)], by))
        row += len(block)
    publish_set(
        folder,
        records,
        snapshot={"path": "s", "hash": "sha256:aa"},
        corpus=corpus or {"path": "c", "dataset_id": "d"},
    )
    return EmbeddingSet.open(folder)


def numbered(count: int, kind: str = "p") -> list[Passage]:
    """Return passages `p0`, `p1`, …"""
    return [Passage(id=f"{kind}{row}", text=f"text {kind} {row}") for row in range(count)]


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    """Return random directions."""
    found = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def clustered(rows: int, dim: int, seed: int, clusters: int = 20) -> np.ndarray:
    """Return directions about some centres, which lists can tell apart."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(clusters, dim))
    found = centres[random.integers(0, clusters, rows)] + 0.6 * random.normal(size=(rows, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
