"""Searching block by block and merging gives what searching everything at once gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from index_build.exact import exact_search


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    block=st.integers(1, 61),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_merged_search_equals_whole_search(rows: int, block: int, k: int, seed: int) -> None:
    """Small whole numbers: inner products are exact, and many are equal."""
    random = np.random.default_rng(seed)
    vectors = random.integers(-3, 4, (rows, 3)).astype(np.float32)
    queries = random.integers(-3, 4, (4, 3)).astype(np.float32)
    merged = exact_search(queries, [(at, vectors[at : at + block]) for at in range(0, rows, block)], k)
    scores = queries @ vectors.T
    expected = -np.sort(-scores, axis=1)[:, :k]
    found = min(k, rows)
    np.testing.assert_array_equal(merged.scores[:, :found], expected)
    assert (merged.rows[:, found:] == -1).all()
    for query in range(4):
        named = merged.rows[query, :found]
        assert len(set(named.tolist())) == found
        np.testing.assert_array_equal(scores[query, named], expected[query])
