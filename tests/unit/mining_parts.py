"""Corpora with vectors that were written down by hand, and the sieve over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Pair, Passage
from index_build.candidates import Block, Dense, Random
from index_build.candidates_bm25 import Bm25
from index_build.corpus_rows import CorpusRows
from index_build.drawing import query_keys
from index_build.embedding_part import Provenance, write_part
from index_build.embedding_set import EmbeddingSet, publish_set
from index_build.index import build_index
from index_build.index_config import IndexConfig
from index_build.index_version import open_index
from index_build.known_positives import KnownPositives
from index_build.mining_config import MiningConfig
from index_build.near_positives import NearPositives
from index_build.sieve import Sieve
from index_build.similarity import PositiveScores
from index_build.teacher import Teacher
from tests.unit.tiny import write_corpus, write_pairs

BY = Provenance(snapshot_hash="sha256:hand", precision="float32", shard="corpus-000000.tar", shard_sha256="0")


@contextmanager
def untimed(_: str) -> Iterator[None]:
    yield


def corpus_of(place: Path, passages: Sequence[Passage]) -> CorpusDataset:
    return CorpusDataset(write_corpus(place / "corpus", passages))


def set_of(place: Path, passages: Sequence[Passage], vectors: Sequence[Sequence[float]]) -> EmbeddingSet:
    part = write_part(place / "set", 0, np.array(vectors, dtype=np.float32), passages, BY)
    about = {"path": "hand", "hash": "sha256:hand"}
    publish_set(place / "set", [part], snapshot=about, corpus={"path": "corpus", "dataset_id": "sha256:c"})
    return EmbeddingSet.open(place / "set")


def block_of(pairs: PairDataset, queries: Sequence[Sequence[float]] | None = None, key: str = "") -> Block:
    rows = list(pairs)
    return Block(
        pairs=rows,
        keys=query_keys([f"{key} {pair.query_id}" for pair in rows]),
        known=KnownPositives(pairs).of_all([pair.query for pair in rows]),
        vectors=None if queries is None else np.array(queries, dtype=np.float32),
    )


def sieve_of(
    place: Path,
    passages: Sequence[Passage],
    vectors: Sequence[Sequence[float]] | None,
    pairs: Sequence[Pair],
    config: MiningConfig,
    teacher: Teacher | None = None,
) -> Sieve:
    """Return the sieve that a refresh would make. A positive outside of the corpus has the vector (1, 1, …)."""
    dataset = corpus_of(place, passages)
    rows = CorpusRows.scan(dataset)
    found = None if vectors is None else set_of(place, passages, vectors)
    positives = [passage for pair in pairs for passage in pair.positives]
    sources = []
    for name in config.sources:
        if name == "dense":
            assert found is not None
            build_index(found, place / "index", IndexConfig())
            ones = PositiveScores(found, rows, _ones(found.dim))
            sources.append((name, Dense(open_index(place / "index"), found, ones, config.depth)))
        elif name == "bm25":
            sources.append((name, Bm25.build(dataset, lambda: iter(positives), config.depth)))
        else:
            sources.append((name, Random(len(rows), 8)))
    near = NearPositives(rows, place / "signatures.npy", config.near_duplicates) if config.near_duplicates else None
    return Sieve(config, rows, sources, vectors=found, near=near, teacher=teacher)


def _ones(width: int) -> Callable[[list[str]], np.ndarray]:
    return lambda texts: np.ones((len(texts), width), dtype=np.float32)


def pairs_of(place: Path, *pairs: Pair) -> PairDataset:
    return write_pairs(place / "pairs", pairs)
