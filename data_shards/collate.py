"""Token ids to padded tensors. The one file of this floor that imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.packing import chunks_by_tokens

CHUNK_COST = 32
"""Tokens that take as long as starting one more chunk."""

# Axes: B rows of a chunk, T tokens.


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Some texts of a batch, of similar length, padded to the longest."""

    rows: Tensor
    """int64 [B]: where each text stands in the batch."""
    input_ids: Tensor
    """int64 [B, T]."""
    attention_mask: Tensor
    """int64 [B, T]: 1 for a token, 0 for padding."""

    def to(self, device: torch.device) -> Chunk:
        """Copy to a device."""
        return Chunk(
            rows=self.rows.to(device),
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
        )


def pad_chunks(
    token_ids: Sequence[Sequence[int] | NDArray[np.integer[Any]]],
    *,
    pad_id: int,
    tokens_per_chunk: int,
    chunk_cost: int = CHUNK_COST,
    multiple_of: int = 1,
    rows_multiple_of: int = 1,
) -> list[Chunk]:
    """Cut tokenised texts into padded chunks, longest first.

    Args:
        token_ids: one list or array of ids a text, special tokens included, none empty.
        pad_id: what fills the rest of a row.
        tokens_per_chunk: see `chunks_by_tokens`.
        chunk_cost: see `chunks_by_tokens`.
        multiple_of: chunks are padded to a multiple of this length, so that they come in fewer shapes.
        rows_multiple_of: see `chunks_by_tokens`; for the same end.

    Returns:
        Chunks whose `rows` together hold each position of `token_ids` once.
    """
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    flat = np.concatenate([np.empty(0, dtype=np.int64), *(np.asarray(ids, dtype=np.int64) for ids in token_ids)])
    begins = np.cumsum(lengths) - lengths
    chunks = []
    padded = -(-lengths // multiple_of) * multiple_of
    for rows in chunks_by_tokens(padded, tokens_per_chunk, chunk_cost, rows_multiple_of):
        columns = np.arange(padded[rows[0]])
        mask = columns < lengths[rows, None]
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        input_ids[mask] = flat[(begins[rows, None] + columns)[mask]]
        chunks.append(
            Chunk(
                rows=torch.from_numpy(rows),
                input_ids=torch.from_numpy(input_ids),
                attention_mask=torch.from_numpy(mask.astype(np.int64)),
            )
        )
    return chunks


def pad_rows(token_ids: Sequence[Sequence[int]], pad_id: int) -> Chunk:
    """Pad tokenised texts to the longest, in the order given: one chunk, whose `rows` count up."""
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids])
    return Chunk(
        rows=torch.arange(len(lengths)),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
    )
