"""Exact repetitions in any number of rows: of those with one key, the first stays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from data_shards.hash_spool import UNKNOWN_PLACE, HashSpool

Keys = NDArray[np.uint64]

SAME, OTHER = 1, 2
"""A row that repeats an earlier one of its key; a row of an earlier one's key that holds something else."""


def mark_repeats(tables: Iterable[Keys], marks: NDArray[np.uint8]) -> None:
    """Mark every row whose key came before, as `SAME` or, where its content differs from the first's, as `OTHER`.

    A row that repeats an `OTHER` one of its own table may be marked as either.

    Memory stays flat: a table is looked at by itself, what is then left of all is sorted in a temporary file. By the
    birthday bound, 10^9 different keys hold a pair that meets by chance with probability 0.03.

    Args:
        tables: [rows, 2] each: key and content.
        marks: one for each row of all tables, 0 beforehand; may be a file mapped into memory.

    Raises:
        UserError: there are more rows than can be numbered, or no room for the temporary file.
    """
    if len(marks) >= UNKNOWN_PLACE:
        raise UserError(f"{len(marks)} rows are too many for one dataset; import them as several")
    spool, begin = HashSpool(wide=True), 0
    for table in tables:
        places = np.arange(begin, begin + len(table))
        begin += len(table)
        # Without this, a key that comes 10^8 times would have to be sorted at once.
        firsts = _mark(table[:, 0], table[:, 1], places, marks)
        spool.add(table[firsts, 0], table[firsts, 1], places[firsts])
    for (rows,) in spool.groups():
        _mark(rows["key"], rows["value"], rows["place"].astype(np.int64), marks)


def _mark(keys: Keys, contents: Keys, places: NDArray[np.int64], marks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Mark repetitions among some rows; return which rows are the first of their key."""
    if not len(keys):
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((places, keys))
    key, content = keys[order], contents[order]
    is_first = np.concatenate([[True], key[1:] != key[:-1]])
    first_content = content[is_first][np.cumsum(is_first) - 1]
    later = ~is_first
    marks[places[order][later]] = np.where(content == first_content, SAME, OTHER)[later]
    return np.sort(order[is_first])
