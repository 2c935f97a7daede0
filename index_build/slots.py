"""Slots: where in a FAISS index a passage lies, once passages were added, replaced and deleted.

FAISS numbers vectors as they are added; such a number is a *slot*. In a fresh index the slot is the row of the
embedding set. Later a passage that is gone leaves a dead slot behind, and a new one gets the next free number. So
a slot keeps its meaning for as long as the index is not built anew, and the file below tells the rest:

    slots.npy    int64 [slots]: the row of the embedding set, or -1 for a dead slot

No ID map is asked to do this: over inverted lists FAISS's own mixes ids up after a merge or a removal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from data_shards.npy import npy_bytes

SLOTS_NAME = "slots.npy"
DEAD = -1

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]


class Slots:
    """Which row each slot holds."""

    def __init__(self, rows: Int64s) -> None:
        """Take the row of each slot; -1 is dead."""
        self.rows = rows

    @classmethod
    def fresh(cls, count: int) -> Slots:
        """Return the slots of an index as it is built: each holds its own row."""
        return cls(np.arange(count, dtype=np.int64))

    @classmethod
    def read(cls, folder: Path, count: int) -> Slots:
        """Read a version's slots; without a file they are fresh ones.

        Raises:
            UserError: the file is not what it should be.
        """
        path = folder / SLOTS_NAME
        if not path.exists():
            return cls.fresh(count)
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); roll back to another version") from None
        if rows.dtype != np.int64 or rows.shape != (count,):
            raise UserError(f"{path} should hold {count} slots, came {rows.dtype} {rows.shape}; roll back")
        return cls(rows)

    def write(self, folder: Path) -> None:
        """Write them into a version's folder."""
        (folder / SLOTS_NAME).write_bytes(npy_bytes(self.rows))

    def __len__(self) -> int:
        """Return how many slots there are, dead ones included."""
        return len(self.rows)

    @property
    def dead(self) -> int:
        """How many are dead."""
        return int((self.rows == DEAD).sum())

    @property
    def fresh_order(self) -> bool:
        """Whether each slot holds its own row."""
        return bool((self.rows == np.arange(len(self.rows))).all())

    def living_bits(self) -> Bytes:
        """Return a bit a slot, set where it is alive, the lowest bit first: as FAISS's bitmap selector reads it."""
        return np.packbits(self.rows != DEAD, bitorder="little")

    def rows_of(self, slots: Int64s) -> Int64s:
        """Return the rows of slots; -1 stays -1."""
        if not len(self.rows):
            return np.full_like(slots, DEAD)
        found: Int64s = np.where(slots < 0, DEAD, self.rows[np.maximum(slots, 0)])
        return found

    def living_rows(self, rows: int) -> Bools:
        """Return which of so many rows lie in a living slot."""
        there = np.zeros(rows, dtype=np.bool_)
        there[self.rows[self.rows != DEAD]] = True
        return there
