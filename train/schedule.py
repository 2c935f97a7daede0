"""The learning rate as a function of the step: no state, so nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_shards.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-3
    """The highest, reached at the end of the warm-up."""
    weight_decay: float = 0.01
    """Not applied to biases and layer norms."""
    warmup_share: float = 0.1
    """Share of all steps over which the rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to `final_share` of the highest afterwards."""
    final_share: float = 0.0
    """Where it ends, as a share of the highest."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    beta1: float = 0.9
    """How slowly AdamW forgets gradients."""
    beta2: float = 0.999
    """How slowly it forgets their squares."""
    ema_decay: float = 0.0
    """Average the weights over steps with this decay; dev evaluation and snapshots then take the average. 0: off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"optimizer.learning_rate must be positive, came {self.learning_rate}")
        for name in ("warmup_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optimizer.{name} is a share between 0 and 1, came {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} must be at least 0 and below 1, came {getattr(self, name)}")
        if self.weight_decay < 0 or self.max_grad_norm < 0:
            raise UserError("optimizer.weight_decay and optimizer.max_grad_norm must be 0 or more")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the rate of a step, counted from 0; the first is already above 0."""
    warmup = config.warmup_share * total_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (math.floor(warmup) + 1)
    progress = (step - warmup) / max(1.0, total_steps - warmup)
    if config.schedule == "constant":
        fall = 0.0
    elif config.schedule == "linear":
        fall = progress
    else:
        fall = (1 - math.cos(math.pi * progress)) / 2
    return config.learning_rate * (1 - (1 - config.final_share) * fall)
