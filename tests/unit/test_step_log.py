"""What a step's log line is made of: sums of parts, turned into means by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.unit.objective_reference import problem
from train.batches import StepBatch, Texts
from train.objective import LossConfig, LossOutput, Objective
from train.objective.details import BINS
from train.step_log import StepSums, add_up

CPU = torch.device("cpu")


def output(**sums: Any) -> LossOutput:
    nothing = torch.zeros(0, 2)
    made = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in sums.items()}
    return LossOutput(loss=torch.tensor(9.0), query_grad_bD=nothing, passage_grad_nD=nothing, sums=made)


def batch(*, skipped: int = 0, tokens: int = 0, padded_tokens: int = 0) -> StepBatch:
    empty = Texts(chunks=[], places=torch.zeros(0, dtype=torch.int64))
    labels = problem().whole()
    return StepBatch(
        step=0,
        queries=empty,
        passages=empty,
        labels=labels,
        skipped=skipped,
        tokens=tokens,
        padded_tokens=padded_tokens,
    )


def test_parts_are_added_up() -> None:
    first = output(queries=3, loss=6.0, accuracy=2, masked=1, hard_loss=0, hard_queries=0)
    second = output(queries=1, loss=1.0, accuracy=1, masked=4, hard_loss=0, hard_queries=0)
    batches = [batch(skipped=1, tokens=10, padded_tokens=12), batch(skipped=2, tokens=5, padded_tokens=9)]
    sums = add_up([first, second], batches, asked=False)
    assert (sums.queries, sums.loss) == (4, 7 / 4)
    assert (sums.skipped, sums.tokens, sums.padded_tokens, sums.asked) == (3, 15, 21, False)
    assert sums.values() == {"loss": 7 / 4, "accuracy": 3 / 4, "masked": 5}
    assert sums.hard_loss is None
    assert add_up([first], [batch()], asked=True).asked


def test_what_ranks_say_and_the_loss_over_hard_negatives_by_hand() -> None:
    """The mean is over the queries that have hard negatives, not over all."""
    first = output(queries=3, loss=6.0, masked=0, hard_loss=1.5, hard_queries=2)
    second = output(queries=3, loss=6.0, masked=0, hard_loss=0.5, hard_queries=1)
    sums = add_up([first, second], [batch()], asked=False, say=(4.0, 0.0, 1.0))
    assert sums.said == [4, 0, 1]
    assert sums.hard_loss == pytest.approx(2 / 3)
    assert sums.values()["hard_loss"] == pytest.approx(2 / 3)


def test_details_by_hand() -> None:
    counts = [0.0] * BINS
    counts[0], counts[-1] = 2.0, 5.0
    sums = add_up(
        [
            output(
                queries=4,
                loss=4.0,
                masked=0,
                hard_loss=0.0,
                hard_queries=0,
                alignment=3.0,
                positives=6,
                uniformity=0.5,
                uniformity_pairs=10,
                temperature=0.2,
                positive_score_histogram=counts,
                negative_score_histogram=[0.0] * BINS,
            )
        ],
        [batch()],
        asked=False,
    )
    values = sums.values()
    assert values["alignment"] == 0.5
    assert values["uniformity"] == pytest.approx(math.log(0.05))
    assert values["temperature"] == pytest.approx(0.05)
    histogram = values["positive_scores"]["histogram"]
    assert histogram["counts"] == counts
    assert histogram["edges"] == [-1, 1]
    assert all(isinstance(count, int) for count in histogram["counts"]), "numbers of texts"
    assert sum(values["negative_scores"]["histogram"]["counts"]) == 0


def test_one_passage_has_no_uniformity() -> None:
    sums = {
        "queries": 1,
        "loss": 1.0,
        "masked": 0,
        "alignment": 0.5,
        "positives": 1,
        "hard_loss": 0,
        "hard_queries": 0,
    }
    bare = {"uniformity": 0.0, "uniformity_pairs": 0}
    histograms = {f"{side}_score_histogram": [0.0] * BINS for side in ("positive", "negative")}
    assert "uniformity" not in add_up([output(**sums, **bare, **histograms)], [batch()], asked=False).values()


@pytest.mark.parametrize("details", [False, True])
def test_what_the_objective_gives_can_be_shown(details: bool) -> None:
    """Two parts of one step, and every number of the log line is finite."""
    made = problem()
    objective = Objective(LossConfig(distill="kl", base_weight=0.1), device=CPU)
    outputs = [
        objective(
            made.query_QD,
            made.passage_ND,
            made.whole(),
            base_query_bD=made.base_query_QD,
            base_passage_nD=made.base_passage_ND,
            details=details,
        )
        for _ in range(2)
    ]
    sums = add_up(outputs, [batch(tokens=3, padded_tokens=4)] * 2, asked=False)
    assert isinstance(sums, StepSums)
    assert sums.queries == 2 * len(made.query_QD)
    values = sums.values()
    wanted = {
        "hard_loss",
        "loss",
        "accuracy",
        "positive_score",
        "hardest_negative_score",
        "distill",
        "base",
        "masked",
    }
    more = {"temperature", "alignment", "uniformity", "positive_scores", "negative_scores"}
    assert set(values) == (wanted | more if details else wanted)
    assert all(math.isfinite(value) for value in values.values() if isinstance(value, float))
    assert values["loss"] == pytest.approx(float(outputs[0].sums["loss"]) / len(made.query_QD))
    if details:
        assert values["temperature"] == pytest.approx(0.05)
        total = sum(values["positive_scores"]["histogram"]["counts"])
        assert total == 2 * sum(text.positive for text in made.texts)
