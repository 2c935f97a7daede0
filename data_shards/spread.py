"""Moves pairs that share a positive into different batches, where that can be done.

Two such pairs in one batch are each other's false negatives. Within a block of a few batches one of them changes
places with a pair of the same group (the same lane, source and epoch): the batches keep their make-up, ranks keep
reading the same shards, and an epoch still holds each sample once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

_TRIES = 64  # of a very common positive's pairs few find a place; looking through all others took minutes

Int64s = NDArray[np.int64]


def spread_positives(ordinals: Int64s, groups: Int64s, positives: Int64s) -> Int64s:
    """Return the block with as few shared positives within a batch as exchanges can reach.

    Args:
        ordinals: [batches, batch size]: the samples of a block.
        groups: of the same shape: only samples of one group change places.
        positives: of the same shape: the hash of each sample's positive; 0 where it is not known.

    Returns:
        The block's samples, each once; a function of the arguments alone.
    """
    spread: Int64s = ordinals.copy()
    hashes: Int64s = positives.copy()
    ordered = np.sort(hashes, axis=1)  # most batches have no repeats, and this is the cheapest way to see it
    repeats = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0)).any(axis=1)
    clashes = [(row, column) for row in np.flatnonzero(repeats).tolist() for column in _repeats(hashes[row])]
    if not clashes:
        return spread
    held = [Counter(row.tolist()) for row in hashes]
    partners = _Partners(groups)
    for row, column in clashes:
        mine = int(hashes[row, column])
        if held[row][mine] < 2:  # an earlier exchange has solved it
            continue
        is_free = [not batch[mine] for batch in held].__getitem__
        for other_row, other_column in islice(partners.of(row, column, is_free), _TRIES):
            theirs = int(hashes[other_row, other_column])
            if held[row][theirs]:
                continue
            for block in (spread, hashes):
                block[row, column], block[other_row, other_column] = (
                    block[other_row, other_column],
                    block[row, column],
                )
            held[row][mine] -= 1
            held[row][theirs] += 1
            held[other_row][theirs] -= 1
            held[other_row][mine] += 1
            break
    return spread


def _repeats(hashes: Int64s) -> list[int]:
    """Return the columns whose hash stands more than once; the first of each hash last, as the last to be moved."""
    _, first, which, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    repeated = (counts[which] > 1) & (hashes != 0)
    leading = np.zeros(len(hashes), dtype=bool)
    leading[first] = True
    columns: list[int] = [*np.flatnonzero(repeated & ~leading).tolist(), *np.flatnonzero(repeated & leading).tolist()]
    return columns


class _Partners:
    """Finds the places of a block that one may change places with."""

    def __init__(self, groups: Int64s) -> None:
        self._groups, self._columns = groups, groups.shape[1]
        flat = groups.ravel()
        self._places = np.argsort(flat, kind="stable")
        self._sorted = flat[self._places]

    def of(self, row: int, column: int, is_free: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
        """Yield the places of the same group in those of the other batches that are free, from the next batch on."""
        group = int(self._groups[row, column])
        begin, end = np.searchsorted(self._sorted, [group, group + 1])
        members = self._places[begin:end]
        for other in (*range(row + 1, len(self._groups)), *range(row)):
            if is_free(other):
                first, last = np.searchsorted(members, [other * self._columns, (other + 1) * self._columns])
                for member in members[first:last].tolist():
                    yield divmod(member, self._columns)
