"""Invariant 4: negatives are negative. Verdicts by hand, margins below zero included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, id_hash, text_hash
from data_shards.writer import ShardWriter
from index_build.embedding_set import RowHashes
from index_build.filters import Verdict, draw, judge, score_limit
from index_build.known_positives import KnownPositives

KEPT, POSITIVE, DUPLICATE, RANK, MARGIN = Verdict


def hashes(*passages: Passage) -> RowHashes:
    return RowHashes(
        np.array([id_hash(p.id) for p in passages], dtype=np.int64),
        np.array([p.content_hash for p in passages], dtype=np.int64),
        np.array([text_hash(p.text) for p in passages], dtype=np.int64),
    )


def verdicts(neighbours: list[Passage], scores: list[float], known: list[Passage], **limits: float) -> list[Verdict]:
    settings = {"positive_score": 1.0, "skip_ranks": 0, "max_relative_score": 1.0} | limits
    found = judge(hashes(*neighbours), np.array(scores, dtype=np.float32), hashes(*known), **settings)
    return [Verdict(code) for code in found.tolist()]


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
    known = [Passage(id="p", text="p")]
    neighbours = [Passage(id=name, text=name) for name in ("p", "a", "b", "c", "d")]
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
    assert score_limit(positive, share) == pytest.approx(limit, abs=1e-12)


def test_a_negative_score_does_not_turn_the_margin_round() -> None:
    """With a positive at -0.5, what lies between it and three quarters of it (-0.375) is nearer than the positive."""
    neighbours = [Passage(id=name, text=name) for name in ("a", "b", "c")]
    found = verdicts(neighbours, [-0.4375, -0.5625, -0.625], [], positive_score=-0.5, max_relative_score=0.75)
    assert found == [MARGIN, MARGIN, KEPT]


def test_draw_depends_on_the_candidates_and_the_key_alone() -> None:
    ids = np.array([id_hash(f"p{k}") for k in range(50)], dtype=np.int64)
    drawn = draw(ids, 5, "seed 0")
    assert len(set(drawn.tolist())) == 5
    assert drawn.tolist() == sorted(drawn.tolist())
    turned = draw(ids[::-1], 5, "seed 0")
    assert set(ids[drawn].tolist()) == set(ids[::-1][turned].tolist())
    assert draw(ids, 5, "seed 1").tolist() != drawn.tolist()
    assert draw(ids[:3], 5, "seed 0").tolist() == [0, 1, 2]


def test_draw_favours_no_rank() -> None:
    """4,000 draws of 1 of 10: 400 each, and 5 standard deviations are 95."""
    ids = np.array([id_hash(f"p{k}") for k in range(10)], dtype=np.int64)
    counts = np.bincount([int(draw(ids, 1, str(key))[0]) for key in range(4_000)], minlength=10)
    assert (abs(counts - 400) < 95).all()


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
