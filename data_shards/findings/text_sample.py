"""A sample of a dataset's distinct texts that does not depend on shards, order or repetitions."""

from __future__ import annotations

import heapq
import random
from typing import Generic, TypeVar

T = TypeVar("T")


class BottomK(Generic[T]):
    """Keeps what came under the smallest keys, each key once: a uniform sample, where keys are hashes."""

    def __init__(self, size: int, seed: int = 0) -> None:
        """Begin empty.

        Args:
            size: how many to keep.
            seed: another seed, another sample.
        """
        self._size = size
        self._turn = random.Random(seed).getrandbits(64)
        self._kept: dict[int, T] = {}
        self._largest: list[int] = []  # negated, so that the heap's first is the largest kept

    def wants(self, key: int) -> bool:
        """Tell whether something under this key would be kept."""
        turned = key ^ self._turn
        if turned in self._kept:
            return False
        return len(self._kept) < self._size or (bool(self._largest) and turned < -self._largest[0])

    def put(self, key: int, item: T) -> None:
        """Keep an item if it is wanted; what is no longer among the smallest is let go."""
        if not self.wants(key):
            return
        turned = key ^ self._turn
        self._kept[turned] = item
        heapq.heappush(self._largest, -turned)
        if len(self._kept) > self._size:
            del self._kept[-heapq.heappop(self._largest)]

    def items(self) -> list[T]:
        """Return what was kept, in the order of the keys."""
        return [self._kept[key] for key in sorted(self._kept)]
