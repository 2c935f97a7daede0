"""Invariant 2, at the objective: on any number of ranks, loss and gradients equal one process on the whole batch.

The gradients that a rank holds are the global ones times the number of ranks, since the engine averages. Each known
way to get this wrong fails here: W times too large or small, remote passages detached, the temperature lost, labels
off when negatives are interleaved. The tolerance is what the order of sums leaves in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.errors import UserError
from tests.distributed.ranks import run_ranks
from tests.unit.objective_reference import Problem, problem, reference
from train.collectives import _reduce_scatter, gather_counted, gather_numbers, rank, sum_counted, world_size
from train.objective import LossConfig, Objective

CPU = torch.device("cpu")
# Where each rank's queries begin: uneven, and of four ranks the third has none.
SPLITS = {1: [0, 8], 2: [0, 3, 8], 4: [0, 1, 4, 4, 8]}
GTE = {"symmetric": True, "query_query": True, "passage_passage": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "unmasked": {"mask_duplicates": False},
    "margin": {"mask_margin": 0.05},
    "own": {"hard_negatives": "own"},
    "symmetric": {"symmetric": True},
    "query query": {"query_query": True},
    "passage passage": {"passage_passage": True, "hard_negatives": "own"},
    "gte": {**GTE, "mask_margin": 0.1},
    "matryoshka": {"matryoshka_dims": (4, 2), "matryoshka_weights": (0.5, 2.0), **GTE},
    "kl": {"distill": "kl", "matryoshka_dims": (3,)},
    "margin mse": {"distill": "margin_mse", "distill_weight": 0.05},
    "triplet": {"kind": "triplet", "mask_margin": 0.1, "base_weight": 0.2},
    "all": {**GTE, "matryoshka_dims": (3,), "distill": "kl", "base_weight": 0.1, "mask_margin": 0.2},
}


def config(**options: Any) -> LossConfig:
    # A few rows to a block, so that the ranks differ in their number of blocks.
    return LossConfig(**{"temperature": 0.2, "block_scores": 70, **options})


def whole_sums(made: Problem, loss: LossConfig) -> dict[str, Tensor]:
    return Objective(loss, device=CPU)(
        made.query_QD,
        made.passage_ND,
        made.whole(),
        base_query_bD=made.base_query_QD,
        base_passage_nD=made.base_passage_ND,
        details=True,
    ).sums


def _all_options() -> dict[str, tuple[Any, ...]]:
    """Run in a rank: return loss, gradients, the places of this rank's passages and the sums, for each option."""
    dist.init_process_group("gloo")
    made, starts = problem(), SPLITS[world_size()]
    queries = range(starts[rank()], starts[rank() + 1])
    labels, places = made.part(queries)
    results = {}
    for name, options in OPTIONS.items():
        output = Objective(config(**options), device=CPU)(
            made.query_QD[queries.start : queries.stop],
            made.passage_ND[places],
            labels,
            base_query_bD=made.base_query_QD[queries.start : queries.stop],
            base_passage_nD=made.base_passage_ND[places],
            details=True,
        )
        results[name] = (float(output.loss), output.query_grad_bD, output.passage_grad_nD, places, output.sums)
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_together_equal_one_process(ranks: int, tmp_path: Path) -> None:
    made = problem()
    results = run_ranks(_all_options, ranks, tmp_path)
    for name, options in OPTIONS.items():
        loss, gradients = reference(made, config(**options))
        parts = [result[name] for result in results]
        assert sum(part[0] for part in parts) / ranks == pytest.approx(loss, rel=1e-10), name
        query_QD = torch.cat([part[1] for part in parts]) / ranks
        assert float((query_QD - gradients["query"]).abs().max()) <= 1e-10, name
        passage_ND = torch.zeros_like(made.passage_ND)
        for part in parts:
            passage_ND[part[3]] = part[2] / ranks
        assert float((passage_ND - gradients["passage"]).abs().max()) <= 1e-10, name
        wanted = whole_sums(made, config(**options))
        assert all(part[4].keys() == wanted.keys() for part in parts), name
        for key in wanted.keys() - {"uniformity", "uniformity_pairs"}:  # of pairs within a rank
            total = torch.stack([part[4][key] for part in parts]).sum(0)
            assert torch.allclose(total, wanted[key], rtol=1e-10, atol=1e-10), (name, key)


def _learn(options: dict[str, Any]) -> dict[str, float]:
    dist.init_process_group("gloo")
    objective, starts = Objective(config(**options), device=CPU), SPLITS[world_size()]
    queries = range(starts[rank()], starts[rank() + 1])
    for seed in (1, 2, 3):
        made = problem(seed=seed)
        labels, places = made.part(queries)
        objective(made.query_QD[queries.start : queries.stop], made.passage_ND[places], labels)
        objective.step(0.05)
    return objective.state()


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_temperature_is_learned_as_in_one_process(ranks: int, tmp_path: Path) -> None:
    """Three steps by torch's own Adam on the reference's gradients; all ranks stay equal bit by bit."""
    options = {**GTE, "distill": "kl", "matryoshka_dims": (3,), "learn_temperature": True}
    log_scale = torch.tensor(5.0, dtype=torch.float64).log().requires_grad_()
    adam = torch.optim.Adam([log_scale], lr=0.05)
    for seed in (1, 2, 3):
        log_scale.grad = reference(problem(seed=seed), config(**options), log_scale=log_scale.item())[1]["log_scale"]
        adam.step()
    states = run_ranks(_learn, ranks, tmp_path, options)
    assert all(state == states[0] for state in states)
    moments = adam.state[log_scale]
    assert states[0]["log_scale"] == pytest.approx(log_scale.item(), rel=1e-10)
    assert states[0]["exp_avg"] == pytest.approx(moments["exp_avg"].item(), rel=1e-10)
    assert states[0]["exp_avg_sq"] == pytest.approx(moments["exp_avg_sq"].item(), rel=1e-10)


def _without_a_score() -> str:
    """Only the last rank lacks a teacher's score; every rank must say so, and none wait for it."""
    dist.init_process_group("gloo")
    made, starts = problem(), SPLITS[world_size()]
    queries = range(starts[rank()], starts[rank() + 1])
    labels, places = made.part(queries)
    assert labels.teacher_n is not None
    if rank() == world_size() - 1:
        labels.teacher_n[labels.positive_n] = float("nan")
    try:
        Objective(config(distill="kl"), device=CPU)(
            made.query_QD[queries.start : queries.stop], made.passage_ND[places], labels
        )
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.distributed
def test_a_score_that_one_rank_lacks_is_refused_by_all(tmp_path: Path) -> None:
    messages = run_ranks(_without_a_score, 2, tmp_path)
    assert messages[0] == messages[1]
    assert "5 of 8 queries of this step lack it" in messages[0]


def _collectives() -> tuple[bool, ...]:
    dist.init_process_group("gloo")
    counts = [2, 0, 3]
    start = sum(counts[: rank()])
    every = torch.arange(10.0).view(5, 2)
    gathered = gather_counted(every[start : start + counts[rank()]], counts)
    said = every * (rank() + 1)  # 1 + 2 + 3 of each
    numbers = gather_numbers(torch.tensor([rank(), 0.5], dtype=torch.float64))
    wanted = every[start : start + counts[rank()]] * 6
    return (
        torch.equal(gathered, every),
        torch.equal(sum_counted(said.clone(), counts), wanted),
        torch.equal(_reduce_scatter(said, counts), wanted),
        numbers.tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]],
    )


@pytest.mark.distributed
def test_counted_collectives_with_uneven_and_empty_parts(tmp_path: Path) -> None:
    """NCCL reduces and scatters where gloo reduces for all; both are tried here."""
    assert all(all(result) for result in run_ranks(_collectives, 3, tmp_path))
