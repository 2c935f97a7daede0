"""Makes what the next steps need while the current one computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


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
