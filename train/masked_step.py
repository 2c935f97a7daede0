"""One step of guessing hidden tokens: the mean over the hidden tokens of all ranks, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.adapt_batches import MaskedBatch
from train.collectives import gather_numbers, world_size
from train.grad_cache import Backend
from train.seeds import seed_everything


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedOutput:
    """What one rank knows after its passes."""

    sums: Tensor
    """float64 [2], of this rank: cross-entropies, and tokens that were guessed right."""
    masked: float
    """Hidden tokens of all ranks; the same holds for what follows."""
    tokens: float
    padded_tokens: float
    skipped: float


def masked_step(backend: Backend, batch: MaskedBatch, *, seed: int) -> MaskedOutput:
    """Leave the gradient of the global batch in the parameters.

    Ranks hide different numbers of tokens, so a mean of their means would be another number. Each rank's sum is
    divided by the count of all, and taken times the number of ranks, by which every engine divides.

    Args:
        backend: a `MaskedLM` in an engine.
        batch: this rank's part.
        seed: dropout is drawn from (seed, step, rank, chunk).
    """
    counts = (batch.masked, batch.tokens, batch.padded_tokens, batch.skipped, len(batch.chunks))
    numbers_W5 = gather_numbers(torch.tensor(counts, dtype=torch.float64, device=backend.device))
    masked, tokens, padded_tokens, skipped, _ = numbers_W5.sum(0).tolist()
    scale = world_size() / max(1.0, masked)
    passes = len(batch.chunks)
    if backend.equal_forwards or backend.equal_backwards:
        passes = int(numbers_W5[:, -1].max())
    sums = torch.zeros(2, dtype=torch.float64, device=backend.device)
    for turn in range(passes):
        idle = turn >= len(batch.chunks)  # a pass that another rank needs: it is a collective
        seed_everything(seed, batch.step, turn)
        with backend.sync(last=turn == passes - 1):
            loss, hits = backend.forward(*batch.chunks[-1 if idle else turn].inputs(backend.device))
            backend.backward(loss * (0.0 if idle else scale))
        if not idle:
            sums += torch.stack([loss.detach(), hits.detach()])
    return MaskedOutput(sums=sums, masked=masked, tokens=tokens, padded_tokens=padded_tokens, skipped=skipped)
