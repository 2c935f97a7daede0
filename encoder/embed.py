"""Embeds many texts at once, as fast as one process can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from data_shards.collate import pad_chunks
from data_shards.errors import UserError
from encoder.model import Encoder, Side

Precision = Literal["float32", "bfloat16"]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_WINDOW_TEXTS = 16_384
"""Texts that are tokenised and sorted together: enough for little padding, bounded for any corpus."""
_CHUNK_COST = 256  # tokens; in a large window few texts stand beside longer ones anyway


def embed_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    side: Side,
    precision: Precision = "float32",
    tokens_per_batch: int = 4096,
    dim: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Encode texts in batches of similar length.

    The encoder's mode is left as it was; dropout is off meanwhile.

    Args:
        encoder: on any device.
        texts: any number; each is cut to the encoder's `max_tokens`.
        side: chooses the prompt, and the tower where there are two.
        precision: `bfloat16` computes matrix products in bfloat16; the result is float32 either way.
        tokens_per_batch: most tokens in a forward pass, padding counted.
        dim: cut vectors to this length, and scale them to length 1 again where the encoder does; None keeps all.
        progress: called with (texts done, texts in all) after each batch.

    Returns:
        float32 [len(texts), dim or encoder.dim], in the order of `texts`.

    Raises:
        UserError: the encoder has fewer dimensions than `dim`.
    """
    if dim is not None and not 1 <= dim <= encoder.dim:
        raise UserError(f"this encoder has {encoder.dim} dimensions; ask for 1 to {encoder.dim} of them, not {dim}")
    device = next(encoder.parameters()).device
    vectors = np.empty((len(texts), dim or encoder.dim), dtype=np.float32)
    was_training = encoder.training
    encoder.eval()
    done = 0
    try:
        with torch.inference_mode(), _autocast(device, precision):
            for start in range(0, len(texts), _WINDOW_TEXTS):
                token_ids = encoder.tokenize(texts[start : start + _WINDOW_TEXTS], side)
                pad_id = encoder.tokenizer.pad_token_id or 0
                chunks = pad_chunks(
                    token_ids, pad_id=pad_id, tokens_per_chunk=tokens_per_batch, chunk_cost=_CHUNK_COST
                )
                for chunk in chunks:
                    rows = chunk.rows.numpy() + start
                    on_device = chunk.to(device)
                    vector_BD = encoder(on_device.input_ids, on_device.attention_mask, side)
                    vectors[rows] = _cut(vector_BD.float(), dim, encoder.settings.normalize).cpu().numpy()
                    done += len(rows)
                    if progress:
                        progress(done, len(texts))
    finally:
        encoder.train(was_training)
    return vectors


def _cut(vector_BD: torch.Tensor, dim: int | None, normalize: bool) -> torch.Tensor:
    if dim is None:
        return vector_BD
    return torch.nn.functional.normalize(vector_BD[:, :dim], dim=-1) if normalize else vector_BD[:, :dim]


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
