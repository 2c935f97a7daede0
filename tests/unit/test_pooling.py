"""Pooling by hand, with padding on either side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encoder.pooling import Pooling, pool

# Three texts of three places, two dimensions: whole, padded on the right, padded on the left. Padding holds 90s.
TOKENS = torch.tensor(
    [
        [[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]],
        [[1.0, 2.0], [3.0, 4.0], [90.0, 90.0]],
        [[90.0, 90.0], [5.0, 6.0], [7.0, 8.0]],
    ]
)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1]])
WANTED = {
    "mean": [[4.0, 2.0], [2.0, 3.0], [6.0, 7.0]],
    "cls": [[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]],
    "last": [[8.0, 0.0], [3.0, 4.0], [7.0, 8.0]],
    # (1·1 + 2·3 + 3·8) / 6, and so on: the first token of a left-padded text weighs 1 as well.
    "weighted_mean": [[31 / 6, 10 / 6], [7 / 3, 10 / 3], [19 / 3, 22 / 3]],
}


@pytest.mark.parametrize("how", ["mean", "cls", "last", "weighted_mean"])
@pytest.mark.parametrize(
    ("dtype", "pooled"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=["bfloat16", "float32", "float64"],
)
def test_pooling_by_hand(how: Pooling, dtype: torch.dtype, pooled: torch.dtype) -> None:
    found = pool(TOKENS.to(dtype), MASK, how)
    assert found.dtype == pooled
    assert found.tolist() == [pytest.approx(row, rel=1e-6) for row in WANTED[how]]


def test_bfloat16_tokens_are_summed_in_float32() -> None:
    """In bfloat16, whose numbers above 256 are two apart, 300 ones would never add up to 300."""
    tokens, mask = torch.ones((1, 300, 1), dtype=torch.bfloat16), torch.ones((1, 300), dtype=torch.int64)
    tokens[0, 0, 0] = 0
    assert pool(tokens, mask, "mean").item() == pytest.approx(299 / 300, abs=1e-6)


@pytest.mark.parametrize("how", ["mean", "cls", "last", "weighted_mean"])
def test_padding_gets_no_gradient(how: Pooling) -> None:
    tokens = TOKENS.clone().requires_grad_(True)
    pool(tokens, MASK, how).sum().backward()  # type: ignore[no-untyped-call]
    assert isinstance(tokens.grad, Tensor)
    assert tokens.grad[MASK == 0].abs().max() == 0
    assert tokens.grad[MASK == 1].abs().max() > 0


def test_a_row_of_padding_alone_does_not_divide_by_zero() -> None:
    for how in ("mean", "weighted_mean"):
        assert pool(TOKENS, torch.zeros_like(MASK), how).tolist() == [[0.0, 0.0]] * 3
