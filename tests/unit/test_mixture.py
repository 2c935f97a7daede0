"""Which source a slot belongs to: shares that hold in every stretch, and counts that need no replay."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from data_shards.mixture import Mixture, floor_sum

WEIGHTS = [(1.0,), (1.0, 1.0), (5.0, 3.0, 2.0), (0.001, 1.0), (1e-6, 1e6), tuple(float(k) for k in range(1, 30))]


def test_floor_sums_by_hand() -> None:
    assert floor_sum(0, 7, 3, 1) == 0
    assert floor_sum(1, 7, 3, 15) == 2
    assert floor_sum(4, 3, 2, 1) == 0 + 1 + 1 + 2  # 1/3, 3/3, 5/3, 7/3
    assert floor_sum(3, 2, 5, 1) == 0 + 3 + 5  # 1/2, 6/2, 11/2
    assert floor_sum(5, 4, 0, 9) == 10


def test_floor_sums_by_brute_force() -> None:
    dice = random.Random(0)
    for _ in range(2000):
        count, divisor = dice.randrange(40), dice.randrange(1, 30)
        slope, offset = dice.randrange(60), dice.randrange(60)
        assert floor_sum(count, divisor, slope, offset) == sum((slope * j + offset) // divisor for j in range(count))


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: f"{len(weights)} sources")
def test_counts_are_those_of_the_slots(weights: tuple[float, ...]) -> None:
    mixture = Mixture(weights)
    slots = mixture.sources(0, 700)
    for end in (0, 1, 2, 3, 10, 99, 700):
        counts = [mixture.count(source, end) for source in range(len(weights))]
        assert counts == np.bincount(slots[:end], minlength=len(weights)).tolist()


@pytest.mark.parametrize("begin", [0, 12_345, 10**12])
def test_a_stretch_does_not_depend_on_where_it_is_looked_at_from(begin: int) -> None:
    mixture = Mixture((5, 3, 2))
    whole = mixture.sources(begin, begin + 100)
    pieces = [mixture.sources(begin + low, begin + high) for low, high in pairwise([0, 1, 40, 40, 100])]
    assert np.concatenate(pieces).tolist() == whole.tolist()
    counts = [mixture.count(source, begin + 100) - mixture.count(source, begin) for source in range(3)]
    assert counts == np.bincount(whole, minlength=3).tolist()


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: f"{len(weights)} sources")
@pytest.mark.parametrize("begin", [0, 10**9])
def test_every_stretch_holds_the_shares(weights: tuple[float, ...], begin: int) -> None:
    """To within three slots, in any window; independent draws would miss by tens."""
    mixture, total = Mixture(weights), sum(weights)
    for length in (1, 7, 100, 5000):
        found = np.bincount(mixture.sources(begin, begin + length), minlength=len(weights))
        assert np.abs(found - length * np.array(weights) / total).max() <= 3


def test_weights_count_by_their_ratio_alone() -> None:
    one, other = (Mixture(weights).sources(0, 500).tolist() for weights in ((1, 3), (0.25, 0.75)))
    assert one == other
    assert Mixture((1,)).sources(5, 9).tolist() == [0] * 4
