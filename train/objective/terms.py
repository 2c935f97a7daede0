"""The loss of one block of (query, positive) pairs against the texts of all ranks.

Axes: c pairs of the block, N passages and Q queries of all ranks, D dimensions.
Source: InfoNCE: van den Oord et al. 2018, equation 4, with in-batch negatives as in Karpukhin et al. 2020, section
3.2. Query-query and passage-passage denominators: Li et al. 2023 (GTE), section 3.3. Margin to the positive's score:
Zhang et al. 2025 (Qwen3 Embedding), section 3. Triplet: Schroff et al. 2015, equation 1, on cosines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.objective.batch import Columns, Pairs
from train.objective.config import LossConfig
from train.objective.masks import Masks


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows of the loss, and the vectors that they are made of."""

    pairs: Pairs
    query_cD: Tensor
    passage_cD: Tensor
    """The positive of each row."""
    best_c: Tensor
    """The score of the best own positive of each row's query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What the rows are compared with."""

    columns: Columns
    passage_ND: Tensor
    query_QD: Tensor | None
    """Where queries are columns."""


def pair_losses(
    block: Block, texts: Texts, config: LossConfig, temperature: float | Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return each row's loss, with its graph, and what the log shows, summed over queries."""
    masks = Masks(block.pairs, texts.columns, config, block.best_c)
    score_cN = block.query_cD @ texts.passage_ND.T
    false_cN = masks.false_passages(score_cN.detach())
    foreign_cN = masks.foreign_negatives()
    out_cN = false_cN if foreign_cN is None else false_cN | foreign_cN
    if config.kind == "triplet":
        loss_c = _triplet(block.pairs, texts.columns, score_cN, out_cN, config.triplet_margin)
    else:
        column_c1 = block.pairs.column_r[:, None]
        logit_cN = (score_cN / temperature).masked_fill_(out_cN, -torch.inf)
        total_c = _with_denominators(
            torch.logsumexp(logit_cN, 1), block, texts, masks, foreign_cN, config, temperature
        )
        loss_c = total_c - logit_cN.gather(1, column_c1).squeeze(1)
        if config.symmetric:
            loss_c = (loss_c + _passage_to_query(block, texts, masks, temperature)) / 2
    return loss_c, _sums(block.pairs, score_cN.detach(), false_cN, out_cN)


def _with_denominators(
    total_c: Tensor,
    block: Block,
    texts: Texts,
    masks: Masks,
    foreign_cN: Tensor | None,
    config: LossConfig,
    temperature: float | Tensor,
) -> Tensor:
    """Add the similarities of query to query and of passage to passage to a log-sum-exp."""
    if config.query_query:
        assert texts.query_QD is not None, "queries were gathered"
        score_cQ = block.query_cD @ texts.query_QD.T
        out_cQ = masks.queries_beside(score_cQ.detach())
        total_c = torch.logaddexp(
            total_c, torch.logsumexp((score_cQ / temperature).masked_fill_(out_cQ, -torch.inf), 1)
        )
    if config.passage_passage:
        score_cN = block.passage_cD @ texts.passage_ND.T
        out_cN = masks.passages_beside(score_cN.detach())
        if foreign_cN is not None:
            out_cN |= foreign_cN
        total_c = torch.logaddexp(
            total_c, torch.logsumexp((score_cN / temperature).masked_fill_(out_cN, -torch.inf), 1)
        )
    return total_c


def _passage_to_query(block: Block, texts: Texts, masks: Masks, temperature: float | Tensor) -> Tensor:
    assert texts.query_QD is not None, "queries were gathered"
    score_cQ = block.passage_cD @ texts.query_QD.T
    out_cQ = masks.false_queries(score_cQ.detach())
    logit_cQ = (score_cQ / temperature).masked_fill_(out_cQ, -torch.inf)
    return torch.logsumexp(logit_cQ, 1) - logit_cQ.gather(1, block.pairs.query_r[:, None]).squeeze(1)


def _triplet(pairs: Pairs, columns: Columns, score_cN: Tensor, out_cN: Tensor, margin: float) -> Tensor:
    """Return the mean hinge over a row's own negatives; without any, that of the hardest in the batch."""
    hinge_cN = nn.functional.relu(score_cN - score_cN.gather(1, pairs.column_r[:, None]) + margin)
    own_cN = ~out_cN & ~columns.positive_N & (columns.owner_N == pairs.query_r[:, None])
    owned_c = own_cN.sum(1)
    mean_c = (hinge_cN * own_cN).sum(1) / owned_c.clamp(min=1)
    # The positive itself is among the columns; it and what is left out must not pass for the hardest.
    out_cN = out_cN.scatter(1, pairs.column_r[:, None], True)
    hardest_c = score_cN.detach().masked_fill(out_cN, -torch.inf).argmax(1, keepdim=True)
    hardest_c = hinge_cN.gather(1, hardest_c).squeeze(1) * ~out_cN.all(1)
    return torch.where(owned_c > 0, mean_c, hardest_c)


@torch.no_grad()
def _sums(pairs: Pairs, score_cN: Tensor, false_cN: Tensor, out_cN: Tensor) -> dict[str, Tensor]:
    """Return what the log shows: from query to passage, whatever else the loss holds."""
    column_c1 = pairs.column_r[:, None]
    positive_c = score_cN.gather(1, column_c1).squeeze(1)
    hardest_c = score_cN.masked_fill(out_cN, -torch.inf).scatter_(1, column_c1, -torch.inf).amax(1)
    return {
        "accuracy": ((positive_c > hardest_c) * pairs.share_r).sum(),
        "positive_score": (positive_c * pairs.share_r).sum(),
        "hardest_negative_score": (hardest_c.masked_fill(hardest_c.isinf(), 0) * pairs.share_r).sum(),
        "masked": (false_cN.sum(1) * pairs.share_r).sum(),
    }
