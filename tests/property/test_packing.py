"""Chunks of any lengths under any budget."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, strategies as st

from data_shards.collate import pad_chunks
from data_shards.packing import chunks_by_tokens

LENGTHS = st.lists(st.integers(0, 60), max_size=80)


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_every_row_comes_once_within_the_budget(lengths: list[int], budget: int) -> None:
    chunks = [chunk.tolist() for chunk in chunks_by_tokens(lengths, budget)]
    rows = [row for chunk in chunks for row in chunk]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(lengths[row] for row in chunk) <= budget


@given(lengths=st.lists(st.integers(1, 9), max_size=7), budget=st.integers(1, 40), cost=st.integers(0, 12))
def test_no_cut_is_cheaper(lengths: list[int], budget: int, cost: int) -> None:
    """Against every cut of the sorted lengths."""
    ordered = sorted(lengths, reverse=True)

    def price(borders: tuple[int, ...]) -> int:
        chunks = [ordered[begin:end] for begin, end in pairwise((0, *borders, len(ordered)))]
        allowed = all(len(chunk) == 1 or len(chunk) * chunk[0] <= budget for chunk in chunks)
        return sum(len(chunk) * chunk[0] + cost for chunk in chunks) if allowed else 1 << 30

    inner = range(1, len(ordered))
    cuts = [borders for count in range(len(ordered)) for borders in combinations(inner, count)] if ordered else []
    found = [chunk.tolist() for chunk in chunks_by_tokens(lengths, budget, cost)]
    assert sum(len(rows) * lengths[rows[0]] + cost for rows in found) == min(map(price, cuts), default=0)


@given(
    token_ids=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), max_size=20), budget=st.integers(1, 40)
)
def test_padding_takes_no_token_away(token_ids: list[list[int]], budget: int) -> None:
    chunks = pad_chunks(token_ids, pad_id=0, tokens_per_chunk=budget)
    found = {
        row: ids[: sum(mask)]
        for chunk in chunks
        for row, ids, mask in zip(
            chunk.rows.tolist(), chunk.input_ids.tolist(), chunk.attention_mask.tolist(), strict=True
        )
    }
    assert found == dict(enumerate(token_ids))
    assert sum(chunk.input_ids.ne(0).sum().item() for chunk in chunks) == sum(map(len, token_ids))
