"""Embeds many texts at once, as fast as one process can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data_shards.errors import UserError
from encoder.batches import Batches, FloatArray, Precision as Precision, inference, windows
from encoder.model import Encoder, Side


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
    """Encode texts in batches of similar length; what one of them cannot take raises, see `care` for the other way.

    The encoder's mode is left as it was; dropout is off meanwhile.

    Args:
        encoder: on any device.
        texts: any number; each is cut to the encoder's `max_tokens`.
        side: chooses the prompt, and the tower where there are two.
        precision: `bfloat16` computes matrix products in bfloat16; the result is float32 either way.
        tokens_per_batch: most tokens in a forward pass, padding counted; halved where memory is short.
        dim: cut vectors to this length, and scale them to length 1 again where the encoder does; None keeps all.
        progress: called with (texts done, texts in all) after each batch.

    Returns:
        float32 [len(texts), dim or encoder.dim], in the order of `texts`.

    Raises:
        UserError: the encoder has fewer dimensions than `dim`.
    """
    check_dim(encoder, dim)
    vectors = np.empty((len(texts), dim or encoder.dim), dtype=np.float32)
    batches = Batches(encoder, side, dim=dim, tokens_per_batch=tokens_per_batch)
    done = 0
    with inference(encoder, precision):
        for window in windows(texts, lambda some, _: encoder.tokenize(some, side)):
            for rows, found in batches.run(window):
                vectors[rows] = found
                done += len(rows)
                if progress:
                    progress(done, len(texts))
    if done != len(texts):
        raise UserError("a text has no tokens, and so no vector; leave out what the tokenizer makes nothing of")
    return vectors


def check_dim(encoder: Encoder, dim: int | None) -> None:
    """Refuse a length that the encoder's vectors do not have.

    Raises:
        UserError: it is not one of theirs.
    """
    if dim is not None and not 1 <= dim <= encoder.dim:
        raise UserError(f"this encoder has {encoder.dim} dimensions; ask for 1 to {encoder.dim} of them, not {dim}")
