"""One refresh: a snapshot and a stretch of the global order in, a negatives version out.

    embed the corpus -> embed the queries -> build an index -> search, filter, draw -> publish

Every step is timed, and the same inputs give the same negatives byte for byte. What a killed refresh has embedded
is not embedded again.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from data_shards.negatives import MinedNegative, NegativesManifest, NegativesRow, version_dir, write_negatives
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Pair
from encoder.snapshot import snapshot_hash
from index_build.embedding_set import EmbeddingSet
from index_build.exact import Neighbours
from index_build.filters import Verdict, draw, judge
from index_build.index import IndexConfig, build_index
from index_build.index_version import OpenIndex, open_index
from index_build.known_positives import KnownPositives
from index_build.similarity import PositiveScores, exact_scores

if TYPE_CHECKING:  # the config of a run is read without loading Ray and torch
    from index_build.ray_pool import EmbedPool

_log = logging.getLogger(__name__)

__all__ = ["KnownPositives", "MiningConfig", "MiningReport", "mine"]

_BLOCK_QUERIES = 1_024

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which neighbours become negatives."""

    per_query: int = 1
    """Negatives drawn for each query from the neighbours that the filters keep."""
    depth: int = 100
    """Neighbours searched for each query."""
    skip_ranks: int = 0
    """So many of the nearest are never taken, positives counted: the nearest are often unmarked positives."""
    max_relative_score: float = 0.95
    """A negative's similarity is at most this share of the positive's (of several positives, of the farthest)."""
    seed: int = 0
    """Of the draw; each version draws anew."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.per_query < 1:
            raise UserError(f"mining.per_query is {self.per_query}, wanted at least 1")
        if not 0 <= self.skip_ranks < self.depth:
            raise UserError(
                f"mining.skip_ranks is {self.skip_ranks} and depth {self.depth}; "
                "skip_ranks must be at least 0 and below depth"
            )
        if self.max_relative_score > 1:
            raise UserError(f"mining.max_relative_score is {self.max_relative_score}, wanted at most 1")


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """What a refresh did."""

    version: int
    """Of the negatives."""
    folder: str
    """Where they are."""
    queries: int
    """Training samples of the stretch."""
    queries_with_negatives: int
    """Those for which the filters left at least one."""
    negatives: int
    """In all."""
    positive_score: float
    """Mean similarity of the queries to their positives, by this snapshot."""
    negative_score: float
    """Mean similarity of the queries to the drawn negatives."""
    filters: dict[str, int]
    """Neighbours by what became of them."""
    index: dict[str, Any]
    """`factory`, `ntotal` and measured `recall@K` of the searched index."""
    seconds: dict[str, float]
    """By step."""


@dataclass(frozen=True)
class _Drawn:
    """The outcome of search and filter for all queries; passages still as row numbers."""

    rows: Int64s
    """[Q, per_query], -1 where there are fewer."""
    scores: Float32s
    """[Q, per_query]."""
    positive_score: float
    counts: Counter[str]

    @property
    def negative_score(self) -> float:
        """Mean similarity to what was drawn; 0 where nothing was."""
        there = self.rows >= 0
        return float(self.scores[there].mean()) if there.any() else 0.0


def mine(
    *,
    snapshot: Path,
    snapshot_step: int,
    pool: EmbedPool,
    train: PairDataset,
    known: KnownPositives,
    ordinals: Int64s,
    corpus: Path,
    work_dir: Path,
    negatives_root: Path,
    version: int,
    from_step: int,
    to_step: int,
    config: MiningConfig,
    index_config: IndexConfig,
) -> MiningReport:
    """Mine negatives for a stretch of the global order and publish them as one version.

    Args:
        snapshot: encoder that decides what is near.
        snapshot_step: the step at which it was taken.
        pool: embeds.
        train: the training pairs.
        known: the positives of `train`, scanned before.
        ordinals: the stretch's samples: sorted, each once.
        corpus: folder of the passages to draw from.
        work_dir: for embeddings and index; what this refresh put there is removed once the version is published.
        negatives_root: folder of all versions.
        version: number of the new one.
        from_step: first step of the stretch.
        to_step: the step after its last.
        config: filters.
        index_config: of the searched index.

    Returns:
        Counts, mean similarities and times.

    Raises:
        UserError: the version is there already, or an input is damaged.
        WorkerError: see `EmbedPool`.
    """
    if version_dir(negatives_root, version).exists():
        raise UserError(f"negatives version {version} is in {negatives_root} already; take the next number")
    if known.dataset_id != train.dataset_id:
        raise UserError(f"the known positives are of dataset {known.dataset_id}, the pairs of {train.dataset_id}")
    seconds: dict[str, float] = {}
    passages = CorpusDataset(corpus)
    with _timed(seconds, "embed_corpus"):
        vectors = pool.embed_corpus(snapshot, corpus, _embeddings_dir(work_dir, snapshot, pool))
    with _timed(seconds, "embed_queries"):
        queries = _embed_queries(pool, snapshot, train, ordinals, work_dir, vectors.dim)
    with _timed(seconds, "index"):
        shutil.rmtree(work_dir / "index", ignore_errors=True)  # of a refresh that was killed
        built = build_index(vectors, work_dir / "index", index_config, queries)
        index = open_index(work_dir / "index")
    with _timed(seconds, "search_and_filter"):
        positives = PositiveScores(vectors, lambda texts: pool.embed_texts(snapshot, texts, "passage"))
        judge_ = _Judge(vectors=vectors, known=known, config=config, version=version)
        drawn = _search_and_filter(index, positives, judge_, train, ordinals, queries)
    index_facts = {"factory": built.factory, "ntotal": built.ntotal, f"recall@{built.recall.k}": built.recall.value}
    manifest = NegativesManifest(
        version=version,
        dataset_id=train.dataset_id,
        from_step=from_step,
        to_step=to_step,
        snapshot_hash=vectors.snapshot["hash"],
        snapshot_step=snapshot_step,
        per_query=config.per_query,
        index=index_facts,
        filters=dict(drawn.counts),
        scores={"positive": round(drawn.positive_score, 4), "negative": round(drawn.negative_score, 4)},
        seconds={step: round(taken, 3) for step, taken in seconds.items()},
    )
    with _timed(seconds, "publish"):
        folder = write_negatives(negatives_root, manifest, _rows(train, passages, ordinals, drawn))
    _clear(work_dir)
    report = _report(version, folder, drawn, index_facts, seconds)
    _log.info(
        "%s: %d negatives for %d of %d queries in %.1f s",
        *(folder, report.negatives, report.queries_with_negatives, report.queries, sum(seconds.values())),
    )
    return report


def _embed_queries(
    pool: EmbedPool, snapshot: Path, train: PairDataset, ordinals: Int64s, work_dir: Path, dim: int
) -> Float32s:
    """Embed the stretch's queries into a memory-mapped file: float32 [Q, dim]."""
    path = work_dir / "queries.npy"
    queries = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(ordinals), dim))
    for start in range(0, len(ordinals), 16 * _BLOCK_QUERIES):
        pairs = train.pairs(ordinals[start : start + 16 * _BLOCK_QUERIES])
        found = pool.embed_texts(snapshot, [pair.query for pair in pairs], "query")
        queries[start : start + len(pairs)] = found
    return queries


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Decides which neighbours of a query become its negatives."""

    vectors: EmbeddingSet
    known: KnownPositives
    config: MiningConfig
    version: int

    def choose(self, pair: Pair, near: Neighbours, positive_score: float) -> tuple[Neighbours, NDArray[np.uint8]]:
        """Return a query's negatives, nearest first, and the verdict on each of its neighbours."""
        there = near.rows >= 0
        rows, scores = near.rows[there], near.scores[there]
        hashes = self.vectors.hashes.take(rows)
        verdicts = judge(
            hashes,
            scores,
            self.known.of(pair.query),
            positive_score=positive_score,
            skip_ranks=self.config.skip_ranks,
            max_relative_score=self.config.max_relative_score,
        )
        kept = np.flatnonzero(verdicts == Verdict.KEPT)
        key = f"{self.config.seed} {self.version} {pair.query_id} {pair.query}"
        drawn = kept[draw(hashes.ids[kept], self.config.per_query, key)]
        return Neighbours(scores[drawn], rows[drawn]), verdicts


def _search_and_filter(
    index: OpenIndex,
    positives: PositiveScores,
    judge_: _Judge,
    train: PairDataset,
    ordinals: Int64s,
    queries: Float32s,
) -> _Drawn:
    config = judge_.config
    rows = np.full((len(ordinals), config.per_query), -1, dtype=np.int64)
    scores = np.zeros((len(ordinals), config.per_query), dtype=np.float32)
    counts: Counter[str] = Counter({verdict.name.lower(): 0 for verdict in Verdict})
    positive_sum = 0.0
    for start in range(0, len(ordinals), _BLOCK_QUERIES):
        block = np.asarray(queries[start : start + _BLOCK_QUERIES])
        pairs = train.pairs(ordinals[start : start + _BLOCK_QUERIES])
        if len(pairs) != len(block):
            raise UserError(f"{train.location} was damaged while it was mined for; mine again")
        near = exact_scores(judge_.vectors, block, index.search(block, config.depth).rows)
        own = positives.of(pairs, block)
        for at, pair in enumerate(pairs):
            found, verdicts = judge_.choose(pair, Neighbours(near.scores[at], near.rows[at]), float(own[at].min()))
            counts.update(Verdict(verdict).name.lower() for verdict in verdicts.tolist())
            rows[start + at, : len(found.rows)] = found.rows
            scores[start + at, : len(found.rows)] = found.scores
            positive_sum += float(own[at].mean())
    return _Drawn(rows, scores, positive_sum / max(len(ordinals), 1), counts)


def _rows(train: PairDataset, passages: CorpusDataset, ordinals: Int64s, drawn: _Drawn) -> Iterator[NegativesRow]:
    """Yield what is published, sample by sample; texts are read block by block."""
    shards, shard_rows = train.locate(ordinals)
    for start in range(0, len(ordinals), _BLOCK_QUERIES):
        block = drawn.rows[start : start + _BLOCK_QUERIES]
        wanted = np.unique(block[block >= 0])
        texts = dict(zip(wanted.tolist(), passages.passages(wanted), strict=True))
        for at, rows in enumerate(block.tolist(), start):
            yield NegativesRow(
                shard_stem=train.shard_stems[int(shards[at])],
                row=int(shard_rows[at]),
                key=train.key(int(ordinals[at])),
                negatives=[
                    MinedNegative(texts[row], float(score))
                    for row, score in zip(rows, drawn.scores[at].tolist(), strict=True)
                    if row >= 0
                ],
            )


def _report(
    version: int, folder: Path, drawn: _Drawn, index: dict[str, Any], seconds: dict[str, float]
) -> MiningReport:
    there = drawn.rows >= 0
    return MiningReport(
        version=version,
        folder=str(folder),
        queries=len(drawn.rows),
        queries_with_negatives=int(there.any(axis=1).sum()),
        negatives=int(there.sum()),
        positive_score=round(drawn.positive_score, 4),
        negative_score=round(drawn.negative_score, 4),
        filters=dict(drawn.counts),
        index=index,
        seconds={step: round(taken, 3) for step, taken in seconds.items()},
    )


def _embeddings_dir(work_dir: Path, snapshot: Path, pool: EmbedPool) -> Path:
    """Name the embeddings after what made them: a run that was set back may ask anew, by another snapshot."""
    return work_dir / f"embeddings-{snapshot_hash(snapshot).removeprefix('sha256:')[:16]}-{pool.precision}"


def _clear(work_dir: Path) -> None:
    """Remove what a refresh puts into its work folder, and the folder if nothing else is in it."""
    for folder in (work_dir / "index", *work_dir.glob("embeddings-*")):
        shutil.rmtree(folder, ignore_errors=True)
    (work_dir / "queries.npy").unlink(missing_ok=True)
    with suppress(OSError):
        work_dir.rmdir()


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - begin
