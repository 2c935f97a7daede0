"""Embeds many texts at once, as fast as one process can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from data_shards.collate import pad_chunks
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
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Encode texts in batches of similar length.

    The encoder's mode is left as it was; dropout is off meanwhile.

    Args:
        encoder: on any device.
        texts: any number; each is cut to the encoder's `max_tokens`.
        side: chooses the prompt.
        precision: `bfloat16` computes matrix products in bfloat16; the result is float32 either way.
        tokens_per_batch: most tokens in a forward pass, padding counted.
        progress: called with (texts done, texts in all) after each batch.

    Returns:
        float32 [len(texts), encoder.dim], in the order of `texts`.
    """
    device = next(encoder.parameters()).device
    vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
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
                    vector_BD = encoder(on_device.input_ids, on_device.attention_mask)
                    vectors[rows] = vector_BD.float().cpu().numpy()
                    done += len(rows)
                    if progress:
                        progress(done, len(texts))
    finally:
        encoder.train(was_training)
    return vectors


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
