"""Which of the kept candidates are drawn: fair dice by hand and by count, turns, and no passage too often."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.samples import id_hash
from index_build.drawing import Taker, preference, query_keys, take_turns
from index_build.filters import Verdict

IDS = np.array([id_hash(f"p{k}") for k in range(10)], dtype=np.int64)
ALL = np.ones((1, 10), dtype=np.bool_)


def places(
    ids: np.ndarray, kept: np.ndarray, key: str = "0", scores: np.ndarray | None = None, **how: object
) -> list:
    settings = {"sampling": "uniform", "temperature": 0.05} | how
    scores = np.linspace(1, 0, ids.shape[-1], dtype=np.float32)[None] if scores is None else scores
    return preference(ids.reshape(1, -1), kept, scores, query_keys([key]), **settings)[0].tolist()  # type: ignore[arg-type]


def test_the_draw_depends_on_the_candidates_and_the_key_alone() -> None:
    """Turned round, the same ids take the same places; another key draws otherwise; a place belongs to one."""
    first = places(IDS, ALL)
    assert sorted(first) == list(range(10))
    assert places(IDS[::-1], ALL) == first[::-1]
    assert places(IDS, ALL, "1") != first


def test_a_block_draws_as_each_query_alone() -> None:
    ids, kept = np.stack([IDS, IDS[::-1], IDS]), np.ones((3, 10), dtype=np.bool_)
    scores = np.zeros((3, 10), dtype=np.float32)
    found = preference(ids, kept, scores, query_keys(["a", "b", "c"]), sampling="uniform", temperature=1.0)
    assert found.tolist() == [places(ids[at], ALL, key) for at, key in enumerate("abc")]


def test_what_is_not_kept_comes_last() -> None:
    kept = ALL.copy()
    kept[0, [0, 3, 4]] = False
    for sampling in ("uniform", "rank", "score", "nearest"):
        found = places(IDS, kept, sampling=sampling)
        assert sorted(np.array(found)[[0, 3, 4]].tolist()) == [7, 8, 9]


def test_nearest_takes_them_as_they_stand() -> None:
    kept = ALL.copy()
    kept[0, 1] = False
    assert places(IDS, kept, sampling="nearest") == [0, 9, 1, 2, 3, 4, 5, 6, 7, 8]


def drawn_first(draws: int, kept: np.ndarray = ALL, scores: np.ndarray | None = None, **how: object) -> np.ndarray:
    first = [int(np.argmin(places(IDS, kept, str(key), scores, **how))) for key in range(draws)]
    return np.bincount(first, minlength=10)


def test_a_uniform_draw_favours_no_rank() -> None:
    """4,000 draws of 1 of 10: 400 each, and 5 standard deviations are 95."""
    assert (abs(drawn_first(4_000) - 400) < 95).all()


def test_a_draw_by_rank_takes_the_nth_kept_one_at_one_nth() -> None:
    """Kept are 3 of 10: weights 1, 1/2, 1/3, so 6/11, 3/11 and 2/11 of the draws; 5 deviations are below 160."""
    kept = np.zeros((1, 10), dtype=np.bool_)
    kept[0, [1, 4, 8]] = True
    counts = drawn_first(4_000, kept, sampling="rank")
    assert counts[[1, 4, 8]].tolist() == pytest.approx([4_000 * share / 11 for share in (6, 3, 2)], abs=160)
    assert counts.sum() == 4_000 == counts[[1, 4, 8]].sum()


def test_a_draw_by_score_weighs_by_its_exponential() -> None:
    """Scores ln 1, ln 2, ln 5 at temperature 1: one, two and five eighths."""
    kept = np.zeros((1, 10), dtype=np.bool_)
    kept[0, :3] = True
    scores = np.full((1, 10), -np.inf, dtype=np.float32)
    scores[0, :3] = np.log([5, 2, 1])
    counts = drawn_first(4_000, kept, scores, sampling="score", temperature=1.0)
    assert counts[:3].tolist() == pytest.approx([2_500, 1_000, 500], abs=160)
    cold = drawn_first(50, kept, scores, sampling="score", temperature=0.01)
    assert cold[0] == 50


def test_sources_take_turns_and_one_that_has_no_more_is_passed_over() -> None:
    """Positions count on from the first source's three to the second's two."""
    kept = [np.array([[True, True, True], [True, False, False]]), np.array([[True, True], [True, True]])]
    first = [np.array([[2, 0, 1], [0, 1, 2]]), np.array([[0, 1], [1, 0]])]
    order = take_turns(first, kept)
    assert order[0].tolist() == [1, 3, 2, 4, 0]
    assert order[1, :3].tolist() == [0, 4, 3]


def verdicts(*rows: list[Verdict]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


KEPT, OVERUSED, TEACHER = Verdict.KEPT, Verdict.OVERUSED, Verdict.TEACHER


def test_the_first_that_are_kept_are_taken_and_the_rest_is_minus_one() -> None:
    codes = verdicts([TEACHER, KEPT, KEPT, KEPT], [KEPT, TEACHER, TEACHER, TEACHER])
    order = np.array([[0, 3, 1, 2], [3, 2, 1, 0]])
    rows = np.arange(8).reshape(2, 4)
    assert Taker(2, 0).take(order, rows, codes).tolist() == [[3, 1], [0, -1]]
    assert Taker(6, 0).take(order, rows, codes).tolist() == [[3, 1, 2, -1, -1, -1], [0, -1, -1, -1, -1, -1]]


def test_a_passage_is_taken_so_often_and_no_more_over_all_blocks() -> None:
    """Row 5 is everybody's first choice: the third query, in another block, has to take its second."""
    taker = Taker(1, 2)
    order, rows = np.array([[0, 1], [0, 1]]), np.array([[5, 6], [5, 7]])
    codes = verdicts([KEPT, KEPT], [KEPT, KEPT])
    assert taker.take(order, rows, codes).tolist() == [[0], [0]]
    assert taker.take(order, rows, codes).tolist() == [[1], [1]]
    assert codes.tolist() == [[OVERUSED, KEPT], [OVERUSED, KEPT]]
    codes = verdicts([KEPT, KEPT])
    assert taker.take(order[:1], np.array([[5, 5]]), codes).tolist() == [[-1]]
    assert codes.tolist() == [[OVERUSED, OVERUSED]]
