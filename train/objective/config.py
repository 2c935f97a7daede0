"""The section [loss]: what is optimised, and what is left out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from data_shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive loss."""

    kind: Literal["infonce", "triplet"] = "infonce"
    """`infonce`: cross entropy over all passages. `triplet`: hinge on the query's own negatives; a query that has
    none takes the hardest of the batch."""
    temperature: float = 0.05
    """Scores are divided by it."""
    learn_temperature: bool = False
    """Train the logarithm of its inverse, from `temperature` on."""
    temperature_min: float = 0.01
    """A learned temperature is kept at or above this; CLIP's bound."""
    temperature_max: float = 1.0
    """A learned temperature is kept at or below this."""
    triplet_margin: float = 0.2
    """By how much a positive should score above a negative, in cosine units."""
    mask_duplicates: bool = True
    """Leave out passages that are another positive, or a textual duplicate of a positive, of the query."""
    mask_margin: float | None = None
    """Leave out negatives of any kind that score above the query's best own positive plus this, in cosine units; it
    may be negative. Off when not set."""
    hard_negatives: Literal["shared", "own"] = "shared"
    """`shared`: a given or mined negative counts for every query. `own`: only for the query that it came with."""
    symmetric: bool = False
    """Add the cross entropy from passage to query, over all queries; the loss is the mean of both."""
    query_query: bool = False
    """The other queries join the denominator from query to passage, as negatives."""
    passage_passage: bool = False
    """All passages, compared with the positive, join the denominator from query to passage, as negatives."""
    matryoshka_dims: tuple[int, ...] = ()
    """Add the loss of the vectors cut to these sizes and normalised again. The full size always counts."""
    matryoshka_weights: tuple[float, ...] = ()
    """One for each of `matryoshka_dims`; all 1 when not set. The full size has 1 unless it is listed."""
    distill: Literal["off", "kl", "margin_mse"] = "off"
    """Learn a teacher's scores of each query's own passages. `kl`: their softmax. `margin_mse`: how far the positive
    is above each negative."""
    distill_weight: float = 1.0
    """The weight of that beside the contrastive loss."""
    distill_temperature: float = 1.0
    """The teacher's scores are divided by it, as the student's are by `temperature`."""
    base_weight: float = 0.0
    """The weight of the mean squared distance to the vectors of the base model; 0 is off."""
    block_scores: int = 0
    """Most scores held at once, in one block of queries against all passages: memory, not meaning. 0 is 2^20 on a
    CPU, where larger blocks took up to twice the time, and 2^24 elsewhere."""

    def __post_init__(self) -> None:
        """Check each value, and that no option is switched on that would do nothing."""
        for name in ("temperature", "temperature_min", "temperature_max", "distill_temperature", "triplet_margin"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"loss.{name} must be positive, came {getattr(self, name)}")
        for name in ("distill_weight", "base_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"loss.{name} must be 0 or more, came {getattr(self, name)}")
        if self.mask_margin is not None and not math.isfinite(self.mask_margin):
            raise UserError(f"loss.mask_margin must be a number, came {self.mask_margin}")
        if self.block_scores < 0:
            raise UserError(f"loss.block_scores must be 0 or more, came {self.block_scores}")
        self._check_temperature()
        self._check_triplet()
        self._check_matryoshka()

    def _check_temperature(self) -> None:
        if self.learn_temperature and not self.temperature_min <= self.temperature <= self.temperature_max:
            raise UserError(
                f"loss.temperature {self.temperature} is learned within loss.temperature_min {self.temperature_min} "
                f"and loss.temperature_max {self.temperature_max}; start inside, or move the bound"
            )

    def _check_triplet(self) -> None:
        if self.kind != "triplet":
            return
        for name in ("symmetric", "query_query", "passage_passage"):
            if getattr(self, name):
                raise UserError(f'loss.{name} belongs to loss.kind = "infonce"; set one of the two back')
        if self.learn_temperature and self.distill == "off":
            raise UserError('loss.kind = "triplet" has no temperature to learn; set loss.learn_temperature = false')

    def _check_matryoshka(self) -> None:
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
            raise UserError(f"loss.matryoshka_dims must be different sizes of 1 or more, came {list(dims)}")
        if weights and len(weights) != len(dims):
            raise UserError(
                f"loss.matryoshka_weights needs one weight for each of {len(dims)} loss.matryoshka_dims, "
                f"came {len(weights)}"
            )
        if not all(0 < weight < math.inf for weight in weights):
            raise UserError(f"loss.matryoshka_weights must be positive, came {list(weights)}")

    def on(self, device: torch.device) -> LossConfig:
        """Return the config with blocks that suit a device."""
        return replace(self, block_scores=self.block_scores or (1 << 20 if device.type == "cpu" else 1 << 24))

    def sizes(self, dim: int) -> dict[int, float]:
        """Return the weight of each size at which vectors of size `dim` are compared, the full one first.

        Raises:
            UserError: a size above `dim` is asked for. Launch can ask before any process starts.
        """
        weights = self.matryoshka_weights or (1.0,) * len(self.matryoshka_dims)
        sizes = {dim: 1.0} | dict(zip(self.matryoshka_dims, weights, strict=True))
        if too_large := [size for size in sizes if size > dim]:
            raise UserError(
                f"loss.matryoshka_dims asks for {', '.join(map(str, sorted(too_large)))}, but the vectors have "
                f"{dim} dimensions; leave out what is above {dim}, or widen the encoder's projection"
            )
        return sizes
