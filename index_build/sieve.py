"""From a block's candidates to its negatives: judge, compare, ask the teacher, draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from index_build.candidates import Block, CandidateSource, Found
from index_build.corpus_rows import CorpusRows
from index_build.drawing import Taker, preference, take_turns
from index_build.embedding_set import EmbeddingSet, RowHashes
from index_build.filters import (
    Bools,
    Bytes,
    Float32s,
    Int64s,
    Judgement,
    Limit,
    Ragged,
    Verdict,
    any_equal,
    judge,
    score_limits,
)
from index_build.mining_config import MiningConfig
from index_build.near_positives import NearPositives
from index_build.similarity import similarities

if TYPE_CHECKING:  # it loads torch
    from index_build.teacher import Teacher

Timed = Callable[[str], AbstractContextManager[None]]

# Axes: Q queries of a block, K candidates of each from all sources, W negatives wanted of each.


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A block's candidates of all sources side by side, before anything is drawn."""

    rows: Int64s
    """[Q, K]; -1 is padding."""
    scores: Float32s
    """[Q, K]: similarity by the snapshot; without one, BM25's score."""
    verdicts: Bytes
    """[Q, K]"""
    in_window: Bools
    """[Q, K]: see `Judgement`."""
    order: Int64s
    """[Q, K] positions, the first to take first."""
    positives: list[Float32s]
    """[Q] scores of each query's own positives, of the same kind as `scores`."""
    teacher: Float32s
    """[Q, K], NaN where none was asked."""
    teacher_positives: Float32s
    """[Q]: the lowest of each query's, NaN where none was asked."""


class Sieve:
    """Finds and judges the candidates of one version."""

    def __init__(
        self,
        config: MiningConfig,
        corpus: CorpusRows,
        sources: Sequence[tuple[str, CandidateSource]],
        *,
        vectors: EmbeddingSet | None,
        near: NearPositives | None,
        teacher: Teacher | None,
    ) -> None:
        """Take the parts.

        Args:
            config: the filters.
            corpus: of all candidates' rows.
            sources: by name, in the order in which they take turns.
            vectors: of the corpus, where a snapshot embedded it.
            near: finds near-duplicates of positives.
            teacher: has the last word.
        """
        self._config, self._corpus, self._sources = config, corpus, sources
        self._vectors, self._near, self._teacher = vectors, near, teacher

    def judge(self, block: Block, timed: Timed, *, ask_teacher: bool = True) -> Judged:
        """Find the candidates of a block and say of each what becomes of it.

        Args:
            block: the queries.
            timed: measures the steps `search`, `filter` and `teacher`.
            ask_teacher: whether a teacher has its word, where there is one.
        """
        with timed("search"):
            found = {name: source.find(block) for name, source in self._sources}
            similar = {name: self._similar(name, one, block) for name, one in found.items()}
            positives = found["dense" if "dense" in found else next(iter(found))].positives
        with timed("filter"):
            judged = self._judge(block, found, similar, positives)
        if self._teacher is None or not ask_teacher:
            return judged
        with timed("teacher"):
            opinion = self._teacher.judge(block.pairs, judged.order, judged.rows, judged.verdicts)
        judged.teacher[:], judged.teacher_positives[:] = opinion.candidates_QK, opinion.positives_Q
        return judged

    def ids(self, rows: Int64s) -> Int64s:
        """Return the id hashes of some rows."""
        return self._corpus.hashes.ids[rows]

    def _similar(self, name: str, found: Found, block: Block) -> Float32s:
        """Return the scores that are published: the snapshot's where there is one."""
        if name == "dense" or self._vectors is None or block.vectors is None:
            return found.scores
        return similarities(self._vectors, block.vectors, found.rows)

    def _judge(
        self, block: Block, found: dict[str, Found], similar: dict[str, Float32s], positives: list[Float32s]
    ) -> Judged:
        judgements: list[Judgement] = []
        hashes: list[RowHashes] = []
        earlier = np.empty((len(block.pairs), 0), dtype=np.int64)
        for name, one in found.items():
            hashes.append(self._corpus.hashes.take(one.rows))
            judgements.append(self._judge_one(name, one, similar[name], hashes[-1], block, positives, earlier))
            earlier = np.concatenate([earlier, one.rows], axis=1)
        joined, rows = np.concatenate([one.verdicts_QK for one in judgements], axis=1), earlier
        if self._near is not None:
            near = self._near.find(rows, joined == Verdict.KEPT, block.pairs, block.known)
            joined[near] = Verdict.NEAR_DUPLICATE
        ends = np.cumsum([one.rows.shape[1] for one in found.values()])[:-1]
        kept = np.split(joined == Verdict.KEPT, ends, axis=1)
        places = [
            preference(
                some.ids,
                may,
                _weights(name, similar[name], self._vectors is not None),
                block.keys,
                sampling=self._config.sampling,
                temperature=self._config.sampling_temperature,
            )
            for (name, some, may) in zip(found, hashes, kept, strict=True)
        ]
        return Judged(
            rows=rows,
            scores=np.concatenate(list(similar.values()), axis=1),
            verdicts=joined,
            in_window=np.concatenate([one.in_window_QK for one in judgements], axis=1),
            order=take_turns(places, kept),
            positives=positives,
            teacher=np.full(rows.shape, np.nan, dtype=np.float32),
            teacher_positives=np.full(len(rows), np.nan, dtype=np.float32),
        )

    def _judge_one(
        self,
        name: str,
        found: Found,
        similar: Float32s,
        hashes: RowHashes,
        block: Block,
        positives: list[Float32s],
        earlier: Int64s,
    ) -> Judgement:
        """Judge one source's candidates, by the source's own score and by the snapshot's where there is one."""
        config, there = self._config, found.rows >= 0
        limits, ceiling = [], None
        if self._vectors is not None:
            most = score_limits(farthest(positives), config.max_relative_score, config.margin)
            limits.append(Limit(similar, most))
            if config.max_score is not None:
                ceiling = Limit(similar, np.full(len(there), config.max_score))
        if name == "bm25" and config.bm25_max_relative_score:
            limits.append(
                Limit(found.scores, score_limits(farthest(found.positives), config.bm25_max_relative_score))
            )
        everything = Ragged.of(np.full(len(there), earlier.shape[1]))
        return judge(
            hashes,
            there,
            block.known,
            limits=limits,
            skip_ranks=config.skip_ranks if name != "random" else 0,
            ceiling=ceiling,
            repeated_QK=any_equal(found.rows, earlier.ravel(), everything) if earlier.shape[1] else None,
        )


def draw(taker: Taker, judged: Judged) -> Int64s:
    """Take a block's negatives: [Q, W] positions, best score first; -1 where there are fewer."""
    chosen = taker.take(judged.order, judged.rows, judged.verdicts)
    scores = np.where(chosen >= 0, np.take_along_axis(judged.scores, np.maximum(chosen, 0), 1), -np.inf)
    # Of equal scores the lower row: nothing may hang on the order in which candidates came.
    rows = np.take_along_axis(judged.rows, np.maximum(chosen, 0), 1)
    return np.take_along_axis(chosen, np.lexsort((rows, -scores, chosen < 0), axis=1), 1)


def farthest(positives: Sequence[Float32s]) -> Float32s:
    """Return the lowest score of each query's positives; -inf where it has none, so that no negative is below it."""
    return np.array([one.min() if len(one) else -np.inf for one in positives], dtype=np.float32)


def _weights(name: str, scores: Float32s, embedded: bool) -> Float32s:
    """Return what `sampling = "score"` weighs by: similarities; BM25's scores, which know no bound, as shares."""
    if embedded or name != "bm25" or not scores.shape[1]:
        return scores
    best = np.maximum(scores.max(axis=1, keepdims=True), 1e-9)
    return np.where(np.isfinite(scores), scores / best, -np.inf).astype(np.float32)
