"""Makes what the next steps need while the current one computes, and fetches shards for those to come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_shards.order import GlobalOrder

FETCH_EVERY_STEPS = 32
"""How often remote shards that will be needed are asked for."""
_FETCH_LOOKS = 8

Item = TypeVar("Item")


class Samples(Protocol):
    """What has to be known of a dataset whose shards may be on another machine."""

    @property
    def is_remote(self) -> bool:
        """Whether any is."""

    def prefetch(self, ordinals: NDArray[np.int64]) -> None:
        """Fetch the shards of some samples in the background."""


def fetch_ahead(dataset: Samples, order: GlobalOrder, *, shards: int, step: int, rank: int, world: int) -> None:
    """Fetch what a rank comes to while it consumes about half a shard in each lane; nothing where all is here.

    A few steps of that stretch name nearly all shards that it touches.
    """
    if not dataset.is_remote:
        return
    reach = order.samples / shards * order.lanes / order.batch_size / 2
    steps = np.unique(np.linspace(step, step + max(reach, FETCH_EVERY_STEPS), _FETCH_LOOKS).astype(int))
    dataset.prefetch(np.concatenate([order.rank_slice(int(at), rank, world) for at in steps]))


def read_ahead(make: Callable[[int], Item], start: int, stop: int, *, depth: int) -> Iterator[Item]:
    """Yield `make(step)` for each step from `start` up to `stop`, made in a thread that is `depth` items ahead.

    What the thread raises is raised here. Leaving the iterator early ends the thread.
    """
    ready: queue.Queue[Item | BaseException] = queue.Queue(depth)
    leaving = threading.Event()

    def put(item: Item | BaseException) -> bool:
        while not leaving.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for step in range(start, stop):
                if not put(make(step)):
                    return
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=run, name="batches", daemon=True)
    reader.start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        leaving.set()
        reader.join()
