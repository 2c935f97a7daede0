"""Token ids to padded tensors. The one file of this floor that imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_shards.packing import chunks_by_tokens

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


def pad_chunks(token_ids: Sequence[Sequence[int]], *, pad_id: int, tokens_per_chunk: int) -> list[Chunk]:
    """Cut tokenised texts into padded chunks, longest first.

    Args:
        token_ids: one list of ids a text, special tokens included, none empty.
        pad_id: what fills the rest of a row.
        tokens_per_chunk: see `chunks_by_tokens`.

    Returns:
        Chunks whose `rows` together hold each position of `token_ids` once.
    """
    chunks = []
    for rows in chunks_by_tokens([len(ids) for ids in token_ids], tokens_per_chunk):
        longest = len(token_ids[rows[0]])
        input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for line, row in enumerate(rows):
            ids = token_ids[row]
            input_ids[line, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            mask[line, : len(ids)] = 1
        chunks.append(Chunk(rows=torch.from_numpy(rows), input_ids=input_ids, attention_mask=mask))
    return chunks
