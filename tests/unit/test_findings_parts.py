"""What the validation report is made of: symptoms of a text, hashes on disk, distributions, samples."""

from __future__ import annotations

import tempfile
import tracemalloc

import numpy as np
import pytest

from data_shards import hash_spool
from data_shards.errors import UserError
from data_shards.findings.duplicates import repeats_of
from data_shards.findings.language import UNSURE, language_of, language_shares
from data_shards.findings.lengths import Lengths, Weights
from data_shards.findings.text_sample import BottomK
from data_shards.findings.texts import symptoms
from data_shards.hash_spool import HashSpool


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("how to list files", []),
        ("", ["blank"]),
        (" \t\n\u3000", ["blank"]),
        ("N/A", ["placeholder"]),
        (" null ", ["placeholder"]),
        ("[deleted]", ["placeholder"]),
        ("-", ["placeholder"]),
        ("Lorem ipsum dolor sit amet", ["placeholder"]),
        ("none of the above", []),
        ("null pointer exception", []),
        ("a - b", []),
        ("<br/>&nbsp;<p> </p>", ["empty_after_cleaning"]),
        ("\u200b\ufeff", ["empty_after_cleaning"]),
        ("<int>() => x", []),
        ("=> ++", []),
        ("日本語のテキスト", []),
        ("naïve café", []),
        ("Tom’s “quote” – fine…", []),
        ("caf\ufffd", ["replacement_character"]),
        ("the cafÃ© is open", ["mojibake"]),
        ("donâ€™t", ["mojibake"]),
        ("bell \x07", ["control_character"]),
        ("line\r\nbreak\tand tab", []),
        ("bell \x07 and caf\ufffd", ["control_character", "replacement_character"]),
    ],
)
def test_symptoms_of_a_text(text, found):
    assert symptoms(text, text) == found


def test_a_title_without_text_is_no_blank_passage():
    assert symptoms("Title ", "") == ["missing_text"]
    assert symptoms("Title <p></p>", "<p></p>") == ["missing_text"]
    assert symptoms("Title N/A", "N/A") == ["placeholder"]
    assert symptoms("Title text", "text") == []


def rows_of(spool: HashSpool) -> list[tuple[int, int, int]]:
    return [tuple(row) for (group,) in spool.groups() for row in group.tolist()]


@pytest.mark.parametrize("in_memory", [3, 100, 10_000])
def test_a_spool_gives_back_all_rows_in_order_whether_on_disk_or_not(in_memory):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 400, dtype=np.uint64)
    keys[200:] = keys[:200]
    keys[:2] = 0, 2**64 - 1
    values = rng.integers(0, 2**64, 400, dtype=np.uint64)
    spool = HashSpool(rows_in_memory=in_memory)
    for begin in range(0, 400, 7):
        at = np.arange(begin, min(begin + 7, 400))
        spool.add(keys[at], values[at], at)
    low = (values & np.uint64(0xFFFFFFFF)).tolist()
    assert rows_of(spool) == sorted(zip(keys.tolist(), low, range(400), strict=True))
    assert spool.rows == 400


def test_a_wide_spool_keeps_all_of_a_value_and_partners_meet_in_the_same_range():
    many, few = HashSpool(wide=True, rows_in_memory=16), HashSpool(rows_in_memory=16)
    keys = np.random.default_rng(1).integers(0, 2**64, 300, dtype=np.uint64)
    many.add(keys, keys, np.arange(300))
    few.add(keys[:5], keys[:5], np.arange(5))
    groups = list(many.groups(few))
    assert len(groups) > 10
    assert all(np.isin(small["key"], large["key"]).all() for large, small in groups)
    assert sum(len(small) for _, small in groups) == 5
    assert all((large["value"] == large["key"]).all() for large, _ in groups)


def test_samples_beyond_the_numbers_that_fit_are_counted_but_not_placed():
    spool = HashSpool()
    spool.add(np.array([1, 1], np.uint64), np.array([0, 0], np.uint64), np.array([2**32 + 5, 7]))
    assert rows_of(spool) == [(1, 0, 7), (1, 0, hash_spool.UNKNOWN_PLACE)]


def test_a_spool_leaves_nothing_behind_and_tells_of_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = HashSpool(rows_in_memory=4)
    spool.add(np.arange(8, dtype=np.uint64), np.arange(8, dtype=np.uint64), np.arange(8))
    assert list(tmp_path.iterdir()) == []  # on disk, and without a name: not even `kill -9` leaves it
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(
        UserError, match="no room for temporary files in /proc/nowhere .* point TMPDIR at a larger disk"
    ):
        HashSpool(rows_in_memory=1).add(np.ones(2, np.uint64), np.ones(2, np.uint64), np.arange(2))


@pytest.mark.parametrize("in_memory", [2, 1000])
def test_repeats_are_counted_over_ranges(in_memory):
    spool = HashSpool(rows_in_memory=in_memory)
    rows = [(5, 1), (9, 1), (5, 1), (5, 2), (2**63, 4), (9, 1)]
    for place, (key, value) in enumerate(rows):
        spool.add(np.array([key], np.uint64), np.array([value], np.uint64), np.array([place]))
    found = repeats_of(spool)
    assert (found.rows, found.keys, found.values, found.torn_keys, found.largest) == (6, 3, 4, 1, 3)
    assert found.again_at == [(2, 5, 0), (5, 9, 1)]
    assert found.torn_at == [(3, 5, 0)]
    assert found.largest_at == [(0, 5, -1)]


def test_memory_is_that_of_a_run_and_not_of_all_rows():
    rows, step = 1_000_000, 50_000  # 16 MB on disk
    rng = np.random.default_rng(0)
    tracemalloc.start()
    spool = HashSpool(rows_in_memory=1 << 16)
    for begin in range(0, rows, step):
        keys = rng.integers(0, 2**64, step, dtype=np.uint64)
        spool.add(keys, keys, np.arange(begin, begin + step))
    found = repeats_of(spool)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.rows, found.keys) == (rows, rows)
    assert peak < 10 << 20


def test_lengths_are_exact():
    lengths = Lengths()
    lengths.add(range(1, 101))
    lengths.add([])
    lengths.add([1000])
    assert lengths.describe() == {"mean": 59.9, "p5": 6, "p50": 51, "p95": 96, "max": 1000}
    assert lengths.above(99) == 2
    histogram = lengths.histogram()
    assert sum(histogram["counts"]) == 101
    assert histogram["edges"][0] == 1
    assert histogram["edges"][-1] == 1001
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1


def test_lengths_of_nothing_and_beyond_the_last():
    empty = Lengths()
    empty.add([0, 0])
    assert empty.histogram() == {"edges": [0, 1], "counts": [2]}
    assert empty.describe() == {"mean": 0.0, "p5": 0, "p50": 0, "p95": 0, "max": 0}
    huge = Lengths()
    huge.add([1 << 20])
    assert huge.describe()["max"] == 1 << 20
    assert sum(huge.histogram()["counts"]) == 1
    assert huge.by_value() == {">20": 1}


def test_weights_know_how_much_is_in_effect():
    weights = Weights()
    weights.add(np.array([1.0, 1.0]))
    weights.add(np.array([3.0, 1e-9]))
    described = weights.describe()
    assert (described["min"], described["max"], described["mean"]) == (1e-9, 3.0, pytest.approx(1.25))
    assert described["effective_share"] == pytest.approx(25 / (4 * 11), abs=1e-4)  # (sum)^2 / (n * sum of squares)
    assert sum(described["histogram"]["counts"]) == 4
    assert len(described["histogram"]["edges"]) == len(described["histogram"]["counts"]) + 1


def test_a_sample_holds_the_smallest_keys_whatever_their_order():
    keys = np.random.default_rng(3).integers(0, 2**64, 500, dtype=np.uint64).tolist()

    def drawn(order: list[int], seed: int) -> list[int]:
        sample: BottomK[int] = BottomK(20, seed)
        for key in order:
            sample.put(key, key)
            sample.put(key, -1)  # the first under a key stays
        return sample.items()

    assert drawn(keys, 1) == drawn(keys[::-1], 1)
    assert len(set(drawn(keys, 1))) == 20
    assert drawn(keys, 1) != drawn(keys, 2)
    assert drawn(keys[:7], 1) == drawn(keys[6::-1], 1)
    assert BottomK(0).wants(5) is False


def test_languages():
    assert language_of("Où est la bibliothèque municipale, s'il vous plaît ?") == "fr"
    assert language_of("x") == UNSURE
    assert language_shares(["Das ist ein deutscher Satz.", "x", "Ein zweiter deutscher Satz."]) == {
        "de": 0.6667,
        UNSURE: 0.3333,
    }


def test_an_empty_spool_repeats_nothing():
    assert rows_of(HashSpool()) == []
    assert repeats_of(HashSpool()).rows == 0
