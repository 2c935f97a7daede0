"""Embeds and searches a fixed set of texts with all ranks, so that nothing computed depends on how many there are.

Axes: n texts, q queries, p passages, D dimensions, k neighbours, B texts of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_shards.collate import Chunk, pad_chunks
from encoder.model import Side
from train.collectives import gather_rows, rank, world_size
from train.full_precision import full_precision
from train.health import TrainingDivergedError

Encode = Callable[[Chunk, Side], Tensor]
"""A chunk on the device to its vectors [B, D]."""

_BLOCK_QUERIES = 64
_BLOCK_PASSAGES = 16_384
"""Scores that are held at once: 4 MiB. Fixed, for a product's last bits depend on its shape."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """One side's texts as chunks, dealt to the ranks in turn."""

    side: Side
    chunks: list[Chunk]
    """This rank's, as many as every other rank's: a rank that has fewer repeats one."""
    kept: int
    """How many of them are no repetition."""
    places_n: Tensor
    """Where each gathered row stands among the texts: the ranks' chunks one after the other."""


def deal(token_ids: Sequence[Sequence[int]], side: Side, *, pad_id: int, tokens_per_chunk: int) -> Dealt:
    """Cut all texts into chunks of similar length and take this rank's share.

    Every rank gets equally many, since a forward pass under ZeRO-3 or FSDP is a collective.
    """
    chunks = pad_chunks(token_ids, pad_id=pad_id, tokens_per_chunk=tokens_per_chunk)
    world = world_size()
    mine = chunks[rank() :: world]
    rounds = -(-len(chunks) // world)
    repeated = [mine[-1] if mine else chunks[0]] * (rounds - len(mine))
    places = [chunk.rows for at in range(world) for chunk in chunks[at::world]]
    return Dealt(side, mine + repeated, len(mine), torch.cat(places))


def embed_on_all_ranks(encode: Encode, dealt: Dealt, device: torch.device) -> Tensor:
    """Return the float32 vectors [n, D] of all texts, in their order, on every rank.

    Raises:
        TrainingDivergedError: a vector is not finite; on every rank alike.
    """
    vectors = [encode(chunk.to(device), dealt.side).float() for chunk in dealt.chunks]
    mine_bD = torch.cat(vectors[: dealt.kept]) if dealt.kept else vectors[0][:0]
    gathered_nD = gather_rows(mine_bD)
    if not bool(gathered_nD.isfinite().all()):
        raise TrainingDivergedError(
            f"the encoder gives {dealt.side} vectors that hold NaN or infinity; lower optimizer.learning_rate, or "
            "set engine.precision to float32"
        )
    vector_nD = torch.empty_like(gathered_nD)
    vector_nD[dealt.places_n.to(device)] = gathered_nD
    return vector_nD


def nearest_on_all_ranks(query_qD: Tensor, passage_pD: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return scores and places [q, depth] of each query's nearest passages, best first, on every rank.

    Each rank searches blocks of queries; the blocks are the same on any number of ranks. Which of equal scores at the
    edge is kept is left to `topk`, and so is the same on every rank.
    """
    blocks = torch.arange(len(query_qD), device=query_qD.device).split(_BLOCK_QUERIES)
    found = [_nearest(query_qD[block], passage_pD, depth) for block in blocks[rank() :: world_size()]]
    # An empty part for the ranks that no block falls to.
    none = (passage_pD.new_empty(0, depth), torch.empty(0, depth, dtype=torch.int64, device=passage_pD.device))
    scores, places = (gather_rows(torch.cat([part, *parts])) for part, *parts in zip(none, *found, strict=True))
    order = torch.cat([block for at in range(world_size()) for block in blocks[at :: world_size()]])
    score_qk, place_qk = torch.empty_like(scores), torch.empty_like(places)
    score_qk[order], place_qk[order] = scores, places
    return score_qk, place_qk


def _nearest(query_bD: Tensor, passage_pD: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    best_bk = query_bD.new_empty(len(query_bD), 0)
    place_bk = torch.empty(len(query_bD), 0, dtype=torch.int64, device=query_bD.device)
    first = 0
    with full_precision(query_bD.device):  # the caller may stand in autocast
        for block_cD in passage_pD.split(_BLOCK_PASSAGES):
            score_bk, row_bk = (query_bD @ block_cD.T).topk(min(depth, len(block_cD)))
            both_bk = torch.cat([best_bk, score_bk], 1)
            places = torch.cat([place_bk, row_bk + first], 1)
            best_bk, order_bk = both_bk.sort(dim=1, descending=True, stable=True)
            best_bk, place_bk = best_bk[:, :depth], places.gather(1, order_bk[:, :depth])
            first += len(block_cD)
    return best_bk, place_bk
