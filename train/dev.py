"""The dev metrics while training: exact search over a bounded corpus, on all ranks, the same number on any number.

What is computed never depends on the number of ranks, only who computes it: chunks of texts and blocks of scores are
cut over the whole dev set, and dealt out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import torch
from ir_measures import AP, RR, P, R, Success, nDCG

from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from data_shards.qrels import Qrels, untied
from data_shards.samples import Passage
from encoder.model import Encoder, Side
from train.dev_search import Dealt, Encode, deal, embed_on_all_ranks, nearest_on_all_ranks

_MEASURES = {"ndcg": nDCG, "mrr": RR, "recall": R, "precision": P, "success": Success, "map": AP}
_MOST_DEPTH = 10_000


@dataclass(frozen=True, kw_only=True)
class DevConfig:
    """In-loop evaluation."""

    data: str = ""
    """A BEIR folder with the dev queries; empty turns in-loop evaluation off."""
    split: str = "dev"
    """Which judgements."""
    every_steps: int = 50
    """Steps between two evaluations; the last step always has one."""
    max_queries: int = 500
    """Queries beyond this are left out, by hash."""
    max_passages: int = 2000
    """The judged passages, filled up to this with others by hash. A smaller corpus is easier than the whole one:
    the metric compares steps of one run, not systems."""
    metrics: tuple[str, ...] = ("nDCG@10",)
    """Such as nDCG@10, MRR@10, Recall@100, MAP@100, Precision@5, Success@1; the first decides which step is best."""
    stop_after_evals: int = 0
    """The run ends after so many evaluations in a row without a gain; 0 lets it go to its last step."""
    min_gain: float = 0.0
    """A gain is a value above the best so far by at least this."""

    def __post_init__(self) -> None:
        """Check counts and names."""
        for name in ("every_steps", "max_queries", "max_passages"):
            if getattr(self, name) < 1:
                raise UserError(f"dev.{name} must be at least 1, came {getattr(self, name)}")
        if self.stop_after_evals < 0 or self.min_gain < 0:
            raise UserError("dev.stop_after_evals and dev.min_gain must be 0 or more")
        if not self.metrics:
            raise UserError('dev.metrics is empty; name at least one, such as "nDCG@10"')
        for name in self.metrics:
            _measure(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """What early stopping and the best snapshot follow from; a checkpoint keeps these three values."""

    value: float | None = None
    """The highest value of the first metric so far; None before the first evaluation."""
    step: int | None = None
    """Where it was reached first."""
    evals_without_gain: int = 0
    """Evaluations in a row that did not gain `DevConfig.min_gain`."""

    def after(self, value: float, step: int, *, min_gain: float) -> Best:
        """Return what holds after one more evaluation.

        Any higher value is the new best, but only a gain of `min_gain` over the best before it counts as one.
        """
        if self.value is None:
            return Best(value=value, step=step)
        gained = value > self.value and value >= self.value + min_gain
        count = 0 if gained else self.evals_without_gain + 1
        higher = value > self.value
        return Best(
            value=value if higher else self.value, step=step if higher else self.step, evals_without_gain=count
        )

    def says_stop(self, config: DevConfig) -> bool:
        """Whether the run has gone on for long enough without a gain."""
        return 0 < config.stop_after_evals <= self.evals_without_gain


class DevSet:
    """Dev queries, a bounded corpus and the judgements."""

    def __init__(self, config: DevConfig) -> None:
        """Read the folder and choose queries and passages, the same on every rank and machine.

        Raises:
            UserError: folder or split is missing, or no query of it has a relevant passage.
        """
        folder = BeirFolder(Path(config.data))
        # A query with nothing to find scores 0 whatever the encoder does.
        qrels = {name: row for name, row in folder.qrels(config.split).items() if max(row.values()) > 0}
        queries = {name: text for name, text in folder.queries().items() if name in qrels}
        if not queries:
            raise UserError(f"{config.data} has no query with a judgement in split {config.split}")
        chosen = sorted(queries, key=_lot)[: config.max_queries]
        self._queries = {name: queries[name] for name in chosen}
        self._qrels = {name: qrels[name] for name in chosen}
        judged = {passage for row in self._qrels.values() for passage in row}
        self._passages = _bounded_corpus(folder, judged, config.max_passages)
        self._measures = {name.lower(): _measure(name) for name in config.metrics}
        self._dealt: tuple[Dealt, Dealt] | None = None

    def evaluate(
        self, encode: Encode, encoder: Encoder, *, device: torch.device, tokens_per_chunk: int
    ) -> dict[str, float]:
        """Return the metrics, the deciding one first; each rank embeds and searches a part, and all get all.

        The first call tokenises and deals the texts out; later calls take the same.

        Args:
            encode: a chunk's vectors [B, D], dropout off and without a graph. All ranks call it equally often.
            encoder: its tokenizer makes the chunks.
            device: where `encode` wants them.
            tokens_per_chunk: most tokens in a forward pass, padding counted.

        Returns:
            By name in lower case, such as `ndcg@10`: bit for bit the same on every rank, and on any number of
            ranks that compute with equal kernels and equally many threads.
        """
        if self._dealt is None:
            self._dealt = self._deal(encoder, tokens_per_chunk)
        with torch.no_grad():
            query_qD, passage_pD = (embed_on_all_ranks(encode, dealt, device) for dealt in self._dealt)
            depth = min(max(measure.params["cutoff"] for measure in self._measures.values()), len(self._passages))
            score_qk, place_qk = nearest_on_all_ranks(query_qD, passage_pD, depth)
        return self._values(score_qk.tolist(), place_qk.tolist())

    def _deal(self, encoder: Encoder, tokens_per_chunk: int) -> tuple[Dealt, Dealt]:
        contents = [passage.content for passage in self._passages]

        def one(texts: Sequence[str], side: Side) -> Dealt:
            pad_id = encoder.tokenizer.pad_token_id or 0
            return deal(encoder.tokenize(texts, side), side, pad_id=pad_id, tokens_per_chunk=tokens_per_chunk)

        return one(list(self._queries.values()), "query"), one(contents, "passage")

    def _values(self, scores: list[list[float]], places: list[list[int]]) -> dict[str, float]:
        run = {
            name: {self._passages[place].id: score for place, score in zip(*row, strict=True)}
            for name, *row in zip(self._queries, places, scores, strict=True)
        }
        return calculate(self._measures, self._qrels, run)


def calculate(
    measures: Mapping[str, ir_measures.Measure], qrels: Qrels, run: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return each measure's mean over the judged queries; of equal scores the smaller id comes first."""
    found = ir_measures.calc_aggregate(
        list(measures.values()), qrels, untied({name: dict(row) for name, row in run.items()})
    )
    return {name: float(found[measure]) for name, measure in measures.items()}


def _measure(name: str) -> ir_measures.Measure:
    match = re.fullmatch(r"([A-Za-z]+)@(\d+)", name)
    if not match or match[1].lower() not in _MEASURES or not 0 < int(match[2]) <= _MOST_DEPTH:
        raise UserError(
            f"dev.metrics holds {name!r}; wanted one of nDCG, MRR, Recall, MAP, Precision and Success with a depth "
            f"of 1 to {_MOST_DEPTH}, such as nDCG@10"
        )
    return _MEASURES[match[1].lower()] @ int(match[2])


def _bounded_corpus(folder: BeirFolder, judged: set[str], limit: int) -> list[Passage]:
    """Return the judged passages, and others up to the limit: those with the lowest hash of their id."""
    kept: list[Passage] = []
    others: list[tuple[bytes, Passage]] = []
    room = max(0, limit - len(judged))
    for passage in folder.corpus():
        if passage.id in judged:
            kept.append(passage)
        elif room:
            others.append((_lot(passage.id), passage))
            if len(others) > 2 * room + 1024:
                others = sorted(others, key=lambda row: row[0])[:room]
    return kept + [passage for _, passage in sorted(others, key=lambda row: row[0])[:room]]


def _lot(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
