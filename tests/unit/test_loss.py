"""InfoNCE by hand, and which passages are left out."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.errors import UserError
from train.loss import Labels, LossConfig, info_nce

# Two queries, three passages: the two positives, then a hard negative. Scores by hand:
#        p0   p1   n
#   q0   1    0.6  0
#   q1   0    0.8  1
QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
PASSAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
HALF = LossConfig(temperature=0.5)
# At temperature 0.5 the logits are twice the scores.
Q0 = log(exp(2) + exp(1.2) + exp(0)) - 2
Q1 = log(exp(0) + exp(1.6) + exp(2)) - 1.6


def labels(**changes: Any) -> Labels:
    """Return labels under which all texts differ."""
    values: dict[str, Any] = {
        "query_hash_b": [100, 101],
        "positive_hash_bK": [[10], [11]],
        "passage_hash_n": [10, 11, 12],
        "weight_b": [1.0, 1.0],
    }
    return Labels(**{name: torch.tensor(value) for name, value in {**values, **changes}.items()})


def loss(config: LossConfig = HALF, **changes: Any) -> float:
    return info_nce(QUERIES, PASSAGES, labels(**changes), config).loss.item()


def masked(**changes: Any) -> float:
    return info_nce(QUERIES, PASSAGES, labels(**changes), HALF).sums["masked"].item()


def test_the_loss_by_hand() -> None:
    assert loss() == pytest.approx((Q0 + Q1) / 2, abs=1e-12)


def test_temperature_divides_the_scores() -> None:
    by_hand = log(exp(1) + exp(0.6) + exp(0)) - 1 + log(exp(0) + exp(0.8) + exp(1)) - 0.8
    assert loss(LossConfig(temperature=1.0)) == pytest.approx(by_hand / 2, abs=1e-12)


def test_weights_make_a_weighted_mean() -> None:
    assert loss(weight_b=[3.0, 1.0]) == pytest.approx((3 * Q0 + Q1) / 4, abs=1e-12)
    assert loss(weight_b=[0.0, 2.0]) == pytest.approx(Q1, abs=1e-12)


def test_the_sums_that_are_logged_by_hand() -> None:
    """q0 finds its positive (1 against 0.6); q1 finds the hard negative first (0.8 against 1)."""
    sums = {name: value.item() for name, value in info_nce(QUERIES, PASSAGES, labels(), HALF).sums.items()}
    assert sums == pytest.approx(
        {
            "loss": Q0 + Q1,
            "accuracy": 1,
            "positive_score": 1 + 0.8,
            "hardest_negative_score": 0.6 + 1,
            "masked": 0,
            "queries": 2,
        },
        abs=1e-12,
    )


def test_a_duplicate_of_the_positive_is_left_out() -> None:
    """The hard negative has the text of q1's positive: q1 does not see it, q0 still does."""
    without = log(exp(0) + exp(1.6)) - 1.6
    assert loss(passage_hash_n=[10, 11, 11]) == pytest.approx((Q0 + without) / 2, abs=1e-12)
    assert masked(passage_hash_n=[10, 11, 11]) == 1


def test_another_positive_of_the_query_is_left_out() -> None:
    """q0 has a second positive, which is q1's positive here; the row of q1 is filled up with its own."""
    without = log(exp(2) + exp(0)) - 2
    assert loss(positive_hash_bK=[[10, 11], [11, 11]]) == pytest.approx((without + Q1) / 2, abs=1e-12)


def test_the_positive_of_an_equal_query_is_left_out() -> None:
    """Both ask the same: neither sees the other's positive. The hard negative belongs to nobody."""
    q0, q1 = log(exp(2) + exp(0)) - 2, log(exp(1.6) + exp(2)) - 1.6
    assert loss(query_hash_b=[100, 100]) == pytest.approx((q0 + q1) / 2, abs=1e-12)
    assert masked(query_hash_b=[100, 100]) == 2


def test_a_query_whose_hash_is_zero_owns_no_hard_negative() -> None:
    """Hard negatives have no owner; the number that fills their place must not pass for one."""
    assert loss(query_hash_b=[0, 101]) == pytest.approx((Q0 + Q1) / 2, abs=1e-12)


def test_masking_can_be_turned_off() -> None:
    off = LossConfig(temperature=0.5, mask_duplicates=False)
    changes: dict[str, Any] = {"query_hash_b": [100, 100], "passage_hash_n": [10, 11, 11]}
    assert loss(off, **changes) == pytest.approx((Q0 + Q1) / 2, abs=1e-12)


def test_the_hardest_negative_is_never_a_masked_one() -> None:
    sums = info_nce(QUERIES, PASSAGES, labels(passage_hash_n=[10, 11, 11]), HALF).sums
    assert sums["hardest_negative_score"].item() == pytest.approx(0.6 + 0, abs=1e-12)


def test_with_every_negative_masked_nothing_is_infinite() -> None:
    queries = QUERIES.clone().requires_grad_(True)
    output = info_nce(queries, PASSAGES, labels(passage_hash_n=[10, 10, 10], positive_hash_bK=[[10], [10]]), HALF)
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert output.loss.item() == 0
    assert output.sums["hardest_negative_score"].item() == 0
    assert isinstance(queries.grad, Tensor)
    assert queries.grad.abs().max() == 0


def test_masked_passages_get_no_gradient_and_the_others_get_the_right_one() -> None:
    """D loss / d n = sum over queries of softmax(n) / temperature / queries, times the query."""
    passages = PASSAGES.clone().requires_grad_(True)
    info_nce(QUERIES, passages, labels(passage_hash_n=[10, 11, 11]), HALF).loss.backward()  # type: ignore[no-untyped-call]
    share = exp(0) / (exp(2) + exp(1.2) + exp(0))
    assert isinstance(passages.grad, Tensor)
    assert passages.grad[2].tolist() == pytest.approx([share / 0.5 / 2, 0], abs=1e-12)


def test_bfloat16_vectors_are_scored_in_float32() -> None:
    output = info_nce(QUERIES.bfloat16(), PASSAGES.bfloat16(), labels(), HALF)
    assert output.loss.dtype == torch.float32
    rounded = PASSAGES.bfloat16().double()
    assert output.loss.item() == pytest.approx(info_nce(QUERIES, rounded, labels(), HALF).loss.item(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=rf"loss\.temperature must be positive, came {temperature}"):
        LossConfig(temperature=temperature)
