"""Adds up what the ranks have to say of a step, in one collective, and turns it into what the log shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.batches import StepBatch
from train.collectives import sum_over_ranks
from train.objective import LossOutput

_PER_QUERY = ("loss", "accuracy", "positive_score", "hardest_negative_score", "distill", "base", "temperature")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSums:
    """A step's sums over all ranks."""

    by_name: dict[str, list[float]]
    skipped: float
    """Pairs that were left out as damaged."""
    tokens: float
    padded_tokens: float
    squares: float
    asked: bool
    """Whether any rank was asked to stop: it travels along, to save a collective a step."""
    said: list[float]
    """What the ranks said beside it, see `train.arrivals`."""

    @property
    def queries(self) -> float:
        """Queries of the global batch."""
        return self.by_name["queries"][0]

    @property
    def loss(self) -> float:
        """Mean over queries."""
        return self.by_name["loss"][0] / self.queries

    @property
    def hard_loss(self) -> float | None:
        """Mean over queries that have hard negatives; None where no query has."""
        queries = self.by_name["hard_queries"][0]
        return self.by_name["hard_loss"][0] / queries if queries else None

    def values(self) -> dict[str, Any]:
        """Return what the log shows of them."""
        sums = {name: values[0] for name, values in self.by_name.items()}
        shown: dict[str, Any] = {name: sums[name] / self.queries for name in _PER_QUERY if name in sums}
        shown["masked"] = sums["masked"]
        if (hard_loss := self.hard_loss) is not None:
            shown["hard_loss"] = hard_loss
        if "alignment" in sums:
            shown["alignment"] = sums["alignment"] / sums["positives"]
            if sums["uniformity"] > 0:
                shown["uniformity"] = math.log(sums["uniformity"] / sums["uniformity_pairs"])
            for side in ("positive", "negative"):
                counts = [int(count) for count in self.by_name[f"{side}_score_histogram"]]
                shown[f"{side}_scores"] = {"histogram": {"counts": counts, "edges": [-1.0, 1.0]}}
        return shown


def add_up(
    outputs: Sequence[LossOutput], batches: Sequence[StepBatch], *, asked: bool, say: Sequence[float] = ()
) -> StepSums:
    """Add parts and ranks up; every rank calls it, and all say equally many numbers."""
    names = list(outputs[0].sums)
    parts: list[Tensor] = [torch.stack([output.sums[name] for output in outputs]).sum(0) for name in names]
    sizes = [part.numel() for part in parts]
    counts = (
        sum(batch.skipped for batch in batches),
        sum(batch.tokens for batch in batches),
        sum(batch.padded_tokens for batch in batches),
        sum(batch.squares for batch in batches),
        int(asked),
        *say,
    )
    flat = torch.cat([*(part.flatten().double() for part in parts), parts[0].new_tensor(counts, dtype=torch.float64)])
    total = sum_over_ranks(flat).tolist()
    by_name = {}
    for name, size in zip(names, sizes, strict=True):
        by_name[name], total = total[:size], total[size:]
    skipped, tokens, padded, squares, stops, *said = total
    return StepSums(
        by_name=by_name,
        skipped=skipped,
        tokens=tokens,
        padded_tokens=padded,
        squares=squares,
        asked=stops > 0,
        said=said,
    )
