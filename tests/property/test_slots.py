"""However passages come and go, a search over slots is a search over what is there."""

from __future__ import annotations

import faiss
import numpy as np
from hypothesis import given, settings, strategies as st

from index_build.exact import exact_search
from index_build.index_merge import append
from index_build.slot_search import SlotSearch
from index_build.slots import DEAD, Slots


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    chunk=st.integers(1, 61),
    k=st.integers(1, 12),
    gone=st.sets(st.integers(0, 59), max_size=58),
    factory=st.sampled_from(["Flat", "IVF3,Flat"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_search_finds_what_is_alive_and_nothing_else(
    rows: int, chunk: int, k: int, gone: set[int], factory: str, seed: int
) -> None:
    """Small whole numbers: inner products are exact. Slots are a permutation of rows with holes, filled in chunks."""
    random = np.random.default_rng(seed)
    vectors = random.integers(-3, 4, (rows, 3)).astype(np.float32)
    queries = random.integers(-3, 4, (4, 3)).astype(np.float32)
    order = random.permutation(rows)
    slots = Slots(np.where(np.isin(np.arange(rows), sorted(gone)), DEAD, order).astype(np.int64))
    trained = faiss.index_factory(3, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(random.normal(size=(120, 3)).astype(np.float32))
    whole = faiss.clone_index(trained)
    for first in range(0, rows, chunk):
        part = faiss.clone_index(trained)
        block = vectors[order[first : first + chunk]]
        if factory == "Flat":
            part.add(block)
        else:
            part.add_with_ids(block, np.arange(first, first + len(block)))
        append(whole, part)
    searched = SlotSearch(whole, slots)
    if factory != "Flat":
        searched.set({"nprobe": 3})
    found = searched.search(queries, k)
    left = np.flatnonzero(slots.living_rows(rows))
    truth = exact_search(queries, [(left, vectors[left])] if len(left) else [], k)
    np.testing.assert_array_equal(found.scores, truth.scores)
    assert np.isin(found.rows[found.rows >= 0], left).all()
    for query in range(4):
        named = found.rows[query][found.rows[query] >= 0]
        assert len(set(named.tolist())) == len(named) == min(k, len(left))
        np.testing.assert_array_equal(vectors[named] @ queries[query], found.scores[query, : len(named)])
