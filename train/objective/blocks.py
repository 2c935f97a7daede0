"""The contrastive loss at one size of the vectors, differentiated block by block.

Axes: b queries and n passages of this rank, Q and N of all ranks, r pairs of this rank, c pairs of a block, D
dimensions, d of them at one Matryoshka size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from train.objective.batch import Batch
from train.objective.config import LossConfig
from train.objective.own import select
from train.objective.temperature import Temperature
from train.objective.terms import Block, Texts, pair_losses


def add_contrastive(
    batch: Batch, size: int, factor: float, config: LossConfig, temperature: Temperature
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient, times `factor`, to the batch's leaves and to the temperature.

    Returns:
        Each pair's loss, without the factor, and what the log shows of the scores at this size.
    """
    query_bd, passage_nd = cut(batch.query_bD, size), cut(batch.passage_nD, size)
    rows_rd = [select(query_bd, batch.pairs.owner_r), select(passage_nd, batch.pairs.place_r)]
    columns_d = [cut(rows, size) for rows in (batch.passage_ND, batch.query_QD) if rows is not None]
    # The blocks fill the gradients of these; one pass through cutting and selecting follows them.
    query_rd, passage_rd = (rows.detach() for rows in rows_rd)
    row_grads_rd = [torch.zeros_like(query_rd), torch.zeros_like(passage_rd)]
    leaves_d = [rows.detach().requires_grad_() for rows in columns_d]
    texts = Texts(columns=batch.columns, passage_ND=leaves_d[0], query_QD=leaves_d[1] if len(leaves_d) > 1 else None)
    best_r = _best_own_positive(query_rd, passage_rd, batch)
    coefficient_r = batch.pairs.weight_r * (batch.scale * factor)
    loss_r, sums = torch.zeros_like(coefficient_r), dict[str, Tensor]()
    for rows in _blocks(len(loss_r), _scores_per_row(batch, config), config.block_scores):
        block = Block(
            pairs=batch.pairs.block(rows),
            query_cD=query_rd[rows].requires_grad_(),
            passage_cD=passage_rd[rows].requires_grad_(),
            best_c=best_r[rows],
        )
        loss_c, sums_c = pair_losses(block, texts, config, temperature.value(query_rd.dtype))
        (loss_c * coefficient_r[rows]).sum().backward()
        for grad_rd, leaf_cD in zip(row_grads_rd, (block.query_cD, block.passage_cD), strict=True):
            if leaf_cD.grad is not None:
                grad_rd[rows] = leaf_cD.grad
        loss_r[rows] = loss_c.detach()
        sums = {name: value + sums.get(name, 0) for name, value in sums_c.items()}
    column_grads_d = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves_d]
    torch.autograd.backward([*rows_rd, *columns_d], [*row_grads_rd, *column_grads_d])
    return loss_r, sums


def cut(rows: Tensor, size: int) -> Tensor:
    """Return the vectors' first dimensions, normalised again; at their full size the vectors as they are."""
    return rows if size == rows.shape[1] else nn.functional.normalize(rows[:, :size], dim=1)


def _best_own_positive(query_rd: Tensor, passage_rd: Tensor, batch: Batch) -> Tensor:
    """Return the best positive's score of each pair's query."""
    score_r = (query_rd * passage_rd).sum(1)
    best_b = score_r.new_full((len(batch.query_bD),), -torch.inf)
    return best_b.scatter_reduce_(0, batch.pairs.owner_r, score_r, "amax")[batch.pairs.owner_r]


def _scores_per_row(batch: Batch, config: LossConfig) -> int:
    """Return how many scores one row has; all are held until the block's backward pass."""
    queries, passages = sum(batch.query_counts), sum(batch.passage_counts)
    return passages * (1 + config.passage_passage) + queries * (config.symmetric + config.query_query)


def _blocks(rows: int, row_scores: int, most_scores: int) -> Iterator[slice]:
    """Yield consecutive rows, as many at a time as fit the number of scores, and at least one."""
    step = max(1, most_scores // max(1, row_scores))
    for start in range(0, max(1, rows), step):  # a rank without pairs still has all sums
        yield slice(start, min(start + step, rows))
