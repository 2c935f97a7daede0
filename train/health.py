"""When a run is no longer worth going on with: no number, overflow after overflow, or a loss far above its start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from data_shards.errors import UserError

SETTLING_STEPS = 10
"""The first steps, whose highest loss is what a spike is measured by."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What ends a run that goes wrong."""

    spike_factor: float = 2.0
    """The run ends when a step's loss is above this many times the highest of its first ten steps; 0 turns it off."""
    max_skips: int = 50
    """In float16 a step whose gradient overflows is skipped; so many in a row end the run."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (self.spike_factor == 0 or 1 < self.spike_factor < math.inf):
            raise UserError(f"health.spike_factor must be above 1, or 0 to turn it off; came {self.spike_factor:g}")
        if self.max_skips < 1:
            raise UserError(f"health.max_skips must be at least 1, came {self.max_skips}")


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient is no number any more, or far above where it began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What the checks remember; a checkpoint keeps it."""

    loss_ceiling: float = 0.0
    """The highest loss of the settling steps so far; 0 before the first."""
    skips: int = 0
    """Steps in a row that were skipped for overflow."""


def check_step(
    health: Health,
    config: HealthConfig,
    *,
    step: int,
    settled_steps: int,
    loss: float,
    grad_norm: float,
    skipped: bool,
    checkpoint: str,
    section: str = "optimizer",
) -> Health:
    """Return what holds after a step, or end the run. All ranks give the same values, so all come to the same end.

    The reference is the start and not the recent past, since a refresh with harder negatives raises the loss
    lawfully. For the same reason the first ten steps with a new negatives version raise the ceiling too: an encoder
    that knows its pairs begins so low that its first hard negatives would pass for a spike.

    Args:
        health: after the step before.
        config: the limits.
        step: which step this was.
        settled_steps: steps since the run, or its newest negatives version, began.
        loss: the mean over the global batch.
        grad_norm: before clipping.
        skipped: whether the loss scaler left the step out because the gradient overflowed in float16.
        checkpoint: the newest one, to go back to; empty where there is none.
        section: of the config, where the learning rate stands.

    Raises:
        TrainingDivergedError: the message names step, value, limit, checkpoint and what to change.
    """
    back = (
        f"the newest checkpoint from before it is {checkpoint}" if checkpoint else "no checkpoint is from before it"
    )
    if skipped:
        if health.skips + 1 >= config.max_skips:
            raise TrainingDivergedError(
                f"the gradients of {config.max_skips} steps in a row, up to step {step}, overflowed in float16; "
                f"{back}. Set engine.precision to bfloat16 or float32"
            )
        return replace(health, skips=health.skips + 1)
    for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the {name} of step {step} is {value}; {back}. Lower {section}.learning_rate, or set "
                "engine.precision to float32"
            )
    ceiling = health.loss_ceiling
    if settled_steps < SETTLING_STEPS:
        ceiling = max(ceiling, loss)
    elif config.spike_factor and ceiling > 0 and loss > config.spike_factor * ceiling:
        raise TrainingDivergedError(
            f"the loss of step {step} is {loss:.4g}, above health.spike_factor = {config.spike_factor:g} times "
            f"{ceiling:.4g}, the highest of the run's first {SETTLING_STEPS} steps; {back}. Lower "
            f"{section}.learning_rate, or raise health.spike_factor if the loss is meant to rise so far"
        )
    return Health(loss_ceiling=ceiling, skips=0)
