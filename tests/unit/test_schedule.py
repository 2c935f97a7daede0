"""The learning rate, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from data_shards.errors import UserError
from train.schedule import OptimizerConfig, learning_rate


def rates(total: int, **settings: Any) -> list[float]:
    config = OptimizerConfig(**{"learning_rate": 1.0, **settings})
    return [learning_rate(config, step, total) for step in range(total)]


def test_the_warm_up_rises_from_above_zero() -> None:
    """Two tenths of ten steps: a third, two thirds, then the whole."""
    assert rates(10, warmup_share=0.2, schedule="constant") == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


def test_a_warm_up_that_ends_between_two_steps() -> None:
    assert rates(10, warmup_share=0.25, schedule="constant")[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_linear_by_hand() -> None:
    assert rates(4, warmup_share=0.0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(4, warmup_share=0.0, schedule="linear", final_share=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_by_hand() -> None:
    """(1 + cos(pi k / 4)) / 2 for k = 0 to 3."""
    half = 2**-0.5
    assert rates(4, warmup_share=0.0) == pytest.approx([1.0, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_without_warm_up_the_first_step_has_the_highest_rate() -> None:
    assert rates(3, warmup_share=0.0, schedule="constant", learning_rate=2e-5) == [2e-5] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer\.learning_rate must be positive, came 0\.0"),
        ({"learning_rate": float("nan")}, r"optimizer\.learning_rate must be positive, came nan"),
        ({"learning_rate": float("inf")}, r"optimizer\.learning_rate must be positive, came inf"),
        ({"warmup_share": 1.5}, r"optimizer\.warmup_share is a share between 0 and 1, came 1\.5"),
        ({"final_share": -0.1}, r"optimizer\.final_share is a share between 0 and 1, came -0\.1"),
        ({"weight_decay": -1.0}, "weight_decay and optimizer.max_grad_norm must be 0 or more"),
        ({"max_grad_norm": -1.0}, "weight_decay and optimizer.max_grad_norm must be 0 or more"),
    ],
)
def test_rates_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**settings)  # type: ignore[arg-type]
