"""The dev metric while training: exact search over a bounded corpus, on all ranks.

Axes: q queries, p passages of this rank, D dimensions, k neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import numpy as np
import torch
from ir_measures import nDCG

from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from data_shards.qrels import untied
from data_shards.samples import Passage
from encoder.embed import Precision, embed_texts
from encoder.model import Encoder
from train.collectives import gather_rows, rank, world_size

_DEPTH = 10


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

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("every_steps", "max_queries", "max_passages"):
            if getattr(self, name) < 1:
                raise UserError(f"dev.{name} must be at least 1, came {getattr(self, name)}")


class DevSet:
    """Dev queries, a bounded corpus and the judgements."""

    def __init__(self, config: DevConfig) -> None:
        """Read the folder and choose queries and passages, the same on every rank and machine.

        Raises:
            UserError: folder or split is missing, or no query of it is judged.
        """
        folder = BeirFolder(Path(config.data))
        qrels = folder.qrels(config.split)
        queries = {name: text for name, text in folder.queries().items() if name in qrels}
        if not queries:
            raise UserError(f"{config.data} has no query with a judgement in split {config.split}")
        chosen = sorted(queries, key=_lot)[: config.max_queries]
        self._queries = {name: queries[name] for name in chosen}
        self._qrels = {name: qrels[name] for name in chosen}
        judged = {passage for row in self._qrels.values() for passage in row}
        self._passages = _bounded_corpus(folder, judged, config.max_passages)

    def evaluate(self, encoder: Encoder, *, precision: Precision, tokens_per_batch: int) -> float:
        """Return nDCG@10; every rank embeds a part, and every rank gets the number."""
        query_ids, passage_ids = list(self._queries), [passage.id for passage in self._passages]
        contents = [passage.content for passage in self._passages]

        def embed_all(texts: Sequence[str], side: str) -> torch.Tensor:
            mine = np.array_split(np.arange(len(texts)), world_size())[rank()]
            part = embed_texts(
                encoder,
                [texts[k] for k in mine],
                side="query" if side == "query" else "passage",
                precision=precision,
                tokens_per_batch=tokens_per_batch,
            )
            return gather_rows(torch.from_numpy(part).to(next(encoder.parameters()).device))

        query_qD = embed_all(list(self._queries.values()), "query")
        passage_pD = embed_all(contents, "passage")
        score_qk, place_qk = (query_qD @ passage_pD.T).topk(min(_DEPTH, len(passage_ids)))
        run = {
            name: {passage_ids[place]: score for place, score in zip(places, scores, strict=True)}
            for name, places, scores in zip(query_ids, place_qk.tolist(), score_qk.tolist(), strict=True)
        }
        metric = nDCG @ 10
        return float(ir_measures.calc_aggregate([metric], self._qrels, untied(run))[metric])


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
