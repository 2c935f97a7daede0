"""Vectors held near those of the base model.

Axes: b queries and n passages of this rank, r pairs, D dimensions.
"""

from __future__ import annotations

from torch import Tensor

from train.objective.batch import Batch
from train.objective.config import LossConfig
from train.objective.own import Own, select


def add_base(
    batch: Batch, own: Own, base_query_bD: Tensor | None, base_passage_nD: Tensor | None, config: LossConfig
) -> Tensor:
    """Add the gradient of the squared distance to the base model's vectors to the batch's leaves.

    Returns:
        Each pair's distance, without graph and weight: the mean of its query's, and of that of all the query's own
        passages.
    """
    assert base_query_bD is not None, "loss.base_weight needs the base model's vectors of the queries"
    assert base_passage_nD is not None, "loss.base_weight needs the base model's vectors of the passages"
    query_b = (batch.query_bD - base_query_bD.to(batch.query_bD.dtype)).square().sum(1)
    passage_n = (batch.passage_nD - base_passage_nD.to(batch.passage_nD.dtype)).square().sum(1)
    distance_b = (query_b + own.mean(passage_n)) / 2
    distance_r = select(distance_b[:, None], batch.pairs.owner_r).squeeze(1)
    coefficient_r = batch.pairs.weight_r * (batch.scale * config.base_weight)
    (distance_r * coefficient_r).sum().backward()
    return distance_r.detach()
