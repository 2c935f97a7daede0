"""Cuts a batch into chunks of nearly equal length and bounded size, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def chunks_by_tokens(lengths: Sequence[int], tokens_per_chunk: int) -> list[IntArray]:
    """Sort by length and cut into chunks whose padded size stays within a budget.

    Longest first: a budget that does not fit into memory then fails on the first chunk, not on the last.

    Args:
        lengths: tokens of each text.
        tokens_per_chunk: most tokens a chunk may hold, padding counted. A single longer text gets a chunk of
            its own.

    Returns:
        Positions into `lengths`, each exactly once. Equal lengths keep their order, so the cut is the same on
        every run.
    """
    if tokens_per_chunk < 1:
        raise ValueError(f"tokens_per_chunk must be at least 1, came {tokens_per_chunk}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    chunks: list[IntArray] = []
    start = 0
    while start < len(order):
        rows = max(1, tokens_per_chunk // max(1, int(sizes[order[start]])))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks
