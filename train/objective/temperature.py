"""The temperature: a number, or a parameter of its own with its own Adam."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.collectives import sum_over_ranks, world_size
from train.objective.config import LossConfig


class Temperature:
    """What scores are divided by. Learned, it is the same on every rank, since every rank makes the same updates.

    The parameter is the logarithm of the scale, 1 / temperature, as in Radford et al. 2021 (CLIP), section 2.3. It
    and its moments are float64, so that their JSON form is exact.
    """

    def __init__(self, config: LossConfig, device: torch.device) -> None:
        """Start at the configured temperature."""
        self._config = config
        self._log_scale = torch.tensor(-math.log(config.temperature), dtype=torch.float64, device=device)
        self._calls = 0
        if config.learn_temperature:
            self._log_scale.requires_grad_()
            self._adam = torch.optim.Adam([self._log_scale])

    def value(self, dtype: torch.dtype) -> float | Tensor:
        """Return it, with a graph of its own if it is learned."""
        if not self._config.learn_temperature:
            return self._config.temperature
        return (-self._log_scale).exp().to(dtype)

    def current(self) -> float:
        """Return the number in use."""
        return math.exp(-float(self._log_scale.detach()))

    def count_call(self) -> None:
        """Note that the gradient of one more batch has been added."""
        self._calls += 1

    def step(self, learning_rate: float) -> None:
        """Follow the gradient of the mean over ranks and over the calls since the last step, within the bounds.

        A collective, where the temperature is learned.
        """
        if not self._config.learn_temperature or self._calls == 0:
            return
        # A rank without pairs has no gradient, yet must come to the collective.
        own = torch.zeros_like(self._log_scale) if self._log_scale.grad is None else self._log_scale.grad
        self._log_scale.grad = sum_over_ranks(own) / (world_size() * self._calls)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad()
        self._calls = 0
        with torch.no_grad():
            lowest, highest = -math.log(self._config.temperature_max), -math.log(self._config.temperature_min)
            self._log_scale.clamp_(lowest, highest)

    def state(self) -> dict[str, float]:
        """Return what `load` takes; empty where nothing is learned."""
        if not self._config.learn_temperature:
            return {}
        moments = {name: float(value) for name, value in self._adam.state.get(self._log_scale, {}).items()}
        return {"log_scale": float(self._log_scale.detach()), **moments}

    def load(self, state: dict[str, float]) -> None:
        """Take what `state` returned."""
        if not self._config.learn_temperature or not state:
            return
        moments = {name: value for name, value in state.items() if name != "log_scale"}
        with torch.no_grad():
            self._log_scale.fill_(state["log_scale"])
        self._adam.state.clear()
        if moments:
            # Adam counts steps on the CPU, in float32; its moments are like the parameter.
            self._adam.state[self._log_scale] = {
                name: torch.tensor(value, dtype=torch.float32)
                if name == "step"
                else torch.full_like(self._log_scale, value, requires_grad=False)
                for name, value in moments.items()
            }
