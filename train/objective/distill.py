"""Distillation from a teacher's scores of each query's own passages.

Axes: b queries and n passages of this rank, r pairs, C own passages of a query.
Source: KL: Hinton et al. 2015, section 2, over lists as in Chen et al. 2024 (BGE M3), section 3.2. Margin-MSE:
Hofstätter et al. 2021, equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_shards.errors import UserError
from train.objective.batch import Batch, Pairs
from train.objective.blocks import cut
from train.objective.config import LossConfig
from train.objective.labels import Labels
from train.objective.own import Own, select
from train.objective.temperature import Temperature


def check_teacher(batch: Batch, config: LossConfig) -> None:
    """Refuse a batch whose teacher's scores do not suffice: on all ranks alike, since the number is of all.

    Raises:
        UserError: a positive has no score, or none of a query's negatives has one.
    """
    if batch.without_teacher:
        raise UserError(
            f'loss.distill = "{config.distill}" needs a teacher\'s score of each positive, and of at least one of a '
            f"query's negatives; {batch.without_teacher} of {sum(batch.query_counts)} queries of this step lack it; "
            'mine or import with teacher scores, or set loss.distill = "off"'
        )


def add_distillation(
    batch: Batch,
    own: Own,
    labels: Labels,
    size: int,
    factor: float,
    config: LossConfig,
    temperature: Temperature,
) -> Tensor:
    """Add the gradient at one size, times `factor`, to the batch's leaves and to the temperature.

    Returns:
        Each pair's distance from the teacher, without graph, factor and weight.
    """
    query_bd, passage_nd = cut(batch.query_bD, size), cut(batch.passage_nD, size)
    score_n = (select(query_bd, labels.owner_n) * passage_nd).sum(1)
    distance_r = _distance(score_n / temperature.value(score_n.dtype), batch.pairs, own, labels, config)
    coefficient_r = batch.pairs.weight_r * (batch.scale * factor * config.distill_weight)
    (distance_r * coefficient_r).sum().backward()
    return distance_r.detach()


def _distance(logit_n: Tensor, pairs: Pairs, own: Own, labels: Labels, config: LossConfig) -> Tensor:
    """Compare the student's logits with the teacher's, over what the teacher has scored of each query's passages.

    A query with nothing left to compare gives 0.
    """
    assert labels.teacher_n is not None, "check_teacher comes first"
    teacher_n = labels.teacher_n.to(logit_n.dtype) / config.distill_temperature
    scored_bC = own.spread(teacher_n).isfinite() & own.present_bC
    teacher_n = teacher_n.nan_to_num()
    if config.distill == "kl":
        divergence_b = _divergence(own.spread(logit_n), own.spread(teacher_n), scored_bC)
        return select(divergence_b[:, None], pairs.owner_r).squeeze(1)
    positive_bC = own.spread(labels.positive_n.to(logit_n.dtype)) > 0
    negative_rC = (scored_bC & ~positive_bC)[pairs.owner_r]
    excess_n = logit_n - teacher_n
    # (student's margin − teacher's margin) is the difference of what student and teacher differ by.
    above_r = select(excess_n[:, None], pairs.place_r)
    error_rC = (above_r - select(own.spread(excess_n), pairs.owner_r)).masked_fill(~negative_rC, 0)
    return error_rC.square().sum(1) / negative_rC.sum(1).clamp(min=1)


def _divergence(logit_bC: Tensor, teacher_bC: Tensor, scored_bC: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of each row over its scored places; 0 where fewer than two are."""
    # A row with no place would be all −inf; it is computed over all places and then dropped.
    out_bC = ~scored_bC & scored_bC.any(1, keepdim=True)
    student_bC = logit_bC.masked_fill(out_bC, -torch.inf).log_softmax(1)
    log_teacher_bC = teacher_bC.masked_fill(out_bC, -torch.inf).log_softmax(1)
    distance_bC = log_teacher_bC.exp() * (log_teacher_bC - student_bC)
    return distance_bC.masked_fill(~scored_bC, 0).sum(1)
