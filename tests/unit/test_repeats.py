"""Of rows with one key the first stays, however the rows are cut into tables and however much fits into memory."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.hash_spool import UNKNOWN_PLACE
from data_shards.importing.repeats import OTHER, SAME, mark_repeats


def marks_of(tables: list[list[tuple[int, int]]]) -> list[int]:
    marks = np.zeros(sum(map(len, tables)), dtype=np.uint8)
    mark_repeats((np.array(table, dtype=np.uint64).reshape(-1, 2) for table in tables), marks)
    return marks.tolist()


def test_repetitions_within_and_between_tables_by_hand() -> None:
    top = 2**64 - 1
    first = [(7, 0), (top, 0), (7, 0), (0, 0)]
    second = [(9, 0), (top, 0), (7, 0), (9, 0)]
    assert marks_of([first, [], second]) == [0, 0, SAME, 0, 0, SAME, SAME, SAME]


def test_another_content_under_the_same_key_is_told_apart() -> None:
    """The first counts, not the smallest: its content is the larger one here."""
    assert marks_of([[(1, 50), (1, 40), (2, 5)], [(1, 50), (1, 40), (2, 6)]]) == [0, OTHER, 0, SAME, OTHER, OTHER]


def test_any_cut_gives_the_same_as_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(0)
    rows = np.stack([dice.integers(0, 400, 3000) * np.uint64(2**55 + 12345), dice.integers(0, 2, 3000)], axis=1)
    rows = rows.astype(np.uint64)
    seen: dict[int, int] = {}
    wanted = []
    for key, content in rows.tolist():
        wanted.append(0 if key not in seen else SAME if seen[key] == content else OTHER)
        seen.setdefault(key, content)
    for cuts in ([], [1, 2, 2, 1000], list(range(100, 3000, 100))):
        marks = np.zeros(len(rows), dtype=np.uint8)
        mark_repeats(np.split(rows, cuts), marks)
        assert (marks > 0).tolist() == [mark > 0 for mark in wanted]
        if not cuts:
            assert marks.tolist() == wanted


def test_more_rows_than_can_be_numbered_are_refused() -> None:
    with pytest.raises(UserError, match="are too many for one dataset; import them as several"):
        mark_repeats([], np.broadcast_to(np.uint8(0), (int(UNKNOWN_PLACE),)))
