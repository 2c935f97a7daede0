"""One training step over chunks: any batch in the memory of one chunk, with the gradient of the whole.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3.2.
Every chunk is encoded; the objective is differentiated with respect to the vectors; each vector's gradient goes back
through its chunk. Where the chunks' graphs fit into memory they are kept. Else they are dropped, and each chunk is
encoded once more, with a graph, when its turn comes. Both ways add the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from data_shards.collate import Chunk
from encoder.model import Side
from train.batches import StepBatch, Texts
from train.collectives import max_over_ranks
from train.objective import LossOutput, Objective
from train.seeds import seed_everything

Encode = Callable[[Chunk, Side], Tensor]


class Backend(Protocol):
    """What a step needs of an engine."""

    device: torch.device
    equal_forwards: bool
    equal_backwards: bool

    def forward(self, *inputs: Any) -> Any:
        """Return the chunk's vectors [B, D]."""

    def sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Surround one chunk's passes; gradients are averaged over ranks in the last one at the latest."""

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One chunk in the sequence of passes."""

    chunk: Chunk
    side: Side
    number: int
    """In the step: dropout is drawn from it."""
    idle: bool
    """Encoded only because another rank has one chunk more, and every pass is a collective."""


def train_step(
    backend: Backend,
    batches: Sequence[StepBatch],
    objective: Objective,
    *,
    seed: int,
    keep_graphs: bool,
    two_towers: bool = False,
    base: Encode | None = None,
    details: bool = False,
    phase: Callable[[str], None] = lambda name: None,
) -> list[LossOutput]:
    """Leave the global batch's gradient in the parameters.

    Args:
        backend: encodes and differentiates.
        batches: this rank's part of the global batch; several are contrasted each within itself, and averaged.
        objective: from vectors to the loss and its gradient.
        seed: dropout is drawn from (seed, step, rank, chunk), so that a second pass repeats the first.
        keep_graphs: encode once and hold every chunk's graph, instead of twice and one.
        two_towers: whether queries and passages have weights of their own.
        base: the model to stay close to, where the objective asks for it.
        details: also return what only logged steps show.
        phase: told what begins.
    """
    outputs = []
    number = 0
    for place, batch in enumerate(batches):
        turns = _turns(backend, batch, number)
        number += len(turns)
        output = _contrast(
            backend,
            batch,
            turns,
            objective,
            seed=seed,
            keep_graphs=keep_graphs,
            last=place == len(batches) - 1,
            share=1 / len(batches),
            two_towers=two_towers,
            base=base,
            details=details,
            phase=phase,
        )
        outputs.append(output)
    return outputs


def _contrast(
    backend: Backend,
    batch: StepBatch,
    turns: list[_Turn],
    objective: Objective,
    *,
    seed: int,
    keep_graphs: bool,
    last: bool,
    share: float,
    two_towers: bool,
    base: Encode | None,
    details: bool,
    phase: Callable[[str], None],
) -> LossOutput:
    """Encode, score and differentiate one batch."""

    def encode(turn: _Turn) -> Tensor:
        seed_everything(seed, batch.step, turn.number)
        vector_BD: Tensor = backend.forward(turn.chunk.input_ids, turn.chunk.attention_mask, turn.side)
        return vector_BD

    groups = _groups(turns, together=keep_graphs, two_towers=two_towers, equal=backend.equal_backwards)
    phase("forward")
    with backend.sync(last=last and keep_graphs):
        with torch.set_grad_enabled(keep_graphs):
            parts = [encode(turn) for turn in turns]
        phase("loss")
        output, gradients = _differentiate(batch, turns, parts, objective, base, details)
        phase("backward")
        if keep_graphs:
            backend.backward(_surrogate(parts, gradients, share))
            return output
    for place, group in enumerate(groups):
        with backend.sync(last=last and place == len(groups) - 1):
            vectors = [encode(turns[k]) for k in group]
            backend.backward(_surrogate(vectors, [gradients[k] for k in group], share))
    return output


def _turns(backend: Backend, batch: StepBatch, number: int) -> list[_Turn]:
    """Return the chunks of both sides, with idle ones where passes have to be equally many on all ranks."""
    turns: list[_Turn] = []
    sides: tuple[tuple[Side, Texts], ...] = (("query", batch.queries), ("passage", batch.passages))
    for side, texts in sides:
        chunks = [chunk.to(backend.device) for chunk in texts.chunks]
        passes = len(chunks)
        if backend.equal_forwards or backend.equal_backwards:
            passes = max_over_ranks(passes, backend.device)
        for k in range(passes):
            chunk = chunks[min(k, len(chunks) - 1)]
            turns.append(_Turn(chunk, side, number + len(turns), idle=k >= len(chunks)))
    return turns


def _groups(turns: list[_Turn], *, together: bool, two_towers: bool, equal: bool) -> list[list[int]]:
    """Say which chunks go back in which pass: one by one, in the order in which autograd takes a joint graph apart.

    With two towers the last pass, in which gradients are averaged, has to reach the weights of both.
    """
    order = [k for k in reversed(range(len(turns))) if equal or not turns[k].idle]
    if not two_towers:
        return [[k] for k in order]
    queries, passages = ([k for k in order if turns[k].side == side] for side in ("query", "passage"))
    return [[k] for k in (*passages[:-1], *queries[:-1])] + [[queries[-1], passages[-1]]]


def _differentiate(
    batch: StepBatch,
    turns: list[_Turn],
    parts: list[Tensor],
    objective: Objective,
    base: Encode | None,
    details: bool,
) -> tuple[LossOutput, list[Tensor]]:
    """Return the loss, and for each turn the gradient of its rows."""
    live = [(turn, part.detach()) for turn, part in zip(turns, parts, strict=True) if not turn.idle]
    sides = {side: [row for row in live if row[0].side == side] for side in ("query", "passage")}
    texts = {"query": batch.queries, "passage": batch.passages}
    vectors = {side: _in_order(rows, texts[side]) for side, rows in sides.items()}
    based = {}
    if base is not None:
        with torch.no_grad():
            for side, rows in sides.items():
                encoded = [(turn, base(turn.chunk, turn.side)) for turn, _ in rows]
                based[f"base_{side}_{'b' if side == 'query' else 'n'}D"] = _in_order(encoded, texts[side])
    labels = batch.labels.to(parts[0].device)
    output = objective(vectors["query"], vectors["passage"], labels, **based, details=details)
    gradients = {
        "query": _of_texts(output.query_grad_bD, batch.queries),
        "passage": _of_texts(output.passage_grad_nD, batch.passages),
    }
    return output, [
        torch.zeros_like(part) if turn.idle else gradients[turn.side][turn.chunk.rows]
        for turn, part in zip(turns, parts, strict=True)
    ]


def _in_order(rows: list[tuple[_Turn, Tensor]], texts: Texts) -> Tensor:
    """Put the chunks' vectors where their texts stand in the batch; equal texts share one."""
    places = torch.cat([turn.chunk.rows for turn, _ in rows])
    vector_uD = torch.cat([part for _, part in rows])[places.argsort()]
    return vector_uD[texts.places.to(vector_uD.device)]


def _of_texts(gradient_bD: Tensor, texts: Texts) -> Tensor:
    """Add the gradients of equal texts up."""
    total_uD = gradient_bD.new_zeros((texts.distinct, gradient_bD.shape[1]))
    return total_uD.index_add_(0, texts.places.to(gradient_bD.device), gradient_bD)


def _surrogate(vectors: Sequence[Tensor], gradients: Sequence[Tensor], share: float) -> Tensor:
    """Return a scalar whose gradient with respect to the vectors is the given one."""
    products = [(vector * gradient).sum() for vector, gradient in zip(vectors, gradients, strict=True)]
    return torch.stack(products).sum() * share
