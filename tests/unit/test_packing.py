"""Chunks of similar length, by hand."""

from __future__ import annotations

import pytest

from data_shards.packing import chunks_by_tokens


def cut(lengths: list[int], budget: int) -> list[list[int]]:
    return [chunk.tolist() for chunk in chunks_by_tokens(lengths, budget)]


def test_chunks_by_hand() -> None:
    """Longest first. Of 9 tokens one row fits into 10; of 4 two (4 and 3, padded to 4); then what is left."""
    assert cut([3, 9, 1, 4], 10) == [[1], [3, 0], [2]]


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
