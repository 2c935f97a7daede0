"""Distributions in fixed memory: of lengths and counts, exactly, and of weights, by bins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST = 1 << 17
"""Longer texts are counted as so long; half a million characters is no passage any more."""
_BINS = 48
_DECADES = (-6, 6)
_BINS_PER_DECADE = 8


class Lengths:
    """How often each whole number from 0 to `_LONGEST` came."""

    def __init__(self) -> None:
        """Begin empty."""
        self._counts = np.zeros(_LONGEST + 1, dtype=np.int64)
        self._total = 0
        self._largest = 0

    def add(self, values: Iterable[int]) -> None:
        """Count values."""
        array = np.fromiter(values, dtype=np.int64)
        if not len(array):
            return
        self._total += int(array.sum())
        self._largest = max(self._largest, int(array.max()))
        seen, counts = np.unique(np.minimum(array, _LONGEST), return_counts=True)
        self._counts[seen] += counts

    @property
    def count(self) -> int:
        """How many values came."""
        return int(self._counts.sum())

    def above(self, limit: int) -> int:
        """Return how many values are greater."""
        return int(self._counts[limit + 1 :].sum())

    def describe(self) -> dict[str, float]:
        """Return mean, percentiles (the smallest value that so many do not exceed) and maximum."""
        reached = np.cumsum(self._counts)
        low, middle, high = (
            int(np.searchsorted(reached, math.ceil(share * reached[-1]))) for share in (0.05, 0.5, 0.95)
        )
        mean = round(self._total / max(1, self.count), 1)
        return {"mean": mean, "p5": low, "p50": middle, "p95": high, "max": self._largest}

    def histogram(self) -> dict[str, list[int]]:
        """Return counts over bins that grow geometrically: `counts[i]` is of `edges[i] <= n < edges[i+1]`."""
        longest = min(self._largest, _LONGEST)
        edges = np.unique(np.geomspace(1, longest + 1, _BINS + 1).round().astype(np.int64))
        edges = np.concatenate([[0], edges]) if self._counts[0] or len(edges) < 2 else edges
        return {"edges": edges.tolist(), "counts": np.add.reduceat(self._counts[: longest + 1], edges[:-1]).tolist()}

    def by_value(self, most: int = 20) -> dict[str, int]:
        """Return how often each value came; those above `most` together, under `>most`."""
        seen = np.flatnonzero(self._counts[: most + 1]).tolist()
        rest = {f">{most}": self.above(most)} if self.above(most) else {}
        return {**{str(value): int(self._counts[value]) for value in seen}, **rest}


class Weights:
    """Numbers above zero: their range, spread, and how much of the data they leave in effect."""

    def __init__(self) -> None:
        """Begin empty."""
        self._counts = np.zeros((_DECADES[1] - _DECADES[0]) * _BINS_PER_DECADE, dtype=np.int64)
        self._sum = self._squares = 0.0
        self._low, self._high = math.inf, 0.0
        self.count = 0
        """How many came."""

    def add(self, values: NDArray[np.float64]) -> None:
        """Count values, all finite and above 0."""
        if not len(values):
            return
        self.count += len(values)
        self._sum += float(values.sum())
        self._squares += float((values**2).sum())
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        bins = np.floor((np.log10(values) - _DECADES[0]) * _BINS_PER_DECADE).astype(np.int64)
        self._counts += np.bincount(bins.clip(0, len(self._counts) - 1), minlength=len(self._counts))

    @property
    def effective_share(self) -> float:
        """Kish's effective sample size over the number of samples: 1 where all weigh the same."""
        return self._sum**2 / (self.count * self._squares) if self.count else 1.0

    def describe(self) -> dict[str, Any]:
        """Return the range, the mean, the effective share, and a histogram with ten-based logarithmic bins."""
        used = np.flatnonzero(self._counts)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        exponents = np.arange(first, last + 2) / _BINS_PER_DECADE + _DECADES[0]
        return {
            "min": self._low,
            "mean": self._sum / max(1, self.count),
            "max": self._high,
            "effective_share": round(self.effective_share, 4),
            "histogram": {
                "edges": [float(f"{10**exponent:.4g}") for exponent in exponents],
                "counts": self._counts[first : last + 1].tolist(),
            },
        }
