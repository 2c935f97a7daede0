"""One refresh: a snapshot and a stretch of the global order in, a negatives version out.

    embed the corpus -> embed the queries -> build an index -> search, filter, draw -> publish

Every step is timed, and the same inputs give the same negatives byte for byte. What a killed refresh has embedded
is not embedded again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.errors import UserError
from data_shards.file_lock import locked
from data_shards.negatives import MinedNegative, NegativesManifest, NegativesRow, version_dir, write_negatives
from data_shards.reader import PairDataset
from data_shards.samples import Pair
from index_build.candidates import Block
from index_build.drawing import Taker, query_keys
from index_build.filters import Float32s, Int64s
from index_build.index_config import IndexConfig
from index_build.known_positives import KnownPositives
from index_build.mining_config import MiningConfig
from index_build.mining_parts import BLOCK_QUERIES, Parts, Preparing, Stretch
from index_build.mining_tally import Tally
from index_build.sieve import Timed, draw
from index_build.still_hard import last_version, still_hard

if TYPE_CHECKING:  # the config of a run is read without loading Ray and torch
    from index_build.ray_pool import EmbedPool

_log = logging.getLogger(__name__)

__all__ = ["KnownPositives", "MiningConfig", "MiningReport", "mine"]


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
    sources: tuple[str, ...] = ("dense",)
    """Where candidates came from."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """As in the manifest."""


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
    cache_dir: Path | None = None,
) -> MiningReport:
    """Mine negatives for a stretch of the global order and publish them as one version.

    Args:
        snapshot: encoder that decides what is near; not read where `dense` is none of the sources.
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
        cache_dir: where the newest embeddings stay for the next request by the same snapshot; one refresh at a time
            works with it, a second one waits. Without it they are removed with the rest.

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
    timed = partial(_timed, seconds)
    preparing = Preparing(
        config=config,
        index_config=index_config,
        snapshot=snapshot,
        pool=pool,
        work_dir=work_dir,
        cache_dir=cache_dir,
        timed=timed,
    )
    stretch = Stretch(train=train, ordinals=ordinals)
    with ExitStack() as stack:
        if cache_dir is not None:
            stack.enter_context(_alone(cache_dir))
        parts = preparing.parts(corpus, stretch, known, version)
        refresh = _Refresh(parts=parts, stretch=stretch, known=known, config=config, version=version, timed=timed)
        tally = refresh.draw()
        compared = refresh.compared(negatives_root, snapshot, pool)
        manifest = replace(
            refresh.manifest(tally, snapshot_step, from_step, to_step),
            seconds={step: round(taken, 3) for step, taken in seconds.items()},
            statistics=tally.statistics() | compared,
        )
        with timed("publish"):
            rows, sample = refresh.rows(tally), refresh.sample(tally)
            folder = write_negatives(negatives_root, manifest, rows, sample=sample, timed=True)
        preparing.clear()
    report = _report(folder, manifest, tally, seconds)
    _log.info(
        "%s: %d negatives for %d of %d queries in %.1f s",
        *(folder, report.negatives, report.queries_with_negatives, report.queries, sum(seconds.values())),
    )
    return report


@dataclass(frozen=True, kw_only=True)
class _Refresh:
    """The part of a refresh in which everything is embedded."""

    parts: Parts
    stretch: Stretch
    known: KnownPositives
    config: MiningConfig
    version: int
    timed: Timed

    def draw(self) -> Tally:
        """Search, filter and draw for every query, block by block."""
        train, ordinals, queries = self.stretch.train, self.stretch.ordinals, self.parts.queries
        tally = Tally(len(ordinals), self.config.per_query)
        taker = Taker(self.config.per_query, self.config.per_passage_max)
        for start in range(0, len(ordinals), BLOCK_QUERIES):
            with self.timed("search"):
                pairs = train.pairs(ordinals[start : start + BLOCK_QUERIES])
                if len(pairs) != len(ordinals[start : start + BLOCK_QUERIES]):
                    raise UserError(f"{train.location} was damaged while it was mined for; mine again")
                vectors = None if queries is None else np.asarray(queries[start : start + BLOCK_QUERIES])
                block = self._block(pairs, vectors)
            judged = self.parts.sieve.judge(block, self.timed)
            with self.timed("filter"):
                tally.add(start, block, judged, draw(taker, judged))
        return tally

    def compared(self, root: Path, snapshot: Path, pool: EmbedPool) -> dict[str, float]:
        """Return how much of the last version is still hard, where there is one to compare with."""
        last = last_version(root, self.version, self.stretch.train.dataset_id)
        if self.parts.queries is None or last is None:
            return {}
        with self.timed("compare"):
            share = still_hard(
                last,
                self.stretch,
                self.parts.queries,
                self.parts.sieve,
                embed=lambda texts: pool.embed_texts(snapshot, texts, "query"),
                make_block=self._block,
            )
        return {} if share is None else {"still_hard": round(share, 4)}

    def manifest(self, tally: Tally, snapshot_step: int, from_step: int, to_step: int) -> NegativesManifest:
        """Return what is known of the version, seconds and statistics left open."""
        vectors = self.parts.vectors
        return NegativesManifest(
            version=self.version,
            dataset_id=self.stretch.train.dataset_id,
            from_step=from_step,
            to_step=to_step,
            snapshot_hash=vectors.snapshot["hash"] if vectors else "",
            snapshot_step=snapshot_step,
            per_query=self.config.per_query,
            index=self.parts.index,
            filters=dict(tally.counts),
            scores={"positive": round(tally.positive_score, 4), "negative": round(tally.negative_score, 4)},
            seconds={},
            sources=self.config.sources,
        )

    def rows(self, tally: Tally) -> Iterator[NegativesRow]:
        """Yield what is published, sample by sample; texts are read block by block."""
        train, ordinals = self.stretch.train, self.stretch.ordinals
        shards, shard_rows = train.locate(ordinals)
        for start in range(0, len(ordinals), BLOCK_QUERIES):
            block = tally.rows[start : start + BLOCK_QUERIES]
            wanted = np.unique(block[block >= 0])
            texts = dict(zip(wanted.tolist(), self.parts.dataset.passages(wanted), strict=True))
            for at, rows in enumerate(block.tolist(), start):
                scores, teacher = tally.scores[at].tolist(), tally.teacher[at].tolist()
                yield NegativesRow(
                    shard_stem=train.shard_stems[int(shards[at])],
                    row=int(shard_rows[at]),
                    key=train.key(int(ordinals[at])),
                    negatives=[
                        MinedNegative(texts[row], score, None if np.isnan(by_teacher) else by_teacher)
                        for row, score, by_teacher in zip(rows, scores, teacher, strict=True)
                        if row >= 0
                    ],
                )

    def sample(self, tally: Tally) -> list[dict[str, Any]]:
        """Return a few queries with what was found for them."""
        shown = np.unique(tally.rows[tally.sampled])
        shown = shown[shown >= 0]
        texts = dict(zip(shown.tolist(), self.parts.dataset.passages(shown), strict=True))
        return tally.sample(self.stretch.train.pairs(self.stretch.ordinals[tally.sampled]), texts)

    def _block(self, pairs: list[Pair], vectors: Float32s | None) -> Block:
        names = [f"{self.config.seed} {self.version} {pair.query_id} {pair.query}" for pair in pairs]
        known = self.known.of_all([pair.query for pair in pairs])
        return Block(pairs=pairs, keys=query_keys(names), known=known, vectors=vectors)


def _report(folder: Path, manifest: NegativesManifest, tally: Tally, seconds: dict[str, float]) -> MiningReport:
    there = tally.rows >= 0
    return MiningReport(
        version=manifest.version,
        folder=str(folder),
        queries=len(tally.rows),
        queries_with_negatives=int(there.any(axis=1).sum()),
        negatives=int(there.sum()),
        positive_score=manifest.scores["positive"],
        negative_score=manifest.scores["negative"],
        filters=manifest.filters,
        index=manifest.index,
        seconds={step: round(taken, 3) for step, taken in seconds.items()},
        sources=manifest.sources,
        statistics=manifest.statistics,
    )


@contextmanager
def _alone(cache_dir: Path) -> Iterator[None]:
    """Wait until no other refresh works with the same embeddings."""
    lock = cache_dir / ".lock"
    with locked(lock, wait=False) as got:
        if got:
            yield
            return
    _log.info("another refresh is at work in %s; waiting until it is done", cache_dir)
    with locked(lock):
        yield


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - begin
