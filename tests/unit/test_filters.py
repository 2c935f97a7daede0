"""Invariant 4: negatives are negative. Verdicts by hand, margins below zero included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, id_hash, text_hash
from data_shards.writer import ShardWriter
from index_build.embedding_set import RowHashes
from index_build.filters import Known, Limit, Ragged, Verdict, any_equal, count_verdicts, judge, score_limits
from index_build.known_positives import KnownPositives

KEPT, POSITIVE, DUPLICATE, RANK, MARGIN, CEILING, REPEATED, *_, ABSENT = Verdict


def hashes(*passages: Passage) -> RowHashes:
    return RowHashes(
        np.array([id_hash(p.id) for p in passages], dtype=np.int64),
        np.array([p.content_hash for p in passages], dtype=np.int64),
        np.array([text_hash(p.text) for p in passages], dtype=np.int64),
    )


def named(*names: str) -> list[Passage]:
    return [Passage(id=name, text=name) for name in names]


def verdicts(
    neighbours: list[Passage],
    scores: list[float],
    known: list[Passage],
    positive_score: float = 1.0,
    max_relative_score: float = 1.0,
    margin: float = 0.0,
    skip_ranks: int = 0,
    max_score: float | None = None,
) -> list[Verdict]:
    """Judge the neighbours of one query."""
    scores_QK = np.array([scores], dtype=np.float32)
    limits = score_limits(np.array([positive_score]), max_relative_score, margin)
    found, _ = judge(
        RowHashes(*(column[None] for column in hashes(*neighbours))),
        np.ones((1, len(neighbours)), dtype=np.bool_),
        Known(hashes(*known), Ragged.of([len(known)])),
        limits=[Limit(scores_QK, limits)],
        skip_ranks=skip_ranks,
        ceiling=None if max_score is None else Limit(scores_QK, np.array([max_score])),
    )
    return [Verdict(code) for code in found[0].tolist()]


def test_negatives_are_negative_known_positives_and_duplicates_are_dropped() -> None:
    """By id; by title and text; by text alone, where one of the two carries no title."""
    positive = Passage(id="p", title="Sort", text="Sorts a list in place.")
    neighbours = [
        Passage(id="p", title="Other", text="the same id with another text"),
        Passage(id="copy", title="Sort", text="Sorts a list in place."),
        Passage(id="case", title="SORT", text=" sorts  a LIST in place. "),
        Passage(id="joined", text="Sort Sorts a list in place."),
        Passage(id="untitled", text="Sorts a list in place."),
        Passage(id="near", title="Sort", text="Sorts a list."),
    ]
    assert verdicts(neighbours, [0.5] * 6, [positive]) == [POSITIVE] + [DUPLICATE] * 4 + [KEPT]


def test_negatives_are_negative_of_every_known_positive() -> None:
    """Not of the first alone."""
    known = [Passage(id="a", text="one"), Passage(id="b", text="two")]
    neighbours = [Passage(id="b", text="x"), Passage(id="c", text="TWO"), Passage(id="d", text="three")]
    assert verdicts(neighbours, [0.5] * 3, known) == [POSITIVE, DUPLICATE, KEPT]


def test_passages_without_text_are_no_duplicates_of_each_other() -> None:
    known = [Passage(id="a", title="Left", text="")]
    neighbours = [Passage(id="b", title="Right", text=""), Passage(id="c", title="left", text="")]
    assert verdicts(neighbours, [0.5] * 2, known) == [KEPT, DUPLICATE]


def test_margin_and_rank_by_hand() -> None:
    """Positive at 0.5, at most three quarters of it: up to 0.375. The two nearest ranks go, positive counted."""
    known = named("p")
    neighbours = named("p", "a", "b", "c", "d")
    found = verdicts(
        neighbours,
        [0.5, 0.3125, 0.40625, 0.375, -0.5],
        known,
        positive_score=0.5,
        skip_ranks=2,
        max_relative_score=0.75,
    )
    assert found == [POSITIVE, RANK, MARGIN, KEPT, KEPT]


@pytest.mark.parametrize(
    ("positive", "share", "limit"),
    [(0.8, 0.95, 0.76), (0.5, 1.0, 0.5), (0.0, 0.95, 0.0), (-0.8, 0.95, -0.84), (-0.5, 0.75, -0.625)],
)
def test_score_limit_by_hand(positive: float, share: float, limit: float) -> None:
    assert score_limits(np.array([positive]), share).tolist() == pytest.approx([limit], abs=1e-12)


def test_of_the_relative_and_the_absolute_margin_the_lower_limit_holds() -> None:
    """At 0.95: 0.04 below a positive at 0.8, 0.004 below one at 0.08, 0.04 below one at -0.8. The margin is 0.02."""
    positives = np.array([0.8, 0.08, -0.8, 0.0, -np.inf])
    wanted = [0.76, 0.06, -0.84, -0.02, -np.inf]
    assert score_limits(positives, 0.95, 0.02).tolist() == pytest.approx(wanted, abs=1e-12)
    assert score_limits(positives, 1.0).tolist() == positives.tolist()


def test_an_absolute_margin_by_hand() -> None:
    found = verdicts(named(*"abcd"), [0.5, 0.375, 0.25, -0.5], [], positive_score=0.5, margin=0.25)
    assert found == [MARGIN, MARGIN, KEPT, KEPT]
    found = verdicts(named(*"abcd"), [-0.25, -0.5, -0.625, -0.75], [], positive_score=-0.5, margin=0.25)
    assert found == [MARGIN, MARGIN, MARGIN, KEPT]


def test_a_ceiling_holds_whatever_the_positive() -> None:
    found = verdicts(named(*"abc"), [0.75, 0.5, 0.25], [], positive_score=0.625, max_score=0.375)
    assert found == [MARGIN, CEILING, KEPT]


def test_many_queries_with_many_positives_and_padding_are_judged_each_by_its_own() -> None:
    """Three queries with 3, 0 and 1 known positives, and 4, 0 and 2 neighbours; -1 is padding and never counted."""
    known = Known(hashes(*named("a", "b", "c"), *named("d")), Ragged.of([3, 0, 1]))
    rows = [named("b", "x", "d", "c"), named("p", "p", "p", "p"), named("d", "a", "p", "p")]
    there = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=np.bool_)
    scores = np.where(there, 0.5, -np.inf).astype(np.float32)
    neighbours = RowHashes(*(np.stack(columns) for columns in zip(*(hashes(*row) for row in rows), strict=True)))
    found, _ = judge(neighbours, there, known, limits=[Limit(scores, np.array([0.5, -np.inf, 0.5]))])
    assert found.tolist() == [
        [POSITIVE, KEPT, KEPT, POSITIVE],
        [ABSENT, ABSENT, ABSENT, ABSENT],
        [POSITIVE, KEPT, ABSENT, ABSENT],
    ]
    counts = count_verdicts(found)
    assert (counts["kept"], counts["known_positive"], sum(counts.values())) == (3, 3, 6)
    assert "absent" not in counts


def test_what_an_earlier_source_has_found_is_its_own_to_judge() -> None:
    scores = np.full((1, 3), 0.5, dtype=np.float32)
    found, _ = judge(
        RowHashes(*(column[None] for column in hashes(*named("a", "b", "c")))),
        np.ones((1, 3), dtype=np.bool_),
        Known(hashes(*named("b")), Ragged.of([1])),
        limits=[Limit(scores, np.array([1.0]))],
        repeated_QK=np.array([[True, True, False]]),
    )
    assert found.tolist() == [[REPEATED, POSITIVE, KEPT]]


def test_each_limit_can_drop() -> None:
    """A candidate of BM25 goes by BM25's margin, and by the snapshot's."""
    low, high = np.array([[0.1, 0.9, 0.1]], dtype=np.float32), np.array([[3.0, 3.0, 9.0]], dtype=np.float32)
    found, _ = judge(
        RowHashes(*(column[None] for column in hashes(*named("a", "b", "c")))),
        np.ones((1, 3), dtype=np.bool_),
        Known(hashes(), Ragged.of([0])),
        limits=[Limit(low, np.array([0.5])), Limit(high, np.array([5.0]))],
    )
    assert found.tolist() == [[KEPT, MARGIN, MARGIN]]


def test_a_duplicate_counts_as_found_where_it_would_have_been_drawn_without_the_filter() -> None:
    """Of two copies one is above the margin, and would have gone in any case; a known positive is none."""
    scores = np.array([[0.9, 0.5, 0.4, 0.3]], dtype=np.float32)
    copies = [Passage(id="c", text="P"), Passage(id="d", text=" p")]
    found, in_window = judge(
        RowHashes(*(column[None] for column in hashes(copies[0], *named("p"), copies[1], *named("x")))),
        np.ones((1, 4), dtype=np.bool_),
        Known(hashes(*named("p")), Ragged.of([1])),
        limits=[Limit(scores, np.array([0.8]))],
    )
    assert found.tolist() == [[DUPLICATE, POSITIVE, DUPLICATE, KEPT]]
    assert in_window.tolist() == [[False, False, True, True]]


def test_values_are_compared_with_those_of_their_own_query_alone() -> None:
    wanted = np.array([7, 8, 9], dtype=np.int64)
    values = np.array([[7, 9], [8, 7], [9, 8]], dtype=np.int64)
    found = any_equal(values, wanted, Ragged.of([1, 0, 2]))
    assert found.tolist() == [[True, False], [False, False], [True, True]]


def test_a_negative_score_does_not_turn_the_margin_round() -> None:
    """With a positive at -0.5, what lies between it and three quarters of it (-0.375) is nearer than the positive."""
    found = verdicts(
        named("a", "b", "c"), [-0.4375, -0.5625, -0.625], [], positive_score=-0.5, max_relative_score=0.75
    )
    assert found == [MARGIN, MARGIN, KEPT]


def test_known_positives_are_shared_by_pairs_with_the_same_query(tmp_path: Path) -> None:
    """Invariant 4, *negatives are negative*: a positive of one pair is no negative of its query's other pair."""
    a, b, c = (Passage(id=name, title="T", text=f"text {name}") for name in "abc")
    with ShardWriter(tmp_path / "train", "pairs", samples_per_shard=2) as writer:
        writer.add(Pair(query_id="1", query="How to sort?", positives=(a,)))
        writer.add(Pair(query_id="2", query="another", positives=(c,)))
        writer.add(Pair(query_id="3", query=" how to SORT? ", positives=(b, a)))
    known = KnownPositives(PairDataset(tmp_path / "train"))
    assert sorted(known.of("how to sort?").ids.tolist()) == sorted(id_hash(name) for name in "aab")
    assert known.of("another").contents.tolist() == [c.content_hash]
    assert known.of("another").texts.tolist() == [text_hash("text c")]
    assert len(known.of("never asked").ids) == 0
    several = known.of_all(["never asked", "how to sort?", "another", "nor this"])
    assert several.layout.counts.tolist() == [0, 3, 1, 0]
    assert several.layout.starts.tolist() == [0, 0, 3, 4]
    assert sorted(several.hashes.ids[:3].tolist()) == sorted(id_hash(name) for name in "aab")
    assert several.hashes.ids[3:].tolist() == [id_hash("c")]
