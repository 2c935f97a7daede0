"""Pairs that share a positive change places, within their group, until as few as can be meet in a batch."""

from __future__ import annotations

import time

import numpy as np
import pytest

from data_shards.spread import spread_positives

Block = list[list[int]]


def spread(positives: Block, groups: Block | None = None) -> Block:
    """Return the spread block of samples 0, 1, 2, … as the positives that then stand in each batch."""
    hashes = np.array(positives, dtype=np.int64)
    ordinals = np.arange(hashes.size).reshape(hashes.shape)
    of = np.array(groups, dtype=np.int64) if groups else np.zeros_like(hashes)
    found = spread_positives(ordinals, of, hashes)
    assert sorted(found.ravel().tolist()) == ordinals.ravel().tolist(), "each sample once"
    assert (of.ravel()[found] == of).all(), "none has left its group"
    assert (ordinals.ravel() == np.arange(hashes.size)).all(), "the arguments stay as they are"
    moved: Block = hashes.ravel()[found].tolist()
    return moved


def repeats(block: Block) -> list[int]:
    return [len(row) - len(set(row)) for row in block]


def test_two_that_share_a_positive_part() -> None:
    """The second of them goes to the next batch, and what stood at the same place there comes back."""
    assert spread([[1, 1, 2], [3, 4, 5]]) == [[1, 3, 2], [1, 4, 5]]


def test_what_does_not_clash_stays() -> None:
    assert spread([[1, 2, 3], [3, 2, 1]]) == [[1, 2, 3], [3, 2, 1]]


def test_a_partner_that_would_clash_is_passed_over() -> None:
    """Batch 1 holds a 1 already; of batch 2 the 2 stands in batch 0, the 6 does not."""
    assert spread([[1, 1, 2], [1, 4, 5], [2, 6, 7]]) == [[1, 6, 2], [1, 4, 5], [2, 1, 7]]


def test_an_earlier_batch_is_a_partner_too() -> None:
    assert spread([[3, 4, 5], [1, 1, 2]]) == [[1, 4, 5], [1, 3, 2]]


def test_groups_are_never_mixed() -> None:
    clash, groups = [[1, 1], [2, 3]], [[0, 0], [7, 0]]
    assert spread(clash, groups) == [[1, 3], [2, 1]]
    assert spread(clash, [[0, 5], [0, 0]]) == [[2, 1], [1, 3]], "the first one moves where the second cannot"
    assert spread(clash, [[0, 0], [7, 7]]) == clash, "nobody to change places with"


def test_a_positive_that_every_batch_must_hold_twice_stays() -> None:
    block = [[1, 1, 1], [1, 1, 1]]
    assert spread(block) == block
    assert sorted(repeats(spread([[1, 1, 1, 1], [2, 3, 4, 5]]))) == [0, 2], "one may part, two must stay"


def test_unknown_positives_are_no_shared_one() -> None:
    """A hash of 0 says that the pair could not be read."""
    block = [[0, 0, 1], [4, 2, 3]]
    assert spread(block) == block


@pytest.mark.parametrize("seed", range(5))
def test_no_batch_is_left_with_more_than_before_and_most_with_none(seed: int) -> None:
    """640 pairs, three to a positive."""
    positives = (1 + np.random.default_rng(seed).permutation(640).reshape(10, 64) // 3).tolist()
    groups = np.tile(np.repeat(np.arange(8), 8), (10, 1)).tolist()
    before, after = repeats(positives), repeats(spread(positives, groups))
    assert sum(before) > 30
    assert sum(after) <= 1


def test_a_positive_of_every_second_pair_costs_little_time() -> None:
    """Few can move, and looking for a place for each must not take longer than the step."""
    hashes = np.random.default_rng(0).integers(1, 5, (16, 1024)).tolist()
    began = time.process_time()
    spread(hashes)
    assert time.process_time() - began < 5, "a minute, where every clash looks through the whole block"
