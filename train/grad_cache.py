"""One training step over chunks: any batch in the memory of one chunk, with the gradient of the whole.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3.2.
The first pass encodes every chunk without a graph. The loss is differentiated with respect to the vectors. The
second pass encodes each chunk again, with a graph, and sends its vectors' gradient through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from data_shards.collate import Chunk
from train.batches import StepBatch
from train.collectives import max_over_ranks
from train.loss import LossConfig, LossOutput, info_nce
from train.seeds import seed_everything


class Backend(Protocol):
    """What a step needs of an engine."""

    device: torch.device
    equal_backwards: bool
    """Whether every backward call is a collective, so that all ranks must make equally many."""

    def encode(self, chunk: Chunk) -> Tensor:
        """Return the chunk's vectors [B, D]."""

    def chunk(self, *, last: bool) -> AbstractContextManager[None]:
        """Surround one chunk's encode and backward; gradients are averaged over ranks in the last one."""

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""


def cached_step(backend: Backend, batch: StepBatch, config: LossConfig, *, seed: int) -> LossOutput:
    """Leave the global batch's gradient in the parameters, holding one chunk's graph at a time.

    Args:
        backend: encodes and differentiates.
        batch: this rank's part of the global batch.
        config: of the loss.
        seed: dropout is drawn from (seed, step, rank, chunk), so that the second pass repeats the first.
    """
    chunks = [chunk.to(backend.device) for chunk in (*batch.queries, *batch.passages)]
    with torch.no_grad():
        parts = [_encode(backend, chunk, k, batch.step, seed) for k, chunk in enumerate(chunks)]
    query_bD, passage_nD = _vectors(parts, chunks, len(batch.queries))
    query_bD.requires_grad_(True)
    passage_nD.requires_grad_(True)
    output = info_nce(query_bD, passage_nD, batch.labels.to(backend.device), config)
    output.loss.backward()
    assert query_bD.grad is not None
    assert passage_nD.grad is not None
    gradients = [query_bD.grad] * len(batch.queries) + [passage_nD.grad] * len(batch.passages)
    backwards = max_over_ranks(len(chunks), backend.device) if backend.equal_backwards else len(chunks)
    for k in range(backwards):
        # A rank with fewer chunks than the others repeats its last one with a zero gradient.
        place, scale = (k, 1.0) if k < len(chunks) else (len(chunks) - 1, 0.0)
        with backend.chunk(last=k == backwards - 1):
            vector_BD = _encode(backend, chunks[place], place, batch.step, seed)
            backend.backward((vector_BD * gradients[place][chunks[place].rows]).sum() * scale)
    return output


def plain_step(backend: Backend, batch: StepBatch, config: LossConfig, *, seed: int) -> LossOutput:
    """Do the same with every chunk's graph held until one backward pass: faster, where the memory is there."""
    chunks = [chunk.to(backend.device) for chunk in (*batch.queries, *batch.passages)]
    with backend.chunk(last=True):
        parts = [_encode(backend, chunk, k, batch.step, seed) for k, chunk in enumerate(chunks)]
        query_bD, passage_nD = _vectors(parts, chunks, len(batch.queries))
        output = info_nce(query_bD, passage_nD, batch.labels.to(backend.device), config)
        backend.backward(output.loss)
    return output


def _encode(backend: Backend, chunk: Chunk, k: int, step: int, seed: int) -> Tensor:
    seed_everything(seed, step, k)
    return backend.encode(chunk)


def _vectors(parts: Sequence[Tensor], chunks: Sequence[Chunk], query_chunks: int) -> tuple[Tensor, Tensor]:
    """Put the chunks' vectors back into the batch's order: queries, passages."""
    return (
        _in_order(parts[:query_chunks], chunks[:query_chunks]),
        _in_order(parts[query_chunks:], chunks[query_chunks:]),
    )


def _in_order(parts: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
    rows = torch.cat([chunk.rows for chunk in chunks])
    return torch.cat(list(parts))[rows.argsort()]
