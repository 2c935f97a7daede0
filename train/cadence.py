"""When negatives are mined anew: by steps, epochs or pairs, or when the ones in use no longer teach.

Durations are resolved once, into steps. Whether a refresh is due is then a function of the step and of what a
checkpoint holds, the same on every rank and after every resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data_shards.errors import UserError
from data_shards.order import GlobalOrder

_UNITS = ("steps", "epochs", "pairs")


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """When and how negatives are mined anew. `first_*` and `every_*` take one unit each; at 0 nothing is mined."""

    way: Literal["phased", "async"] = "phased"
    """`phased`: training waits while the same devices mine. `async`: other devices mine while training goes on."""
    first_step: int = 0
    """The first refresh comes before this step."""
    first_epochs: float = 0.0
    """The same in passes over the training pairs."""
    first_pairs: int = 0
    """The same in pairs."""
    every_steps: int = 0
    """Steps from one refresh to the next; with no `every_*` there is one refresh alone."""
    every_epochs: float = 0.0
    """The same in passes over the training pairs."""
    every_pairs: int = 0
    """The same in pairs."""
    flat_steps: int = 0
    """A refresh comes sooner where the loss over hard negatives has not fallen by `flat_gain` from one stretch of so
    many steps to the next; 0 turns that off."""
    flat_gain: float = 0.02
    """Share of the loss."""
    warm_up: Literal["none", "bm25"] = "none"
    """What negatives there are before the first refresh: mined by BM25 before step 0, or none."""
    give_back: Literal["auto", "on", "off"] = "auto"
    """`phased`: whether the ranks leave their devices to the miner, with a checkpoint, and come back to it; `auto`
    does so on GPUs."""
    keep_versions: int = 2
    """Older versions are deleted, but none that a kept checkpoint still needs."""
    miner_restarts: int = 3
    """How often in a row a miner that died is started again."""
    max_age_steps: int = 0
    """`async`: negatives older than this end the run; 0 never does."""
    timeout_s: int = 3600
    """`phased`: a version that takes longer than this ends the run."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for kind in ("first", "every"):
            given = [name for name in self._names(kind) if getattr(self, name)]
            if any(getattr(self, name) < 0 for name in given):
                raise UserError(f"refresh.{given[0]} must be 0 or more, came {getattr(self, given[0])}")
            if len(given) > 1:
                raise UserError(f"refresh.{given[0]} and {given[1]} say the same twice; set one of them to 0")
        if self._given("every") and not self._given("first"):
            name, first = self._given("every"), f"first_{self._given('every').removeprefix('every_')}"
            first = "first_step" if first == "first_steps" else first
            raise UserError(f"refresh.{name} is set but {first} is 0, which turns mining off; set {first}")
        if self.flat_steps and not self._given("every"):
            raise UserError("refresh.flat_steps makes refreshes come sooner than every_*, which is not set; set it")
        if min(self.flat_steps, self.miner_restarts, self.max_age_steps) < 0 or self.flat_gain < 0:
            raise UserError("refresh.flat_steps, flat_gain, miner_restarts and max_age_steps must be 0 or more")
        if self.timeout_s < 1 or self.keep_versions < 1:
            raise UserError("refresh.timeout_s and keep_versions must be at least 1")

    @property
    def on(self) -> bool:
        """Whether anything is mined."""
        return bool(self._given("first")) or self.warm_up != "none"

    def cadence(self, order: GlobalOrder, total: int) -> Cadence:
        """Resolve all durations into steps of a run of `total` of them."""
        return Cadence(
            first=self._steps("first", order),
            every=self._steps("every", order),
            total=total,
            warm_up=self.warm_up != "none",
            flat_steps=self.flat_steps,
        )

    def gives_back(self, *, cuda: bool, cluster: bool) -> bool:
        """Whether ranks leave while the miner works: on its own cluster it takes nothing from them."""
        return self.way == "phased" and (
            self.give_back == "on" or (self.give_back == "auto" and cuda and not cluster)
        )

    def _names(self, kind: str) -> list[str]:
        return [f"{kind}_step" if (kind, unit) == ("first", "steps") else f"{kind}_{unit}" for unit in _UNITS]

    def _given(self, kind: str) -> str:
        return next((name for name in self._names(kind) if getattr(self, name)), "")

    def _steps(self, kind: str, order: GlobalOrder) -> int:
        steps, epochs, pairs = (getattr(self, name) for name in self._names(kind))
        if epochs:
            return max(1, int(epochs * order.steps_per_epoch + 0.5))
        return int(steps or math.ceil(pairs / order.batch_size))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cadence:
    """The same in steps; `asked` is how many versions have been asked for, and `last` the step of the newest."""

    first: int
    """0 for never."""
    every: int
    """0 for once."""
    total: int
    """Steps of the run."""
    warm_up: bool = False
    """Whether the first version is asked for before step 0, to serve until `first`."""
    flat_steps: int = 0
    """0 for off."""

    def next_step(self, *, asked: int, last: int) -> int:
        """Return the step before which the next refresh comes at the latest; `total` where none does."""
        mined = asked - self.warm_up
        if mined < 0:
            return 0
        if not self.first or (mined and not self.every):
            return self.total
        return min(last + self.every if mined else self.first, self.total)

    def due(self, step: int, *, asked: int, last: int, flat: bool) -> bool:
        """Whether a refresh comes before this step."""
        if step >= self.total:
            return False
        sooner = flat and asked > self.warm_up and self.every > 0 and step > last
        return sooner or step >= self.next_step(asked=asked, last=last)


class Flatness(NamedTuple):
    """Whether the loss over hard negatives still falls, stretch by stretch; a checkpoint holds it."""

    total: float = 0.0
    """Of the stretch under way."""
    steps: int = 0
    """In it."""
    before: float = 0.0
    """The mean of the stretch before; 0 where there was none."""
    flat: bool = False
    """Whether the last whole stretch gained too little on the one before."""

    def after(self, loss: float, config: RefreshConfig) -> Flatness:
        """Count one more step's loss."""
        total, steps = self.total + loss, self.steps + 1
        if steps < config.flat_steps:
            return self._replace(total=total, steps=steps)
        mean = total / steps
        return Flatness(before=mean, flat=mean > self.before * (1 - config.flat_gain) > 0)
