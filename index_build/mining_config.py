"""The settings of a refresh: where candidates come from, what is dropped, what is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_shards.errors import UserError

Candidates = Literal["positives", "corpus"]
Source = Literal["dense", "bm25", "random"]
Sampling = Literal["uniform", "rank", "score", "nearest"]

NEAR_SHINGLES = 3
"""Words in a row that make a shingle, where passages are compared for being nearly the same."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which neighbours become negatives."""

    sources: tuple[Source, ...] = ("dense",)
    """Where candidates come from: the snapshot's neighbours, BM25's, any passages. Several take turns, in this order,
    until `per_query` are drawn; one with nothing left is passed over."""
    candidates: Candidates = "positives"
    """`positives`: only passages that some training pair names as its positive. All others of the `corpus` would be
    trained as negatives and as nothing else, and so be pushed away from whatever is asked of them later."""
    per_query: int = 1
    """Negatives drawn for each query from the neighbours that the filters keep."""
    depth: int = 100
    """Neighbours searched for each query, by each source that searches."""
    skip_ranks: int = 0
    """So many of the nearest are never taken, positives counted: the nearest are often unmarked positives."""
    max_relative_score: float = 0.95
    """A negative's similarity is at most this share of the positive's (of several positives, of the farthest)."""
    margin: float = 0.0
    """And at least so much below the positive's."""
    max_score: float | None = None
    """And at most this, whatever the positive's."""
    bm25_max_relative_score: float = 0.95
    """A BM25 negative's BM25 score is at most this share of the positive's; 0 leaves it open."""
    near_duplicates: float = 0.8
    """Passages this like a positive of their query are dropped: the share of word triples in common (Jaccard,
    estimated by MinHash); 0 drops exact duplicates alone."""
    per_passage_max: int = 0
    """So many times, at most, one passage is a negative within a version, for the queries that come first; 0: any."""
    sampling: Sampling = "uniform"
    """How those that are left are drawn: all alike; by `rank`, the nth of them at 1/n; by `score`, at
    exp(score / sampling_temperature); or the `nearest` ones."""
    sampling_temperature: float = 0.05
    """Of `sampling = "score"`; the lower, the nearer."""
    corpus_sample: int = 0
    """Mine from so many of them, drawn anew for each version, and all positives of the stretch; 0: from all."""
    teacher: str = ""
    """Folder of a model that has the last word: a cross-encoder with one label, or a bi-encoder."""
    teacher_margin: float = 0.0
    """A candidate goes if the teacher scores it above the positive (of several, the lowest) less this margin."""
    teacher_candidates: int = 8
    """Candidates a query that the teacher is asked of: those that would be drawn, and their replacements."""
    seed: int = 0
    """Of the draw; each version draws anew."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_sources(self)
        if self.per_query < 1:
            raise UserError(f"mining.per_query is {self.per_query}, wanted at least 1")
        if not 0 <= self.skip_ranks < self.depth:
            raise UserError(
                f"mining.skip_ranks is {self.skip_ranks} and depth {self.depth}; "
                "skip_ranks must be at least 0 and below depth"
            )
        _check_scores(self)
        for name in ("per_passage_max", "corpus_sample"):
            if getattr(self, name) < 0:
                raise UserError(f"mining.{name} is {getattr(self, name)}, wanted 0 (off) or more")
        if not self.sampling_temperature > 0:
            raise UserError(f"mining.sampling_temperature is {self.sampling_temperature}, wanted above 0")
        if self.teacher and self.teacher_candidates < self.per_query:
            raise UserError(
                f"mining.teacher_candidates is {self.teacher_candidates} and per_query {self.per_query}; "
                "the teacher has to be asked of as many as are drawn, or more"
            )

    @property
    def embeds(self) -> bool:
        """Whether a snapshot is needed."""
        return "dense" in self.sources


def _check_sources(config: MiningConfig) -> None:
    known = ("dense", "bm25", "random")
    wrong = [name for name in config.sources if name not in known]
    if wrong or not config.sources or len(set(config.sources)) != len(config.sources):
        raise UserError(
            f"mining.sources is {', '.join(config.sources) or 'empty'}; wanted one or more of {', '.join(known)}, "
            "each once"
        )


def _check_scores(config: MiningConfig) -> None:
    if not config.max_relative_score <= 1:
        raise UserError(f"mining.max_relative_score is {config.max_relative_score}, wanted at most 1")
    if not 0 <= config.bm25_max_relative_score <= 1:
        raise UserError(f"mining.bm25_max_relative_score is {config.bm25_max_relative_score}, wanted 0 (off) to 1")
    for name in ("margin", "teacher_margin"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"mining.{name} is {getattr(config, name)}, wanted 0 or more")
    if config.max_score is not None and math.isnan(config.max_score):
        raise UserError("mining.max_score is no number")
    if config.near_duplicates and not 0.3 <= config.near_duplicates <= 1:
        raise UserError(
            f"mining.near_duplicates is {config.near_duplicates}, wanted 0 (off) or 0.3 to 1; 0.8 is usual"
        )
