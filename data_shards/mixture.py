"""Which source each slot of the global stream belongs to, so that every stretch keeps the sources' shares.

Slot j stands at frac(j / golden ratio) on a circle that the sources divide by weight: of all sequences this one
spreads most evenly, so any window holds each source's share to within a slot or two. How many of the first n slots
are a source's is a sum of floors, found in logarithmic time: no replay, at slot 10^12 as at slot 10.

Source: Steinhaus' three-gap theorem for the evenness; Graham, Knuth and Patashnik, "Concrete Mathematics", section
3.5, for the sum of floors by a Euclidean descent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_CIRCLE = 1 << 32
_STEP = 2654435769  # 2**32 / golden ratio, odd: every point of the circle is visited before any repeats


class Mixture:
    """Slots of an endless stream, dealt out to sources by weight."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Divide the circle; weights are positive and need not sum to 1."""
        shares = np.cumsum(np.asarray(weights, dtype=np.float64))
        self._borders = [0, *(int(share / shares[-1] * _CIRCLE) for share in shares[:-1]), _CIRCLE]

    def sources(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the source of each slot from `begin` up to, not including, `end`."""
        slots = np.arange(begin, end, dtype=np.uint64)
        points = slots * np.uint64(_STEP) % np.uint64(_CIRCLE)
        inner = np.array(self._borders[1:-1], dtype=np.uint64)
        found: NDArray[np.int64] = np.searchsorted(inner, points, side="right").astype(np.int64)
        return found

    def count(self, source: int, slots: int) -> int:
        """Return how many of the first `slots` slots belong to a source."""
        low, high = self._borders[source], self._borders[source + 1]
        return floor_sum(slots, _CIRCLE, _STEP, _CIRCLE - low) - floor_sum(slots, _CIRCLE, _STEP, _CIRCLE - high)


def floor_sum(count: int, divisor: int, slope: int, offset: int) -> int:
    """Return the sum of (slope * j + offset) // divisor over 0 <= j < `count`; nothing is negative."""
    total = 0
    while count:
        total += count * (count - 1) // 2 * (slope // divisor) + count * (offset // divisor)
        slope, offset = slope % divisor, offset % divisor
        # Count the lattice points below the line by columns of the mirrored line instead.
        count, offset = divmod(slope * count + offset, divisor)
        slope, divisor = divisor, slope
    return total
