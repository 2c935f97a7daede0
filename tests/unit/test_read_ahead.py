"""Items come in order from a thread that never outlives its reader."""

from __future__ import annotations

import threading
import time

import pytest

from train.read_ahead import read_ahead


def readers() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_items_come_in_order_and_the_thread_ends() -> None:
    assert list(read_ahead(lambda step: step * step, 3, 7, depth=2)) == [9, 16, 25, 36]
    assert list(read_ahead(lambda step: step, 5, 5, depth=1)) == []
    assert readers() == 0


def test_it_is_ahead_by_so_many_and_no_more() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    items = read_ahead(make, 0, 100, depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2, 3], "one is taken, two wait, one is in the thread's hand"
    items.close()
    assert readers() == 0


def test_what_the_thread_raises_is_raised_where_its_item_is_due() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise RuntimeError("no such step")
        return step

    items = read_ahead(make, 0, 5, depth=4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="no such step"):
        next(items)
    assert readers() == 0
