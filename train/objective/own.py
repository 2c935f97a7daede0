"""A query's own passages, side by side: what the teacher's scores and the base model's vectors are compared over.

All of this rank alone. Axes: b queries, n passages, C own passages of a query (as many as the largest number).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.objective.labels import Labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """Where each query's own passages stand."""

    place_bC: Tensor
    """Their rows; any row where there is none."""
    present_bC: Tensor
    """Whether there is one."""

    def spread(self, value_n: Tensor) -> Tensor:
        """Return [b, C] of a value a passage; meaningless where none is present."""
        return select(value_n[:, None], self.place_bC).squeeze(-1)

    def mean(self, value_n: Tensor) -> Tensor:
        """Return each query's mean over its own passages."""
        value_bC = self.spread(value_n).masked_fill(~self.present_bC, 0)
        return value_bC.sum(1) / self.present_bC.sum(1).clamp(min=1)


def own_passages(labels: Labels) -> Own:
    """Sort the passages by owner, in their order."""
    counts_b = torch.bincount(labels.owner_n, minlength=len(labels.query_hash_b))
    most = int(counts_b.max()) if len(counts_b) else 0
    turn_C = torch.arange(most, device=counts_b.device)
    present_bC = turn_C < counts_b[:, None]
    place_bC = torch.zeros_like(present_bC, dtype=torch.int64)
    place_bC[present_bC] = labels.owner_n.argsort(stable=True)
    return Own(place_bC=place_bC, present_bC=present_bC)


def select(rows: Tensor, index: Tensor) -> Tensor:
    """Return `rows[index]`, with a gradient that is the same bits every time.

    Where a row is taken several times, the backward pass of plain indexing may add in the order in which threads
    arrive; that of an embedding does not.
    """
    return nn.functional.embedding(index, rows)
