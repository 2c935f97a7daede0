"""Padded chunks, by hand."""

from __future__ import annotations

import torch

from data_shards.collate import pad_chunks


def test_chunks_are_padded_on_the_right_to_their_own_longest() -> None:
    first, second = pad_chunks([[1, 2], [3, 4, 5], [6]], pad_id=9, tokens_per_chunk=3)[0:2]
    assert (first.rows.tolist(), first.input_ids.tolist(), first.attention_mask.tolist()) == (
        [1],
        [[3, 4, 5]],
        [[1, 1, 1]],
    )
    assert (second.rows.tolist(), second.input_ids.tolist()) == ([0], [[1, 2]])
    (whole,) = pad_chunks([[1, 2], [3, 4, 5], [6]], pad_id=9, tokens_per_chunk=9)
    assert whole.rows.tolist() == [1, 0, 2]
    assert whole.input_ids.tolist() == [[3, 4, 5], [1, 2, 9], [6, 9, 9]]
    assert whole.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]


def test_chunks_hold_int64_and_go_to_a_device_whole() -> None:
    (chunk,) = pad_chunks([[1]], pad_id=0, tokens_per_chunk=4)
    moved = chunk.to(torch.device("meta"))
    for tensor in (chunk.rows, chunk.input_ids, chunk.attention_mask):
        assert tensor.dtype == torch.int64
    assert {moved.rows.device.type, moved.input_ids.device.type, moved.attention_mask.device.type} == {"meta"}


def test_nothing_makes_no_chunk() -> None:
    assert pad_chunks([], pad_id=0, tokens_per_chunk=4) == []
