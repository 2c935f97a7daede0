"""From vectors to the loss and its exact gradient with respect to them, over the passages of all ranks, in blocks.

A block of rows is scored against all columns and differentiated at once, so no matrix of batch by batch ever exists:
memory is one block and the vectors.

Axes: b queries and n passages of this rank, r (query, positive) pairs of this rank, D dimensions.
Source: Matryoshka sizes: Kusupati et al. 2022, equation 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.full_precision import full_precision
from train.objective.base import add_base
from train.objective.batch import gather_batch
from train.objective.blocks import add_contrastive
from train.objective.config import LossConfig
from train.objective.details import logged_details
from train.objective.distill import add_distillation, check_teacher
from train.objective.hard import hard_loss
from train.objective.labels import Labels, LossOutput
from train.objective.own import own_passages
from train.objective.temperature import Temperature


class Objective:
    """The loss of a run, with the temperature that it may learn."""

    def __init__(self, config: LossConfig, *, device: torch.device) -> None:
        """Start at the configured temperature; every rank makes one."""
        self._config = config.on(device)
        self._temperature = Temperature(config, device)

    def __call__(
        self,
        query_bD: Tensor,
        passage_nD: Tensor,
        labels: Labels,
        *,
        base_query_bD: Tensor | None = None,
        base_passage_nD: Tensor | None = None,
        details: bool = False,
    ) -> LossOutput:
        """Compare this rank's queries with every rank's passages, on all ranks together.

        The loss is the sum over this rank's (query, positive) pairs, each by its weight, divided by the global sum
        of weights and multiplied by the world size. The gradients are those of the sum of all ranks' losses: a
        passage's holds what other ranks' queries say of it. An engine that averages parameter gradients over ranks
        then yields the gradient of the global weighted mean: nothing else needs scaling.

        Args:
            query_bD: normalised queries; values alone, no graph is followed.
            passage_nD: normalised passages, in any order.
            labels: see `Labels`; on the vectors' device.
            base_query_bD: the base model's vectors of the same texts, where `base_weight` is set.
            base_passage_nD: likewise.
            details: add what only logged steps show; see `details`.

        Raises:
            UserError: a Matryoshka size above D, or teacher's scores that do not suffice; on all ranks alike.
        """
        config, temperature = self._config, self._temperature
        sizes = config.sizes(query_bD.shape[1])
        with full_precision(query_bD.device), torch.enable_grad():
            batch = gather_batch(query_bD, passage_nD, labels, config)
            check_teacher(batch, config)
            own = own_passages(labels) if config.distill != "off" or config.base_weight else None
            loss_r = torch.zeros_like(batch.pairs.weight_r)
            sums: dict[str, Tensor] = {}
            for size, factor in sizes.items():
                contrastive_r, seen = add_contrastive(batch, size, factor, config, temperature)
                loss_r += factor * contrastive_r
                if own is not None and config.distill != "off":
                    distance_r = add_distillation(batch, own, labels, size, factor, config, temperature)
                    loss_r += factor * config.distill_weight * distance_r
                    seen["distill"] = (distance_r * batch.pairs.share_r).sum()
                sums = sums or seen  # of the full size, which comes first
            if own is not None and config.base_weight:
                distance_r = add_base(batch, own, base_query_bD, base_passage_nD, config)
                loss_r += config.base_weight * distance_r
                sums["base"] = (distance_r * batch.pairs.share_r).sum()
            query_grad_bD, passage_grad_nD = batch.gradients()
        temperature.count_call()
        sums["loss"] = (loss_r * batch.pairs.share_r).sum()
        sums["queries"] = loss_r.new_tensor(len(query_bD))
        sums |= hard_loss(batch.query_bD, batch.passage_nD, labels, self.temperature)
        if details:
            sums |= logged_details(batch, labels, self.temperature)
        return LossOutput(
            loss=(loss_r * batch.pairs.weight_r).sum() * batch.scale,
            query_grad_bD=query_grad_bD.to(query_bD.dtype),
            passage_grad_nD=passage_grad_nD.to(passage_nD.dtype),
            sums=sums,
        )

    @property
    def temperature(self) -> float:
        """The temperature in use."""
        return self._temperature.current()

    def step(self, learning_rate: float) -> None:
        """Update the learned temperature from the calls since the last step; nothing where it is not learned.

        A collective: all ranks make as many calls, and step together.
        """
        self._temperature.step(learning_rate)

    def state(self) -> dict[str, float]:
        """Return what `load` takes, exact in JSON."""
        return self._temperature.state()

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state` returned."""
        self._temperature.load(state)
