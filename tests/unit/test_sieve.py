"""Invariant 4, *negatives are negative*: from hand-written vectors and texts to verdicts, all filters together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.samples import Pair, Passage
from index_build.corpus_rows import CorpusRows
from index_build.drawing import Taker
from index_build.filters import Verdict
from index_build.mining_config import MiningConfig
from index_build.mining_tally import Tally
from index_build.near_positives import NearPositives
from index_build.sieve import Judged, draw, farthest
from index_build.teacher import Teacher
from tests.unit.mining_parts import block_of, corpus_of, pairs_of, sieve_of, untimed
from tests.unit.tiny import passage

KEPT, POSITIVE, DUPLICATE = Verdict.KEPT, Verdict.KNOWN_POSITIVE, Verdict.DUPLICATE
LONG = "sorts the words of a list in place and returns nothing at all since the list itself has been changed by it"
NEARLY = LONG + " today"
OTHER = "opens a socket on a port of this machine and waits until somebody connects to it or the time is over"

PASSAGES = [
    passage("p"),
    passage("near"),
    passage("just"),
    passage("below"),
    passage("far"),
    passage("q", "second positive"),
]
VECTORS = [[0.75, 0], [0.875, 0], [0.5, 0], [0.4375, 0], [-0.5, 0], [0.5, 0.5]]


def verdicts_by_id(judged: Judged, passages: list[Passage], query: int = 0) -> dict[str, Verdict]:
    rows = judged.rows[query]
    return {
        passages[row].id: Verdict(code)
        for row, code in zip(rows.tolist(), judged.verdicts[query].tolist(), strict=True)
        if row >= 0
    }


def test_of_several_positives_the_farthest_decides(tmp_path: Path) -> None:
    """Positives at 0.75 and 0.5, a margin of 0.0625: what is above 0.4375 goes; the depth leaves padding."""
    pair = Pair(query_id="1", query="?", positives=(PASSAGES[0], PASSAGES[5]))
    config = MiningConfig(max_relative_score=1.0, margin=0.0625, near_duplicates=0)
    sieve = sieve_of(tmp_path, PASSAGES, VECTORS, [pair], config)
    judged = sieve.judge(block_of(pairs_of(tmp_path, pair), [[1, 0]]), untimed)
    assert judged.rows.shape == (1, 100)
    assert verdicts_by_id(judged, PASSAGES) == {
        "p": POSITIVE,
        "q": POSITIVE,
        "near": Verdict.MARGIN,
        "just": Verdict.MARGIN,
        "below": KEPT,
        "far": KEPT,
    }
    assert [one.tolist() for one in judged.positives] == [[0.75, 0.5]]
    assert (judged.verdicts[judged.rows < 0] == Verdict.ABSENT).all()


def test_a_query_with_a_negative_positive_score_keeps_only_what_is_below(tmp_path: Path) -> None:
    """Turned round: positive at -0.75, at most 0.5 of it lower, so up to -1.125; nothing is."""
    pair = Pair(query_id="1", query="?", positives=(PASSAGES[0],))
    config = MiningConfig(max_relative_score=0.5, near_duplicates=0)
    sieve = sieve_of(tmp_path, PASSAGES, VECTORS, [pair], config)
    judged = sieve.judge(block_of(pairs_of(tmp_path, pair), [[-1, 0]]), untimed)
    found = verdicts_by_id(judged, PASSAGES)
    assert {name for name, verdict in found.items() if verdict == KEPT} == set()
    assert found["near"] == Verdict.MARGIN  # at -0.875: below the positive, yet not by half


def test_a_query_without_positives_gets_nothing(tmp_path: Path) -> None:
    pair = Pair(query_id="1", query="?", positives=())
    sieve = sieve_of(tmp_path, PASSAGES, VECTORS, [pair], MiningConfig())
    judged = sieve.judge(block_of(pairs_of(tmp_path, pair), [[1, 0]]), untimed)
    assert set(verdicts_by_id(judged, PASSAGES).values()) == {Verdict.MARGIN}
    assert farthest(judged.positives).tolist() == [-np.inf]


def test_near_duplicates_of_any_positive_go_and_others_stay(tmp_path: Path) -> None:
    """20 triples against 19 of them and no other: Jaccard 0.95. The second positive is another pair's, by id."""
    passages = [
        passage("p", LONG),
        passage("q", OTHER),
        passage("nearly", NEARLY),
        passage("nearly-q", OTHER + " now"),
        passage("apart", " ".join(reversed(LONG.split()))),
        passage("wordless", "!"),
    ]
    pairs = [
        Pair(query_id="1", query="how?", positives=(passages[0],)),
        Pair(query_id="2", query="HOW?", positives=(passages[1],)),
        Pair(query_id="3", query="what else?", positives=(passage("foreign", "?"),)),
    ]
    vectors = [[1, 0], [1, 0], [0.5, 0], [0.5, 0], [0.5, 0], [0.5, 0]]
    sieve = sieve_of(tmp_path, passages, vectors, pairs, MiningConfig())
    judged = sieve.judge(block_of(pairs_of(tmp_path, *pairs), [[1, 0]] * 3), untimed)
    for query in (0, 1):
        assert verdicts_by_id(judged, passages, query) == {
            "p": POSITIVE,
            "q": POSITIVE,
            "nearly": Verdict.NEAR_DUPLICATE,
            "nearly-q": Verdict.NEAR_DUPLICATE,
            "apart": KEPT,
            "wordless": KEPT,
        }
    others = verdicts_by_id(judged, passages, 2)
    assert {others[name] for name in ("nearly", "nearly-q", "apart", "wordless")} == {KEPT}


def test_the_threshold_of_near_duplicates_counts(tmp_path: Path) -> None:
    """Of 10 words one is changed: 5 of 8 triples stay, Jaccard 5/11; 3 standard errors are 0.13."""
    words = [f"word{k}" for k in range(10)]
    changed = [*words[:4], "other", *words[5:]]
    passages = [
        passage("p", " ".join(words)),
        passage("a", " ".join(changed)),
        passage("same", " ".join(words) + "!"),
    ]
    pair = Pair(query_id="1", query="?", positives=(passages[0],))
    pairs = pairs_of(tmp_path, pair)
    rows, block = CorpusRows.scan(corpus_of(tmp_path, passages)), block_of(pairs)
    asked = np.array([[False, True, True]])
    for threshold, found in ((0.3, [False, True, True]), (0.6, [False, False, True])):
        near = NearPositives(rows, tmp_path / f"{threshold}.npy", threshold)
        assert near.find(np.array([[0, 1, 2]]), asked, block.pairs, block.known).tolist() == [found]


def test_a_bm25_negative_passes_by_its_own_margin_and_by_the_snapshots(tmp_path: Path) -> None:
    """BM25 alone: the query's two words and no other are above the positive, one of them among many is below."""
    passages = [
        passage("p", "zebra stripes on a horse in the grass"),
        passage("better", "zebra horse"),
        passage("some", "horse in a stable with a door and a window and hay and straw and water"),
        passage("none", "nothing to see"),
    ]
    pair = Pair(query_id="1", query="zebra horse", positives=(passages[0],))
    pairs = pairs_of(tmp_path, pair)
    alone = MiningConfig(sources=("bm25",), bm25_max_relative_score=0.9)
    judged = sieve_of(tmp_path / "a", passages, None, [pair], alone).judge(block_of(pairs), untimed)
    scores = dict(zip((passages[row].id for row in judged.rows[0, :3]), judged.scores[0, :3].tolist(), strict=True))
    found = verdicts_by_id(judged, passages)
    assert found["p"] == POSITIVE
    assert found["some"] == KEPT
    assert "none" not in found
    assert scores["better"] > scores["p"] > scores["some"]
    assert found["better"] == Verdict.MARGIN
    assert judged.positives[0].tolist() == pytest.approx([scores["p"]])
    free = MiningConfig(sources=("bm25",), bm25_max_relative_score=0)
    judged = sieve_of(tmp_path / "b", passages, None, [pair], free).judge(block_of(pairs), untimed)
    assert verdicts_by_id(judged, passages)["better"] == KEPT
    both = MiningConfig(sources=("dense", "bm25"), depth=1, bm25_max_relative_score=0, near_duplicates=0)
    vectors = [[0.5, 0], [1, 0], [0.25, 0], [0, 0]]
    judged = sieve_of(tmp_path / "c", passages, vectors, [pair], both).judge(block_of(pairs, [[1, 0]]), untimed)
    assert judged.rows.shape == (1, 2)
    assert judged.scores[0, 0] == 1.0  # the snapshot's score, whoever found it
    assert Verdict(judged.verdicts[0, 0]) == Verdict.MARGIN


def test_a_positive_outside_of_the_corpus_has_a_bm25_score_and_is_no_candidate(tmp_path: Path) -> None:
    foreign = passage("foreign", "zebra stripes")
    passages = [passage("a", "zebra in the zoo of the town by the sea"), passage("b", "horse")]
    pair = Pair(query_id="1", query="zebra stripes", positives=(foreign,))
    config = MiningConfig(sources=("bm25",), depth=2)
    judged = sieve_of(tmp_path, passages, None, [pair], config).judge(block_of(pairs_of(tmp_path, pair)), untimed)
    assert judged.rows.tolist() == [[0, -1]]
    assert judged.positives[0][0] > judged.scores[0, 0] > 0
    assert judged.verdicts.tolist() == [[KEPT, Verdict.ABSENT]]


def test_random_passages_are_each_there_once_and_judged_too(tmp_path: Path) -> None:
    pair = Pair(query_id="1", query="?", positives=(PASSAGES[0],))
    pairs = pairs_of(tmp_path, pair)
    sieve = sieve_of(tmp_path, PASSAGES, None, [pair], MiningConfig(sources=("random",), skip_ranks=5))
    seen: set[str] = set()
    for key in range(30):
        found = sieve.judge(block_of(pairs, key=str(key)), untimed)
        rows = found.rows[found.rows >= 0].tolist()
        assert len(rows) == len(set(rows)) > 0
        named = verdicts_by_id(found, PASSAGES)
        seen |= named.keys()
        assert all((verdict == POSITIVE) == (name == "p") for name, verdict in named.items())
        assert set(named.values()) <= {POSITIVE, KEPT}
    assert seen == {one.id for one in PASSAGES}


def test_what_two_sources_find_is_drawn_once(tmp_path: Path) -> None:
    """Dense and random over the same six passages: every row is kept at most once."""
    pair = Pair(query_id="1", query="?", positives=(PASSAGES[1],))
    config = MiningConfig(sources=("dense", "random"), per_query=6, max_relative_score=1.0, near_duplicates=0)
    sieve = sieve_of(tmp_path, PASSAGES, VECTORS, [pair], config)
    judged = sieve.judge(block_of(pairs_of(tmp_path, pair), [[1, 0]]), untimed)
    kept = judged.rows[0][judged.verdicts[0] == KEPT].tolist()
    assert sorted(kept) == [0, 2, 3, 4, 5]
    assert (judged.verdicts == Verdict.REPEATED).sum() > 0
    chosen = draw(Taker(6, 0), judged)
    rows = [judged.rows[0, place] for place in chosen[0] if place >= 0]
    assert rows == [0, 2, 5, 3, 4]  # best score first; 2 and 5 are equal
    assert chosen[0, 5] == -1


def teacher(place: Path, scores: dict[str, float], most: int = 2, margin: float = 0.0) -> tuple[Teacher, list[str]]:
    """Return a teacher that knows its scores by text, and the list of passages that it was asked of."""
    asked: list[str] = []

    def score(queries: object, passages: list[str]) -> np.ndarray:
        asked.extend(passages)
        return np.array([scores[text] for text in passages], dtype=np.float32)

    return Teacher(score, corpus_of(place / "asked", PASSAGES), margin=margin, most=most), asked


def test_a_teacher_drops_what_it_likes_better_and_is_asked_of_few(tmp_path: Path) -> None:
    """Nearest first, two at most: `just` is above the positives' lowest, `below` is not, `far` is never looked at."""
    pair = Pair(query_id="1", query="?", positives=(PASSAGES[0], PASSAGES[5]))
    empty = Pair(query_id="2", query="!", positives=())
    says = {"passage p": 3.0, "second positive": 1.0, "passage just": 1.5, "passage below": 1.0, "passage far": 9.0}
    judge, asked = teacher(tmp_path, says)
    config = MiningConfig(max_relative_score=1.0, sampling="nearest", near_duplicates=0, teacher="somewhere")
    sieve = sieve_of(tmp_path, PASSAGES, VECTORS, [pair, empty], config, judge)
    pairs = pairs_of(tmp_path, pair, empty)
    judged = sieve.judge(block_of(pairs, [[1, 0], [1, 0]]), untimed)
    found = verdicts_by_id(judged, PASSAGES)
    assert (found["just"], found["below"], found["far"]) == (Verdict.TEACHER, KEPT, Verdict.UNSCORED)
    assert sorted(asked) == sorted(says.keys() - {"passage far"})
    chosen = draw(Taker(1, 0), judged)
    assert judged.rows[0, chosen[0, 0]] == 3
    assert judged.teacher[0, chosen[0, 0]] == 1.0
    assert judged.teacher_positives[0] == 1.0
    assert chosen[1].tolist() == [-1]
    assert np.isnan(judged.teacher_positives[1])
    unasked = sieve.judge(block_of(pairs, [[1, 0], [1, 0]]), untimed, ask_teacher=False)
    assert verdicts_by_id(unasked, PASSAGES)["just"] == KEPT


def test_a_teachers_margin_by_hand(tmp_path: Path) -> None:
    """Positive at -1, margin 0.5: -1.5 may stay, -1.25 may not."""
    pair = Pair(query_id="1", query="?", positives=(PASSAGES[1],))
    says = {"passage near": -1.0, "passage p": -1.25, "passage just": -1.5}
    judge, _ = teacher(tmp_path, says, margin=0.5)
    config = MiningConfig(max_relative_score=1.0, sampling="nearest", near_duplicates=0, teacher="somewhere")
    sieve = sieve_of(tmp_path, PASSAGES[:3], VECTORS[:3], [pair], config, judge)
    judged = sieve.judge(block_of(pairs_of(tmp_path, pair), [[1, 0]]), untimed)
    found = verdicts_by_id(judged, PASSAGES)
    assert found == {"near": POSITIVE, "p": Verdict.TEACHER, "just": KEPT}
    tally = Tally(1, 1)
    tally.add(0, block_of(pairs_of(tmp_path / "again", pair)), judged, draw(Taker(1, 0), judged))
    assert tally.statistics()["false_negative_share"] == 0.5
    assert tally.statistics()["false_negatives_by"] == "teacher"
    assert tally.teacher.tolist() == [[-1.5]]


def test_numbers_of_a_version_by_hand(tmp_path: Path) -> None:
    """Two queries; the second has no negative. Of the window's three candidates one is a copy of the positive."""
    copy = Passage(id="copy", title="", text="PASSAGE P")
    passages = [*PASSAGES[:5], copy]
    pairs = [
        Pair(query_id="1", query="one", positives=(PASSAGES[0], passage("foreign"))),
        Pair(query_id="2", query="two", positives=(PASSAGES[0],)),
    ]
    config = MiningConfig(max_relative_score=1.0, max_score=0.5, near_duplicates=0)
    sieve = sieve_of(tmp_path, passages, [*VECTORS[:5], [0.25, 0]], pairs, config)
    block = block_of(pairs_of(tmp_path, *pairs), [[1, 0], [-1, 0]])
    judged = sieve.judge(block, untimed)
    tally = Tally(2, 3)
    tally.add(0, block, judged, draw(Taker(3, 0), judged))
    assert tally.rows.tolist() == [[2, 3, 4], [1, -1, -1]]
    assert tally.scores.tolist() == [[0.5, 0.4375, -0.5], [-0.875, 0, 0]]
    assert tally.positive_score == pytest.approx((0.875 - 0.75) / 2)  # (0.75 + 1) / 2 and -0.75
    numbers = tally.statistics()
    assert numbers["gap"] == pytest.approx((0.375 + 0.4375 + 1.375 + 0.125) / 4, abs=1e-4)
    assert (numbers["negatives_per_query"], numbers["without_negatives_share"]) == (2.0, 0.0)
    # In the window are, of the first query, just, below, far and the copy, and of the second `near` alone.
    assert numbers["false_negative_share"] == 0.2
    assert tally.counts["duplicate"] == 2
    sample = tally.sample(pairs, {row: passages[row] for row in range(6)})
    assert [row["query_id"] for row in sample] == ["1", "2"]
    assert [row["score"] for row in sample[0]["positives"]] == [0.75, 1.0]
    assert [(row["id"], row["score"]) for row in sample[1]["negatives"]] == [("near", -0.875)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ()}, "mining.sources is empty; wanted one or more of dense, bm25, random, each once"),
        ({"sources": ("dense", "dense")}, "mining.sources is dense, dense; wanted"),
        ({"sources": ("sparse",)}, "mining.sources is sparse; wanted"),
        ({"margin": -0.1}, "mining.margin is -0.1, wanted 0 or more"),
        ({"teacher_margin": float("nan")}, "mining.teacher_margin is nan, wanted 0 or more"),
        ({"max_score": float("nan")}, "mining.max_score is no number"),
        ({"max_relative_score": float("nan")}, "mining.max_relative_score is nan, wanted at most 1"),
        ({"bm25_max_relative_score": 1.5}, "mining.bm25_max_relative_score is 1.5, wanted 0"),
        ({"near_duplicates": 0.1}, "mining.near_duplicates is 0.1, wanted 0"),
        ({"per_passage_max": -1}, "mining.per_passage_max is -1, wanted 0"),
        ({"corpus_sample": -1}, "mining.corpus_sample is -1, wanted 0"),
        ({"sampling_temperature": 0.0}, "mining.sampling_temperature is 0.0, wanted above 0"),
        ({"teacher": "x", "per_query": 9}, "mining.teacher_candidates is 8 and per_query 9"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MiningConfig(**settings)  # type: ignore[arg-type]
