"""Every option of the objective against a reference that looks at one pair at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.objective_reference import DIM, Problem, problem, reference
from train.dev_search import nearest_on_all_ranks
from train.objective import Labels, LossConfig, LossOutput, Objective

CPU = torch.device("cpu")
GTE = {"symmetric": True, "query_query": True, "passage_passage": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "unmasked": {"mask_duplicates": False},
    "margin": {"mask_margin": 0.05},
    "margin below": {"mask_margin": -0.2, "mask_duplicates": False},
    "own": {"hard_negatives": "own"},
    "symmetric": {"symmetric": True},
    "symmetric unmasked": {"symmetric": True, "mask_duplicates": False},
    "query query": {"query_query": True},
    "passage passage": {"passage_passage": True},
    "gte": GTE,
    "gte own margin": {**GTE, "hard_negatives": "own", "mask_margin": 0.1},
    "gte unmasked": {**GTE, "mask_duplicates": False},
    "matryoshka": {"matryoshka_dims": (4, 2)},
    "matryoshka weights": {"matryoshka_dims": (2, 6), "matryoshka_weights": (0.3, 2.0), "mask_margin": 0.1},
    "kl": {"distill": "kl", "distill_weight": 0.7, "distill_temperature": 2.0},
    "margin mse": {"distill": "margin_mse", "distill_weight": 0.01, "distill_temperature": 0.5},
    "triplet": {"kind": "triplet"},
    "triplet own margin": {"kind": "triplet", "triplet_margin": 0.5, "hard_negatives": "own", "mask_margin": 0.0},
    "triplet unmasked": {"kind": "triplet", "mask_duplicates": False},
    "base": {"base_weight": 0.4},
    "all": {
        **GTE,
        "matryoshka_dims": (3,),
        "matryoshka_weights": (0.5,),
        "distill": "kl",
        "base_weight": 0.1,
        "mask_margin": 0.2,
        "learn_temperature": True,
    },
}


def config(**options: Any) -> LossConfig:
    return LossConfig(**{"temperature": 0.2, **options})


def call(made: Problem, loss: LossConfig, **changes: Any) -> LossOutput:
    return Objective(loss, device=CPU)(
        made.query_QD,
        made.passage_ND,
        changes.pop("labels", made.whole()),
        base_query_bD=made.base_query_QD,
        base_passage_nD=made.base_passage_ND,
        **changes,
    )


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_loss_and_gradients_equal_the_reference(options: dict[str, Any]) -> None:
    made = problem()
    loss, gradients = reference(made, config(**options))
    output = call(made, config(**options))
    assert float(output.loss) == pytest.approx(loss, rel=1e-10)
    assert_close(output.query_grad_bD, gradients["query"], 1e-10)
    assert_close(output.passage_grad_nD, gradients["passage"], 1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_of_any_size_give_the_same(rows: int, options: dict[str, Any]) -> None:
    made = problem()
    kinds = ["symmetric", "query_query", "passage_passage"]
    back, queries, passages = (bool(options.get(kind)) for kind in kinds)
    columns = len(made.texts) * (1 + passages) + len(made.query_hash) * (back + queries)
    whole, blocks = call(made, config(**options)), call(made, config(block_scores=rows * columns, **options))
    assert float(blocks.loss) == pytest.approx(float(whole.loss), rel=1e-12)
    assert_close(blocks.query_grad_bD, whole.query_grad_bD, 1e-12)
    assert_close(blocks.passage_grad_nD, whole.passage_grad_nD, 1e-12)
    assert {name: float(value) for name, value in blocks.sums.items()} == pytest.approx(
        {name: float(value) for name, value in whole.sums.items()}, rel=1e-12
    )


def test_equal_input_gives_equal_bits() -> None:
    made = problem(queries=16)
    loss = config(block_scores=100, **OPTIONS["all"])
    first, second = call(made, loss), call(made, loss)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.query_grad_bD, second.query_grad_bD)
    assert torch.equal(first.passage_grad_nD, second.passage_grad_nD)


def test_options_change_the_loss() -> None:
    """So that none of the comparisons above holds because the option does nothing on either side."""
    plain = float(call(problem(), config()).loss)
    for name, options in OPTIONS.items():
        assert name == "default" or abs(float(call(problem(), config(**options)).loss) - plain) > 1e-4, name


class _Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return out


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_no_tensor_grows_with_the_square_of_the_batch(options: dict[str, Any]) -> None:
    """The budget is a few rows; without blocks the largest tensor of 128 queries would be their 50,000 scores."""
    largest = {}
    for queries in (64, 128):
        made = problem(queries=queries)
        with _Largest() as seen:
            call(made, config(block_scores=1024, **options))
        largest[queries] = seen.elements
        assert seen.elements <= max(1024, len(made.texts) * DIM)
    assert largest[128] <= 2 * largest[64]


def test_the_largest_tensor_is_seen_where_nothing_is_cut() -> None:
    made = problem(queries=128)
    with _Largest() as seen:
        call(made, config())
    assert seen.elements > 128 * len(made.texts)


def test_blocks_suit_the_device_unless_they_are_given() -> None:
    made = problem(queries=640)
    assert 640 * len(made.texts) > 1 << 20
    with _Largest() as seen:
        call(made, config())
    assert (1 << 20) * 0.9 < seen.elements <= 1 << 20
    assert config().on(torch.device("cuda")).block_scores == 1 << 24
    assert config(block_scores=7).on(CPU).block_scores == 7


def test_half_precision_is_scored_in_float32_and_comes_back_as_it_was() -> None:
    made = problem()
    labels = made.whole()
    loss = config(temperature=0.05)
    half = replace(made, query_QD=made.query_QD.bfloat16(), passage_ND=made.passage_ND.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = Objective(loss, device=CPU)(half.query_QD, half.passage_ND, labels)
    assert output.loss.dtype == torch.float32
    assert output.query_grad_bD.dtype == torch.bfloat16
    wide = Objective(loss, device=CPU)(half.query_QD.double(), half.passage_ND.double(), labels)
    assert float(output.loss) == pytest.approx(float(wide.loss), rel=1e-6)


class _Precision(TorchDispatchMode):
    """Remembers under which setting products of matrices were made."""

    def __init__(self) -> None:
        super().__init__()
        self.tf32: set[bool] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.tf32.add(torch.backends.cuda.matmul.allow_tf32)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tf32() -> Iterator[None]:
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_tf32_is_kept_from_the_scores_and_from_nothing_else() -> None:
    """The setting alone; what it does is seen on a GPU."""
    with _Precision() as seen:
        call(problem(), config())
    assert seen.tf32 == {False}
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32")
def test_tf32_is_kept_from_the_search_of_the_dev_set_too() -> None:
    with _Precision() as seen:
        nearest_on_all_ranks(torch.eye(3), torch.eye(3), 2)
    assert seen.tf32 == {False}
    assert torch.backends.cuda.matmul.allow_tf32


def test_the_inputs_are_left_alone() -> None:
    made = problem()
    before = made.query_QD.clone(), made.passage_ND.clone()
    with torch.no_grad():
        call(made, config(**OPTIONS["all"]))
    assert torch.equal(made.query_QD, before[0])
    assert torch.equal(made.passage_ND, before[1])
    assert not made.query_QD.requires_grad


def test_a_batch_whose_weights_are_zero_has_no_gradient() -> None:
    made = problem()
    labels: Labels = replace(made.whole(), weight_n=torch.zeros(len(made.texts)))
    output = call(made, config(), labels=labels)
    assert float(output.loss) == 0
    assert float(output.passage_grad_nD.abs().max()) == 0
