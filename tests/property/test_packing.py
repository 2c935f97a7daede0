"""Chunks of any lengths under any budget."""

from __future__ import annotations

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


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_no_chunk_had_room_for_the_next_row(lengths: list[int], budget: int) -> None:
    chunks = [chunk.tolist() for chunk in chunks_by_tokens(lengths, budget)]
    for chunk in chunks[:-1]:
        assert (len(chunk) + 1) * max(1, lengths[chunk[0]]) > budget


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
