"""An exponential moving average of the weights, each rank of its own part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Averaged weights beside the trained ones."""

    def __init__(self, values: Mapping[str, Tensor], decay: float) -> None:
        """Begin with the weights as they are."""
        self._decay = decay
        self.values = {name: value.clone() for name, value in values.items()}

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Move towards the weights."""
        torch._foreach_lerp_(list(self.values.values()), [values[name] for name in self.values], 1 - self._decay)

    @contextmanager
    def in_place_of(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the averaged weights stand where the trained ones are."""
        trained = {name: value.clone() for name, value in values.items()}
        _copy(self.values, values)
        try:
            yield
        finally:
            _copy(trained, values)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
