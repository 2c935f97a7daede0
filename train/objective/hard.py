"""How much a query's own hard negatives still teach: the loss that it would have against them alone.

Axes: b queries and n passages of this rank, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.objective.labels import Labels
from train.objective.own import select


@torch.no_grad()
def hard_loss(query_bD: Tensor, passage_nD: Tensor, labels: Labels, temperature: float) -> dict[str, Tensor]:
    """Return the sum of log(1 + Σ exp((negative − positive) / temperature)) over the queries with hard negatives.

    Of several positives the farthest counts. `hard_queries` says how many queries there are.
    """
    score_n = (select(query_bD, labels.owner_n) * passage_nD).sum(1) / temperature
    queries, is_negative_n = len(query_bD), ~labels.positive_n
    positive_b = score_n.new_full((queries,), torch.inf).scatter_reduce_(
        0, labels.owner_n[labels.positive_n], score_n[labels.positive_n], "amin"
    )
    owner_m = labels.owner_n[is_negative_n]
    gap_m = score_n[is_negative_n] - positive_b[owner_m]
    # log(1 + Σ exp(gap)) = log(exp(0) + Σ exp(gap)), with the largest taken out.
    highest_b = score_n.new_zeros(queries).scatter_reduce_(0, owner_m, gap_m, "amax")
    total_b = (-highest_b).exp().index_add_(0, owner_m, (gap_m - highest_b[owner_m]).exp())
    has_b = torch.zeros_like(total_b, dtype=torch.bool).index_fill_(0, owner_m, True)
    return {"hard_loss": (highest_b + total_b.log())[has_b].sum(), "hard_queries": has_b.sum().to(score_n.dtype)}
