"""The objective against sentence-transformers' own losses, on the same vectors: the values and the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.objective import Labels, LossConfig, Objective

losses = pytest.importorskip("sentence_transformers.losses", reason="needs the test extra")

ROWS, DIM, SCALE = 7, 8, 20.0


class Lookup(nn.Module):
    """Stands for the peer's model: its texts are rows of given vectors."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.vectors[features["row"]]}

    def get_embedding_dimension(self) -> int:
        return DIM


def columns(negatives: int) -> Tensor:
    """Return normalised queries, positives and hard negatives: [columns, rows, DIM]."""
    draw = torch.Generator().manual_seed(negatives)
    made = torch.randn(2 + negatives, ROWS, DIM, dtype=torch.float64, generator=draw) + 0.5
    return nn.functional.normalize(made, dim=-1)


def ours(vectors: Tensor, teacher: Tensor | None = None, **options: Any) -> tuple[float, Tensor]:
    """Return the loss and its gradient, in the shape of `vectors`."""
    passages = vectors[1:].flatten(0, 1)
    owner = torch.arange(ROWS).repeat(len(vectors) - 1)
    labels = Labels(
        query_hash_b=torch.arange(ROWS),
        positive_hash_bK=torch.arange(ROWS)[:, None] + 100,
        passage_hash_n=torch.arange(len(passages)) + 100,
        owner_n=owner,
        positive_n=torch.arange(len(passages)) < ROWS,
        weight_n=torch.ones(len(passages)),
        teacher_n=None if teacher is None else teacher.T.flatten(),
    )
    output = Objective(LossConfig(temperature=1 / SCALE, **options), device=torch.device("cpu"))(
        vectors[0], passages, labels
    )
    gradient = torch.cat([output.query_grad_bD, output.passage_grad_nD]).view_as(vectors)
    return float(output.loss), gradient


def theirs(vectors: Tensor, make: Any, targets: Tensor | None = None) -> tuple[float, Tensor]:
    leaf = vectors.clone().requires_grad_()
    features = [{"row": torch.arange(ROWS) + k * ROWS} for k in range(len(vectors))]
    loss = make(Lookup(leaf.flatten(0, 1)))(features, targets)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad


def assert_equal(found: tuple[float, Tensor], wanted: tuple[float, Tensor], vectors: Tensor) -> None:
    """Compare the losses, and the gradients along the sphere.

    The peer normalises again what is normalised already, which takes from a gradient what points outwards.
    """

    def along(gradient: Tensor) -> Tensor:
        return gradient - (gradient * vectors).sum(-1, keepdim=True) * vectors

    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert float((along(found[1]) - along(wanted[1])).abs().max()) <= 1e-6


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_in_batch_negatives(negatives: int) -> None:
    vectors = columns(negatives)
    assert_equal(ours(vectors), theirs(vectors, losses.MultipleNegativesRankingLoss), vectors)


@pytest.mark.parametrize("negatives", [0, 2])
def test_symmetric(negatives: int) -> None:
    def make(model: nn.Module) -> nn.Module:
        return losses.MultipleNegativesRankingLoss(
            model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )

    vectors = columns(negatives)
    assert_equal(ours(vectors, symmetric=True), theirs(vectors, make), vectors)


def test_queries_and_passages_in_the_denominator() -> None:
    """Pairs alone: of a query's own hard negatives, the peer leaves out what the positive is compared with."""

    def make(model: nn.Module) -> nn.Module:
        return losses.MultipleNegativesRankingLoss(model, directions=("query_to_doc", "query_to_query", "doc_to_doc"))

    vectors = columns(0)
    assert_equal(ours(vectors, query_query=True, passage_passage=True), theirs(vectors, make), vectors)


def test_matryoshka() -> None:
    def make(model: nn.Module) -> nn.Module:
        inner = losses.MultipleNegativesRankingLoss(model)
        return losses.MatryoshkaLoss(model, inner, [DIM, 5, 2], [1.0, 0.5, 0.25])

    vectors = columns(1)
    found = ours(vectors, matryoshka_dims=(2, 5), matryoshka_weights=(0.25, 0.5))
    assert_equal(found, theirs(vectors, make), vectors)


def test_triplet() -> None:
    from sentence_transformers.losses import TripletDistanceMetric

    def make(model: nn.Module) -> nn.Module:
        return losses.TripletLoss(model, TripletDistanceMetric.COSINE, triplet_margin=0.3)

    vectors = columns(1)
    assert_equal(ours(vectors, kind="triplet", triplet_margin=0.3), theirs(vectors, make), vectors)


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_distillation(kind: str, negatives: int) -> None:
    """The peer multiplies its KL by the square of the student's temperature, and its margins are cosines."""
    vectors = columns(negatives)
    teacher = torch.randn(ROWS, 1 + negatives, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2

    def make(model: nn.Module) -> nn.Module:
        if kind == "kl":
            return losses.DistillKLDivLoss(model, student_temperature=1 / SCALE, teacher_temperature=3.0)
        return losses.MarginMSELoss(model)

    wanted, wanted_gradient = theirs(vectors, make, teacher if kind == "kl" else teacher / SCALE)
    plain, plain_gradient = ours(vectors)
    both, both_gradient = ours(vectors, teacher, distill=kind, distill_temperature=3.0 if kind == "kl" else 1.0)
    found = (both - plain) / SCALE**2, (both_gradient - plain_gradient) / SCALE**2
    assert_equal(found, (wanted, wanted_gradient), vectors)
