"""Chunks of similar length, by hand."""

from __future__ import annotations

import pytest

from data_shards.packing import chunks_by_tokens


def cut(lengths: list[int], budget: int, chunk_cost: int = 0) -> list[list[int]]:
    return [chunk.tolist() for chunk in chunks_by_tokens(lengths, budget, chunk_cost)]


def test_without_a_cost_nothing_is_padded() -> None:
    assert cut([3, 9, 1, 4, 4], 10) == [[1], [3, 4], [0], [2]]


def test_padding_is_weighed_against_chunks() -> None:
    """9 | 4 3 | 1 costs 9 + 8 + 1 and three chunks; 9 | 4 | 3 | 1 costs 1 less and a chunk more."""
    assert cut([3, 9, 1, 4], 10, chunk_cost=2) == [[1], [3, 0], [2]]
    assert cut([3, 9, 1, 4], 12, chunk_cost=9) == [[1], [3, 0, 2]]


def test_the_cheapest_cut_is_not_the_greedy_one() -> None:
    """Filling up gives 10 10 10 2 | 2 2 2, padded to 46; cutting where the lengths fall gives 36."""
    assert cut([10, 10, 10, 2, 2, 2, 2], 40, chunk_cost=5) == [[0, 1, 2], [3, 4, 5, 6]]


def test_a_text_longer_than_the_budget_stands_alone() -> None:
    assert cut([2, 50, 60, 2], 10) == [[2], [1], [0, 3]]


def test_equal_lengths_keep_their_order() -> None:
    assert cut([5] * 5, 10) == [[0, 1], [2, 3], [4]]


def test_empty_texts_count_as_one_token() -> None:
    assert cut([0, 0, 0], 2) == [[0, 1], [2]]


def test_nothing_makes_no_chunk() -> None:
    assert cut([], 10) == []


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_chunk must be at least 1, came 0"):
        chunks_by_tokens([1], 0)
