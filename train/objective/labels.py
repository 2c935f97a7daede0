"""What goes into the objective beside the vectors, and what comes out.

Axes: b queries and n passages of this rank, K known positives of a query, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Who is whose, for the queries and the passages of one rank; `text_hash` stands for each text.

    Passages may stand in any order: positives and negatives interleaved, the queries' turns mixed.
    """

    query_hash_b: Tensor
    """int64 [b]."""
    positive_hash_bK: Tensor
    """int64 [b, K]: every known positive of a query, repeated to fill the row."""
    passage_hash_n: Tensor
    """int64 [n]."""
    owner_n: Tensor
    """int64 [n]: the local query row whose positive or negative each passage is."""
    positive_n: Tensor
    """bool [n]: whether it is a positive of its owner; a query may have several, at least one."""
    weight_n: Tensor
    """float [n]: how much each (owner, positive) counts, its graded relevance; negatives' are ignored."""
    teacher_n: Tensor | None = None
    """float [n]: a teacher's score of each (owner, passage), NaN where there is none."""

    def __post_init__(self) -> None:
        """Check the shapes; reading values would wait for the device."""
        assert len(self.query_hash_b) == len(self.positive_hash_bK), "a row of known positives for each query"
        for name in ("owner_n", "positive_n", "weight_n", "teacher_n"):
            value_n = getattr(self, name)
            assert value_n is None or value_n.shape == self.passage_hash_n.shape, f"{name}: one value a passage"

    def to(self, device: torch.device) -> Labels:
        """Copy to a device."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """The loss, its gradient with respect to the vectors, and what the log shows."""

    loss: Tensor
    """Scalar, without graph: this rank's share. Its mean over ranks is the loss of the global batch."""
    query_grad_bD: Tensor
    """In the queries' type; see `Objective.__call__` for the scale."""
    passage_grad_nD: Tensor
    """The same for the passages."""
    sums: dict[str, Tensor]
    """Without graph; add them over ranks. Scalars to divide by `queries`, where a query with several positives counts
    as their mean: loss (unweighted), accuracy, positive_score, hardest_negative_score, masked; distill and base
    where those are on; `hard` and `details` say what else there is."""
