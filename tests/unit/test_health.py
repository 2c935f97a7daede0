"""When a run ends because it is no longer worth going on with."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from data_shards.errors import UserError
from train.health import Health, HealthConfig, TrainingDivergedError, check_step

CONFIG = HealthConfig(spike_factor=2.0, max_skips=3)


def check(health: Health, config: HealthConfig = CONFIG, **changes: Any) -> Health:
    values = {
        "step": 20,
        "settled_steps": 20,
        "loss": 1.0,
        "grad_norm": 1.0,
        "skipped": False,
        "checkpoint": "step-7",
    }
    return check_step(health, config, **{**values, **changes})


def after(losses: list[float], config: HealthConfig = CONFIG) -> Health:
    health = Health()
    for step, loss in enumerate(losses):
        health = check(health, config, step=step, settled_steps=step, loss=loss)
    return health


def test_the_ceiling_is_the_highest_of_the_first_ten_losses() -> None:
    assert after([3.0, 5.0, 4.0]).loss_ceiling == 5.0
    assert after([1.0] * 9 + [6.0] + [7.0]).loss_ceiling == 6.0, "the eleventh no longer counts"


def test_a_loss_just_at_the_limit_is_no_spike_and_above_it_ends_the_run() -> None:
    health = after([3.0, 4.0] + [1.0] * 8)
    assert check(health, loss=8.0) == health
    message = (
        r"^the loss of step 20 is 8\.001, above health\.spike_factor = 2 times 4, the highest of the run's first 10 "
        r"steps; the newest checkpoint from before it is step-7\. Lower optimizer\.learning_rate, or raise health\."
    )
    with pytest.raises(TrainingDivergedError, match=message):
        check(health, loss=8.001)


def test_the_first_steps_may_rise_as_they_like() -> None:
    assert after([0.1, 50.0, 3.0]).loss_ceiling == 50.0


def test_the_first_steps_of_a_negatives_version_raise_the_ceiling() -> None:
    """An encoder that knows its pairs: 0.05 on in-batch negatives, 0.9 when the first hard ones come."""
    health = check(after([0.05] * 20), step=20, settled_steps=0, loss=0.9)
    assert check(health, step=30, settled_steps=10, loss=1.5).loss_ceiling == 0.9
    with pytest.raises(TrainingDivergedError, match="above health.spike_factor"):
        check(health, step=30, settled_steps=10, loss=1.9)


def test_a_spike_is_not_looked_for_when_turned_off_or_with_no_start_to_measure_by() -> None:
    check(after([1.0] * 10, off := HealthConfig(spike_factor=0)), off, loss=1e9)
    check(Health(), loss=1e9)


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize(("name", "field"), [("loss", "loss"), ("gradient's norm", "grad_norm")])
def test_what_is_no_number_ends_the_run(name: str, field: str, value: float) -> None:
    message = rf"^the {name} of step 20 is {value}; the newest checkpoint from before it is step-7\. Lower optimizer"
    with pytest.raises(TrainingDivergedError, match=message):
        check(Health(), **{field: value})
    with pytest.raises(TrainingDivergedError, match="no checkpoint is from before it"):
        check(Health(), **{field: value}, checkpoint="")


def test_a_step_that_overflowed_is_skipped_unless_too_many_come_in_a_row() -> None:
    start = after([1.0] * 10)
    health = check(check(start, skipped=True, grad_norm=inf), skipped=True, grad_norm=inf, loss=nan)
    assert health == Health(loss_ceiling=1.0, skips=2)
    assert check(health) == start, "one sound step and the count begins anew"
    message = (
        r"^the gradients of 3 steps in a row, up to step 20, overflowed in float16; .*step-7\. Set engine\.precision"
    )
    with pytest.raises(TrainingDivergedError, match=message):
        check(health, skipped=True, grad_norm=inf)


def test_what_cannot_be_meant_is_refused() -> None:
    for factor in (-1.0, 0.5, 1.0, nan, inf):
        with pytest.raises(UserError, match=r"health\.spike_factor must be above 1, or 0 to turn it off; came"):
            HealthConfig(spike_factor=factor)
    with pytest.raises(UserError, match=r"health\.max_skips must be at least 1, came 0"):
        HealthConfig(max_skips=0)
