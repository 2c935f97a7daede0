"""InfoNCE over the passages of all ranks, with exact gradients and masked false negatives.

Axes: b queries of this rank, N passages of all ranks, K positives of a query, D dimensions.
Source: van den Oord et al. 2018, equation 4; in-batch negatives as in Karpukhin et al. 2020, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards.errors import UserError
from train.collectives import gather_rows, row_offset, sum_over_ranks, world_size


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive loss."""

    temperature: float = 0.05
    """Scores are divided by it."""
    mask_duplicates: bool = True
    """Leave out passages that are another positive, or a textual duplicate of a positive, of the query."""

    def __post_init__(self) -> None:
        """Check the temperature."""
        if not 0 < self.temperature < math.inf:
            raise UserError(f"loss.temperature must be positive, came {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Who is whose, for the b queries and the passages of one rank; `text_hash` stands for each text."""

    query_hash_b: Tensor
    """int64 [b]."""
    positive_hash_bK: Tensor
    """int64 [b, K]: every known positive of a query, repeated to fill the row."""
    passage_hash_n: Tensor
    """int64 [n]: this rank's passages; the first b are the queries' positives, in their order."""
    weight_b: Tensor
    """float [b]: how much each query counts."""

    def to(self, device: torch.device) -> Labels:
        """Copy to a device."""
        return Labels(
            query_hash_b=self.query_hash_b.to(device),
            positive_hash_bK=self.positive_hash_bK.to(device),
            passage_hash_n=self.passage_hash_n.to(device),
            weight_b=self.weight_b.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """The loss to differentiate, and sums to log (add them over ranks, then divide by `queries`)."""

    loss: Tensor
    """Scalar. Its mean over ranks is the loss of the global batch; see `info_nce` for its gradient."""
    sums: dict[str, Tensor]
    """Detached scalars: loss, accuracy, positive_score, hardest_negative_score, masked, queries; see `_sums`."""


def info_nce(query_bD: Tensor, passage_nD: Tensor, labels: Labels, config: LossConfig) -> LossOutput:
    """Score this rank's queries against every rank's passages.

    The loss is this rank's weighted sum over queries, divided by the global sum of weights and multiplied by the
    world size. An engine that averages parameter gradients over ranks then yields the gradient of the global
    weighted mean: nothing else needs scaling.

    Args:
        query_bD: normalised queries.
        passage_nD: normalised passages, the b positives first, then any number of negatives.
        labels: see `Labels`.
        config: temperature and masking.
    """
    b = len(query_bD)
    wide = torch.promote_types(query_bD.dtype, torch.float32)
    passage_ND = gather_rows(passage_nD.to(wide))
    score_bN = query_bD.to(wide) @ passage_ND.T
    column_b = torch.arange(b, device=query_bD.device) + row_offset(len(passage_nD), query_bD.device)
    is_positive_bN = torch.zeros_like(score_bN, dtype=torch.bool).scatter_(1, column_b[:, None], True)
    masked_bN = torch.zeros_like(is_positive_bN)
    if config.mask_duplicates:
        masked_bN = _known_positives(labels, len(passage_nD)) & ~is_positive_bN
    logit_bN = (score_bN / config.temperature).masked_fill(masked_bN, -torch.inf)
    loss_b = nn.functional.cross_entropy(logit_bN, column_b, reduction="none")
    weight_b = labels.weight_b.to(wide)
    loss = (loss_b * weight_b).sum() * (world_size() / sum_over_ranks(weight_b.sum()))
    return LossOutput(
        loss=loss, sums=_sums(loss_b, score_bN, logit_bN, column_b, is_positive_bN | masked_bN, masked_bN)
    )


def _known_positives(labels: Labels, passages: int) -> Tensor:
    """Mark the columns that hold a known positive of each query, by text; its own positive too.

    A column also counts when it is the positive of an equal query elsewhere in the global batch.
    """
    passage_hash_N = gather_rows(labels.passage_hash_n)
    owner_hash_n = torch.zeros_like(labels.passage_hash_n)
    owner_hash_n[: len(labels.query_hash_b)] = labels.query_hash_b
    owned_n = torch.zeros(passages, dtype=torch.int64, device=owner_hash_n.device)
    owned_n[: len(labels.query_hash_b)] = 1
    owner_hash_N, owned_N = gather_rows(torch.stack([owner_hash_n, owned_n], 1)).unbind(1)
    known_bN = (labels.query_hash_b[:, None] == owner_hash_N) & (owned_N == 1)
    for hash_b in labels.positive_hash_bK.unbind(1):
        known_bN |= hash_b[:, None] == passage_hash_N
    return known_bN


@torch.no_grad()
def _sums(
    loss_b: Tensor, score_bN: Tensor, logit_bN: Tensor, column_b: Tensor, not_negative_bN: Tensor, masked_bN: Tensor
) -> dict[str, Tensor]:
    """Return what the log shows, as sums over this rank's queries."""
    hardest_b = score_bN.masked_fill(not_negative_bN, -torch.inf).amax(1)
    has_negative_b = hardest_b.isfinite()
    return {
        "loss": loss_b.sum(),
        "accuracy": (logit_bN.argmax(1) == column_b).sum().to(loss_b.dtype),
        "positive_score": score_bN.gather(1, column_b[:, None]).sum(),
        "hardest_negative_score": hardest_b[has_negative_b].sum(),
        "masked": masked_bN.sum().to(loss_b.dtype),
        "queries": loss_b.new_tensor(len(loss_b)),
    }
