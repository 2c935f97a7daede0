"""Cuts a batch into chunks of nearly equal length and bounded size, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def chunks_by_tokens(
    lengths: Sequence[int] | IntArray, tokens_per_chunk: int, chunk_cost: int = 0, rows_multiple_of: int = 1
) -> list[IntArray]:
    """Sort by length and cut where padding and the number of chunks together cost least.

    Of all cuts of the sorted lengths into chunks within the budget this is the cheapest, where a chunk costs its
    padded tokens and `chunk_cost` besides (by dynamic programming from the shortest text on).

    Args:
        lengths: tokens of each text.
        tokens_per_chunk: most tokens a chunk may hold, padding counted. A single longer text gets a chunk of
            its own.
        chunk_cost: what one more chunk costs, in tokens: the more, the fewer chunks and the more padding.
        rows_multiple_of: every chunk has a multiple of so many texts, but for the one with the shortest.

    Returns:
        Positions into `lengths`, each exactly once, longest first: a budget that does not fit into memory then fails
        on the first chunk, not on the last. Equal lengths keep their order, so the cut is the same on every run.
    """
    if tokens_per_chunk < 1:
        raise ValueError(f"tokens_per_chunk must be at least 1, came {tokens_per_chunk}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    # Neighbours that stay together count as one text, as long as all of them.
    descending = rows_multiple_of * np.maximum(sizes[order], 1)[::rows_multiple_of]
    costs = np.zeros(len(descending) + 1, dtype=np.int64)  # of the cheapest cut from each text to the end
    stops = np.zeros(len(descending), dtype=np.int64)
    counts = np.arange(1, len(descending) + 1, dtype=np.int64)
    for start in range(len(descending) - 1, -1, -1):
        longest = int(descending[start])
        most = min(max(1, tokens_per_chunk // longest), len(descending) - start)
        options = counts[:most] * longest + costs[start + 1 : start + most + 1]
        # The largest of equally cheap chunks: argmin alone would take the smallest.
        best = most - 1 - int(np.argmin(options[::-1]))
        costs[start] = options[best] + chunk_cost
        stops[start] = start + best + 1
    chunks: list[IntArray] = []
    start = 0
    while start < len(descending):
        chunks.append(order[start * rows_multiple_of : stops[start] * rows_multiple_of])
        start = int(stops[start])
    return chunks
