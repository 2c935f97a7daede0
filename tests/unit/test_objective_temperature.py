"""The learned temperature: its gradient, its update, its bounds, and its state."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from tests.unit.objective_reference import problem, reference
from train.objective import LossConfig, Objective

CPU = torch.device("cpu")


def config(**options: Any) -> LossConfig:
    return LossConfig(**{"temperature": 0.2, "learn_temperature": True, **options})


def advance(objective: Objective, seed: int) -> None:
    made = problem(seed=seed)
    objective(made.query_QD, made.passage_ND, made.whole())


def by_reference(loss: LossConfig, seeds: list[list[int]], learning_rate: float) -> float:
    """Return the temperature after a step for each list of batches, by torch's own Adam on reference gradients."""
    log_scale = torch.tensor(1 / loss.temperature, dtype=torch.float64).log().requires_grad_()
    adam = torch.optim.Adam([log_scale], lr=learning_rate)
    for batches in seeds:
        gradients = [reference(problem(seed=s), loss, log_scale=log_scale.item())[1]["log_scale"] for s in batches]
        log_scale.grad = torch.stack(gradients).mean()
        adam.step()
    return math.exp(-log_scale.item())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_scores": 40},
        {"symmetric": True, "query_query": True, "passage_passage": True},
        {"matryoshka_dims": (3,), "distill": "kl"},
        {"kind": "triplet", "distill": "margin_mse"},
    ],
    ids=["plain", "blocks", "gte", "matryoshka and kl", "margin mse"],
)
def test_it_follows_the_gradient_of_all_terms(options: dict[str, Any]) -> None:
    """Three steps, since a first step of Adam would look at the gradient's sign alone."""
    objective = Objective(config(**options), device=CPU)
    for seed in (1, 2, 3):
        advance(objective, seed)
        objective.step(0.05)
    assert objective.temperature == pytest.approx(by_reference(config(**options), [[1], [2], [3]], 0.05), rel=1e-10)
    assert objective.temperature != pytest.approx(0.2, rel=1e-3)


def test_calls_between_steps_are_averaged() -> None:
    objective = Objective(config(), device=CPU)
    for batches in ([1, 2], [3, 4, 5]):
        for seed in batches:
            advance(objective, seed)
        objective.step(0.05)
    assert objective.temperature == pytest.approx(by_reference(config(), [[1, 2], [3, 4, 5]], 0.05), rel=1e-10)


def test_a_step_without_a_call_does_nothing() -> None:
    objective = Objective(config(), device=CPU)
    advance(objective, 1)
    objective.step(0.05)
    before = objective.state()
    objective.step(0.05)
    assert objective.state() == before


def test_it_stays_within_its_bounds() -> None:
    objective = Objective(config(temperature_min=0.19, temperature_max=0.21), device=CPU)
    for _ in range(3):
        advance(objective, 1)
        objective.step(1.0)
    assert objective.temperature in (pytest.approx(0.19), pytest.approx(0.21))


def test_it_goes_on_from_its_state_bit_by_bit() -> None:
    whole, first, second = (Objective(config(), device=CPU) for _ in range(3))
    for seed in (1, 2, 3, 4):
        advance(whole, seed)
        whole.step(0.01)
    for seed in (1, 2):
        advance(first, seed)
        first.step(0.01)
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for seed in (3, 4):
        advance(second, seed)
        second.step(0.01)
    assert second.state() == whole.state()


def test_a_state_before_the_first_step_takes_back_what_came_later() -> None:
    objective = Objective(config(), device=CPU)
    before = objective.state()
    advance(objective, 1)
    objective.step(0.1)
    objective.load(before)
    assert objective.state() == before


def test_one_that_is_not_learned_stays_and_has_no_state() -> None:
    objective = Objective(config(learn_temperature=False), device=CPU)
    advance(objective, 1)
    objective.step(0.1)
    assert (objective.temperature, objective.state()) == (0.2, {})
    objective.load({})
