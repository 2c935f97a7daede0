"""Rows joined to groups: union-find on arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Groups:
    """Disjoint groups of rows; the root of a group is its first row.

    Four bytes a row (eight from 2^32 rows on), and no Python object for any.
    """

    def __init__(self, rows: int) -> None:
        """Begin with each row by itself."""
        self._parents = np.arange(rows, dtype=np.uint32 if rows <= 1 << 32 else np.int64)

    def roots(self, rows: Rows) -> Rows:
        """Return the first row of each row's group."""
        found = self._parents[rows]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parents[rows] = found  # shortens the way for the next time
        return found.astype(np.int64)

    def join(self, left: Rows, right: Rows) -> None:
        """Make one group of each pair's two."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            left, right = left[apart], right[apart]
            # Roots hang below smaller roots only, so no circle can arise; a root that is named several times takes
            # the smallest, and the other pairs are looked at again.
            low, high = np.minimum(left, right), np.maximum(left, right)
            np.minimum.at(self._parents, high, low.astype(self._parents.dtype))

    def followers(self) -> NDArray[np.bool_]:
        """Return True for each row that is not the first of its group."""
        is_follower: NDArray[np.bool_] = self._parents != np.arange(len(self._parents), dtype=self._parents.dtype)
        return is_follower
