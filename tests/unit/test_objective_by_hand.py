"""InfoNCE by hand, which passages are left out, and what is logged."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.errors import UserError
from train.objective import Labels, LossConfig, LossOutput, Objective
from train.objective.details import BINS

CPU = torch.device("cpu")
# Two queries, three passages: the two positives, then a hard negative of q0. Scores by hand:
#        p0   p1   n
#   q0   1    0.6  0
#   q1   0    0.8  1
QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
PASSAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
# At temperature 0.5 the logits are twice the scores.
Q0 = log(exp(2) + exp(1.2) + exp(0)) - 2
Q1 = log(exp(0) + exp(1.6) + exp(2)) - 1.6


def labels(**changes: Any) -> Labels:
    """Return labels under which all texts differ."""
    values: dict[str, Any] = {
        "query_hash_b": [100, 101],
        "positive_hash_bK": [[10], [11]],
        "passage_hash_n": [10, 11, 12],
        "owner_n": [0, 1, 0],
        "positive_n": [True, True, False],
        "weight_n": [1.0, 1.0, 1.0],
    }
    return Labels(**{name: torch.tensor(value) for name, value in {**values, **changes}.items()})


def run(options: dict[str, Any] | None = None, *, details: bool = False, **changes: Any) -> LossOutput:
    objective = Objective(LossConfig(**{"temperature": 0.5, **(options or {})}), device=CPU)
    return objective(QUERIES, PASSAGES, labels(**changes), details=details)


def loss(options: dict[str, Any] | None = None, **changes: Any) -> float:
    return run(options, **changes).loss.item()


def sums(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, float]:
    return {name: value.item() for name, value in run(options, **changes).sums.items() if value.ndim == 0}


def test_the_loss_by_hand() -> None:
    assert loss() == pytest.approx((Q0 + Q1) / 2, abs=1e-12)


def test_temperature_divides_the_scores() -> None:
    by_hand = log(exp(1) + exp(0.6) + exp(0)) - 1 + log(exp(0) + exp(0.8) + exp(1)) - 0.8
    assert loss({"temperature": 1.0}) == pytest.approx(by_hand / 2, abs=1e-12)


def test_weights_make_a_weighted_mean_and_negatives_have_none() -> None:
    assert loss(weight_n=[3.0, 1.0, 50.0]) == pytest.approx((3 * Q0 + Q1) / 4, abs=1e-12)
    assert loss(weight_n=[0.0, 2.0, 50.0]) == pytest.approx(Q1, abs=1e-12)


def test_negatives_may_stand_before_positives() -> None:
    """Labels off when negatives are interleaved: the order of the passages means nothing."""
    objective = Objective(LossConfig(temperature=0.5), device=CPU)
    turned = [2, 1, 0]
    mixed = labels(passage_hash_n=[12, 11, 10], owner_n=[0, 1, 0], positive_n=[False, True, True])
    assert objective(QUERIES, PASSAGES[turned], mixed).loss.item() == pytest.approx((Q0 + Q1) / 2, abs=1e-12)


def test_the_sums_that_are_logged_by_hand() -> None:
    """q0 finds its positive (1 against 0.6); q1 finds the hard negative first (0.8 against 1)."""
    by_hand = {
        "loss": Q0 + Q1,
        "accuracy": 1,
        "positive_score": 1 + 0.8,
        "hardest_negative_score": 0.6 + 1,
        "masked": 0,
        "queries": 2,
        "hard_loss": log(1 + exp(-2)),
        "hard_queries": 1,
    }
    assert sums() == pytest.approx(by_hand, abs=1e-12)


def test_vectors_that_have_collapsed_into_one_are_not_accurate() -> None:
    same = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    output = Objective(LossConfig(), device=CPU)(same[:2], same, labels())
    assert output.sums["accuracy"].item() == 0


def test_several_positives_of_a_query_count_each_by_its_weight() -> None:
    """q0 has p0 and p1, of relevance 3 and 1; neither sees the other. q1 has n alone."""
    changes = {
        "owner_n": [0, 0, 1],
        "positive_n": [True, True, True],
        "positive_hash_bK": [[10, 11], [12, 12]],
        "weight_n": [3.0, 1.0, 2.0],
    }
    first, second = log(exp(2) + exp(0)) - 2, log(exp(1.2) + exp(0)) - 1.2
    other = log(exp(2) + exp(1.6) + exp(0)) - 2
    assert loss(**changes) == pytest.approx((3 * first + second + 2 * other) / 6, abs=1e-12)
    # The log counts queries, whatever their number of positives and their weight.
    found = sums(**changes)
    assert found["loss"] == pytest.approx((first + second) / 2 + other, abs=1e-12)
    assert (found["queries"], found["accuracy"], found["masked"]) == (2, 2, 1)
    assert found["positive_score"] == pytest.approx((1 + 0.6) / 2 + 1, abs=1e-12)


def test_a_duplicate_of_the_positive_is_left_out() -> None:
    """The hard negative has the text of q1's positive: q1 does not see it, q0 still does."""
    without = log(exp(0) + exp(1.6)) - 1.6
    assert loss(passage_hash_n=[10, 11, 11]) == pytest.approx((Q0 + without) / 2, abs=1e-12)
    assert sums(passage_hash_n=[10, 11, 11])["masked"] == 1


def test_another_positive_of_the_query_is_left_out() -> None:
    """q0 has a second positive, which is q1's positive here; the row of q1 is filled up with its own."""
    without = log(exp(2) + exp(0)) - 2
    assert loss(positive_hash_bK=[[10, 11], [11, 11]]) == pytest.approx((without + Q1) / 2, abs=1e-12)


def test_the_positive_of_an_equal_query_is_left_out() -> None:
    """Both ask the same: neither sees the other's positive. The hard negative is nobody's positive."""
    q0, q1 = log(exp(2) + exp(0)) - 2, log(exp(1.6) + exp(2)) - 1.6
    assert loss(query_hash_b=[100, 100]) == pytest.approx((q0 + q1) / 2, abs=1e-12)
    assert sums(query_hash_b=[100, 100])["masked"] == 2


def test_masking_can_be_turned_off() -> None:
    changes: dict[str, Any] = {"query_hash_b": [100, 100], "passage_hash_n": [10, 11, 11]}
    assert loss({"mask_duplicates": False}, **changes) == pytest.approx((Q0 + Q1) / 2, abs=1e-12)


def test_the_hardest_negative_is_never_a_masked_one() -> None:
    assert sums(passage_hash_n=[10, 11, 11])["hardest_negative_score"] == pytest.approx(0.6 + 0, abs=1e-12)


def test_a_negative_above_the_margin_is_left_out() -> None:
    """The hard negative scores 1 with q1, whose positive scores 0.8."""
    without = log(exp(0) + exp(1.6)) - 1.6
    assert loss({"mask_margin": 0.19}) == pytest.approx((Q0 + without) / 2, abs=1e-12)
    assert loss({"mask_margin": 0.21}) == pytest.approx((Q0 + Q1) / 2, abs=1e-12)
    assert sums({"mask_margin": 0.19})["masked"] == 1


def test_an_own_negative_counts_only_for_its_owner() -> None:
    """The hard negative came with q0; it is no false negative of q1, so it is not counted as masked."""
    without = log(exp(0) + exp(1.6)) - 1.6
    assert loss({"hard_negatives": "own"}) == pytest.approx((Q0 + without) / 2, abs=1e-12)
    assert sums({"hard_negatives": "own"})["masked"] == 0


def test_symmetric_by_hand() -> None:
    """From p0 to the queries: 1 and 0; from p1: 0.6 and 0.8."""
    back = log(exp(2) + exp(0)) - 2 + log(exp(1.2) + exp(1.6)) - 1.6
    assert loss({"symmetric": True}) == pytest.approx((Q0 + Q1 + back) / 4, abs=1e-12)


def test_queries_and_passages_beside_by_hand() -> None:
    """The queries score 0 with each other; p0 scores 0.6 with p1 and 0 with n; p1 scores 0.8 with n."""
    q0, q1 = log(exp(Q0 + 2) + exp(0)) - 2, log(exp(Q1 + 1.6) + exp(0)) - 1.6
    assert loss({"query_query": True}) == pytest.approx((q0 + q1) / 2, abs=1e-12)
    q0, q1 = log(exp(Q0 + 2) + exp(1.2) + exp(0)) - 2, log(exp(Q1 + 1.6) + exp(1.2) + exp(1.6)) - 1.6
    assert loss({"passage_passage": True}) == pytest.approx((q0 + q1) / 2, abs=1e-12)


def test_triplet_by_hand() -> None:
    """q0 has n, at 0 − 1 + 0.5 < 0; q1 has none and takes n, the hardest of the batch: 1 − 0.8 + 0.5."""
    options = {"kind": "triplet", "triplet_margin": 0.5}
    assert loss(options) == pytest.approx(0.7 / 2, abs=1e-12)
    assert loss({**options, "hard_negatives": "own"}) == pytest.approx(0, abs=1e-12)


def test_matryoshka_by_hand() -> None:
    """Of one dimension, normalised again, q0 is 1, q1 is 0; p0 is 1, p1 is 1, n is 0."""
    first = (log(exp(2) + exp(2) + 1) - 2 + log(3)) / 2
    options = {"matryoshka_dims": (1,), "matryoshka_weights": (0.25,)}
    assert loss(options) == pytest.approx((Q0 + Q1) / 2 + 0.25 * first, abs=1e-12)


def test_kl_by_hand() -> None:
    """q0's own: student's logits 2 and 0, teacher's scores 3 and 1 at temperature 2; q1 has one passage alone."""
    student, teacher = [exp(2), exp(0)], [exp(1.5), exp(0.5)]
    shares = [(t / sum(teacher), s / sum(student)) for t, s in zip(teacher, student, strict=True)]
    divergence = sum(t * log(t / s) for t, s in shares)
    options = {"distill": "kl", "distill_temperature": 2.0, "distill_weight": 10.0}
    found = sums(options, teacher_n=[3.0, 7.0, 1.0])
    assert found["distill"] == pytest.approx(divergence, abs=1e-12)
    assert found["loss"] == pytest.approx(Q0 + Q1 + 10 * divergence, abs=1e-12)


def test_margin_mse_by_hand() -> None:
    """The student's margin is 2 − 0, the teacher's 3 − 0.5."""
    assert sums({"distill": "margin_mse"}, teacher_n=[3.0, 7.0, 0.5])["distill"] == pytest.approx(0.25, abs=1e-12)


def test_a_negative_without_teacher_is_left_out_of_the_distillation() -> None:
    more = {"owner_n": [0, 0, 0], "positive_n": [True, False, False], "query_hash_b": [100, 101]}
    nan = float("nan")
    found = sums({"distill": "margin_mse"}, teacher_n=[3.0, nan, 0.5], **more)
    assert found["distill"] == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize(
    ("teacher", "lacking"),
    [(None, 2), ([float("nan"), 1.0, 1.0], 1), ([1.0, float("nan"), 1.0], 1), ([1.0, 1.0, float("nan")], 1)],
    ids=["none", "a positive's", "another's", "the only negative's"],
)
@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_a_teacher_that_is_missing_is_refused(kind: str, teacher: list[float] | None, lacking: int) -> None:
    changes = {} if teacher is None else {"teacher_n": teacher}
    fix = rf'{lacking} of 2 queries.*mine or import with teacher scores, or set loss\.distill = "off"'
    with pytest.raises(UserError, match=fix):
        run({"distill": kind}, **changes)


def test_a_query_without_negatives_needs_no_more_than_its_positive() -> None:
    assert sums({"distill": "kl"}, teacher_n=[1.0, 1.0, 2.0])["distill"] > 0


def test_base_by_hand() -> None:
    """q0 is off by 2, its passages by 0 and 1: (2 + 0.5) / 2. q1 and p1 are where they were."""
    objective = Objective(LossConfig(temperature=0.5, base_weight=0.1), device=CPU)
    base_queries = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    base_passages = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
    output = objective(QUERIES, PASSAGES, labels(), base_query_bD=base_queries, base_passage_nD=base_passages)
    assert output.sums["base"].item() == pytest.approx(1.25, abs=1e-12)
    assert output.loss.item() == pytest.approx((Q0 + Q1 + 0.1 * 1.25) / 2, abs=1e-12)


def test_with_every_negative_masked_nothing_is_infinite() -> None:
    options = {"query_query": True, "passage_passage": True, "symmetric": True}
    same = {"passage_hash_n": [10, 10, 10], "positive_hash_bK": [[10], [10]], "query_hash_b": [100, 100]}
    output = run(options, **same)
    assert output.loss.item() == 0
    assert output.sums["hardest_negative_score"].item() == 0
    assert output.query_grad_bD.abs().max() == 0
    assert output.passage_grad_nD.abs().max() == 0


def test_masked_passages_get_no_gradient_and_the_others_get_the_right_one() -> None:
    """D loss / d n = sum over queries of softmax(n) / temperature / queries, times the query."""
    share = exp(0) / (exp(2) + exp(1.2) + exp(0))
    gradient: Tensor = run(passage_hash_n=[10, 11, 11]).passage_grad_nD
    assert gradient[2].tolist() == pytest.approx([share / 0.5 / 2, 0], abs=1e-12)


def test_what_a_logged_step_adds_by_hand() -> None:
    """The squared distances: q0 to p0 is 0, q1 to p1 is 0.4; among passages 0.8 (p0, p1), 2 (p0, n), 0.4 (p1, n)."""
    found = run(details=True).sums
    assert found["positive_score_histogram"].nonzero().squeeze(1).tolist() == [36, 39]
    assert found["negative_score_histogram"].nonzero().squeeze(1).tolist() == [20]
    assert found["alignment"].item() == pytest.approx(0.4, abs=1e-12)
    assert found["positives"].item() == 2
    assert found["uniformity"].item() == pytest.approx(exp(-1.6) + exp(-4) + exp(-0.8), abs=1e-12)
    assert found["uniformity_pairs"].item() == 3
    assert found["temperature"].item() / found["queries"].item() == pytest.approx(0.5)


def test_vectors_that_are_no_numbers_are_in_no_histogram_and_leave_the_end_to_the_loss() -> None:
    broken = torch.full_like(QUERIES, torch.nan)
    found = Objective(LossConfig(), device=CPU)(broken, PASSAGES, labels(), details=True)
    assert found.loss.isnan()
    assert found.sums["loss"].isnan()
    assert found.sums["positive_score_histogram"].tolist() == [0] * BINS


def test_uniformity_looks_at_a_bounded_number_of_passages() -> None:
    many = torch.nn.functional.normalize(torch.randn(1100, 4, dtype=torch.float64), dim=1)
    hashes = torch.arange(1100)
    whose = Labels(
        query_hash_b=hashes,
        positive_hash_bK=hashes[:, None],
        passage_hash_n=hashes,
        owner_n=hashes,
        positive_n=hashes >= 0,
        weight_n=torch.ones(1100),
    )
    found = Objective(LossConfig(), device=CPU)(many, many, whose, details=True).sums
    assert found["uniformity_pairs"].item() == 367 * 366 / 2
    assert found["positive_score_histogram"].sum().item() == 1100


def test_the_loss_over_hard_negatives_by_hand() -> None:
    """Of q0 alone: its positive scores 1, its negative 0, and at temperature 0.5 the gap is -2."""
    found = sums()
    assert found["hard_queries"] == 1
    assert found["hard_loss"] == pytest.approx(log(1 + exp(-2)), abs=1e-12)


def test_of_several_positives_the_farthest_and_every_hard_negative_count() -> None:
    """q0 has the positives p0 (1) and p1 (0.6) and its negative twice over, once as q1's own, above its positive."""
    found = sums(owner_n=[0, 0, 0], positive_n=[True, True, False])
    assert (found["hard_queries"], found["hard_loss"]) == (1, pytest.approx(log(1 + exp(-1.2)), abs=1e-12))
    beyond = sums(owner_n=[0, 1, 1])
    assert (beyond["hard_queries"], beyond["hard_loss"]) == (1, pytest.approx(log(1 + exp(0.4)), abs=1e-12))


def test_without_hard_negatives_there_is_no_loss_over_them() -> None:
    found = sums(positive_n=[True, True, True])
    assert (found["hard_queries"], found["hard_loss"]) == (0, 0)
