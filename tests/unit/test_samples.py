"""What is compared when texts are compared, and what a sample looks like in a shard."""

from __future__ import annotations

import hashlib

import pytest
import torch

from data_shards.samples import Pair, Passage, id_hash, text_hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sort a List", "sort a list"),
        ("sort  a\n\tlist ", " sort a list"),
        ("sort\N{NO-BREAK SPACE}a list", "sort a list"),
        ("ＳＯＲＴ", "sort"),
        ("ﬁle", "file"),
        ("STRASSE", "straße"),
        ("e\N{COMBINING ACUTE ACCENT}", "é"),
    ],
    ids=["case", "white space", "no-break space", "width", "ligature", "sharp s", "composition"],
)
def test_what_differs_in_case_width_or_white_space_is_equal(one: str, other: str) -> None:
    assert text_hash(one) == text_hash(other)


@pytest.mark.parametrize("other", ["sorta list", "sort a list.", "sort à list", "list a sort", ""])
def test_other_texts_are_not_equal(other: str) -> None:
    assert text_hash("sort a list") != text_hash(other)


def test_the_hash_is_the_same_on_every_machine_and_fits_a_tensor() -> None:
    by_hand = int.from_bytes(hashlib.blake2b(b"a b", digest_size=8).digest(), "little", signed=True)
    assert text_hash(" A  b") == by_hand == 2952434739088078779
    hashes = [text_hash(str(number)) for number in range(200)]
    assert torch.tensor(hashes).tolist() == hashes
    assert min(hashes) < 0 < max(hashes)


def test_content_is_title_and_text() -> None:
    assert Passage(id="1", title="Sort", text="a list").content == "Sort a list"
    assert Passage(id="1", text="a list").content == "a list"
    assert Passage(id="1", title="Sort", text="a list").content_hash == text_hash("sort A LIST")


def test_a_pair_is_written_as_compact_json() -> None:
    pair = Pair(query_id="q", query="über", positives=(Passage(id="1", title="T", text="x"),), source="s")
    assert pair.to_json().decode() == (
        '{"query_id":"q","query":"über","positives":[{"id":"1","title":"T","text":"x"}],"negatives":[],"source":"s"}'
    )


def test_a_pair_comes_back_with_its_weight_and_negatives() -> None:
    negatives = (Passage(id="2", text="y"), Passage(id="3", title="Z", text="z"))
    pair = Pair(query_id="q", query="?", positives=(Passage(id="1", text="x"),), negatives=negatives, weight=0.25)
    assert Pair.from_json(pair.to_json()) == pair


def test_a_sparse_sample_is_filled_with_defaults_and_numbers_become_ids() -> None:
    found = Pair.from_json(b'{"query_id": 5, "query": "?", "positives": [{"id": 7, "title": null, "text": "x"}]}')
    assert found == Pair(query_id="5", query="?", positives=(Passage(id="7", text="x"),))


@pytest.mark.parametrize("missing", ["query_id", "query", "positives"])
def test_a_sample_that_lacks_something_is_refused(missing: str) -> None:
    row = {"query_id": '"1"', "query": '"?"', "positives": "[]"}
    del row[missing]
    text = "{" + ",".join(f'"{name}": {value}' for name, value in row.items()) + "}"
    with pytest.raises(KeyError, match=missing):
        Pair.from_json(text.encode())


def test_weight_and_scores_are_written_where_they_say_something() -> None:
    passages = (Passage(id="1", text="x"), Passage(id="2", text="y"))
    pair = Pair(query_id="q", query="?", positives=passages, weight=0.5, scores=(3.0, 1.0))
    assert pair.to_json().endswith(b',"weight":0.5,"scores":[3.0,1.0]}')
    assert Pair.from_json(pair.to_json()) == pair
    assert [pair.relevance(at) for at in (0, 1)] == [1.5, 0.5]
    assert Pair(query_id="q", query="?", positives=passages, weight=0.5).relevance(1) == 0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('"weight": -0.1', "`weight` holds -0.1, wanted finite numbers of 0 or more"),
        ('"weight": NaN', "`weight` holds nan"),
        ('"weight": 1e999', "`weight` holds inf"),
        ('"scores": [1, -2]', "`scores` holds -2.0"),
        ('"scores": [NaN]', "`scores` holds nan"),
    ],
)
def test_a_weight_that_the_loss_cannot_take_is_refused(more: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pair.from_json(f'{{"query_id": "1", "query": "?", "positives": [], {more}}}'.encode())


@pytest.mark.parametrize("weight", ["0", "3", '"2.5"', "1e3"])
def test_a_weight_may_be_written_in_any_way(weight: str) -> None:
    found = Pair.from_json(f'{{"query_id": "1", "query": "?", "positives": [], "weight": {weight}}}'.encode())
    assert found.weight == float(weight.strip('"'))


def test_a_teachers_scores_are_written_where_there_are_some() -> None:
    one, two, three = (Passage(id=str(at), text="xyz"[at]) for at in range(3))
    pair = Pair(
        query_id="q",
        query="?",
        positives=(one,),
        negatives=(two, three),
        teacher_positives=(-0.5,),
        teacher_negatives=(-7.25, 1e-3),
    )
    assert pair.to_json().endswith(b',"teacher_positives":[-0.5],"teacher_negatives":[-7.25,0.001]}')
    assert Pair.from_json(pair.to_json()) == pair
    plain = Pair(query_id="q", query="?", positives=(one,), negatives=(two, three))
    assert b"teacher" not in plain.to_json()
    assert (pair.has_teacher, plain.has_teacher) == (True, False)
    half = {"query_id": "q", "query": "?", "positives": (one,), "teacher_positives": (1.0,)}
    assert Pair(**half).has_teacher
    assert not Pair(**half, negatives=(two,)).has_teacher
    assert not Pair(query_id="q", query="?", positives=()).has_teacher


@pytest.mark.parametrize("query_id", ['"5"', "5"], ids=["quickly", "tolerantly"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            '"teacher_positives": [1, 2]',
            "`teacher_positives` holds 2 numbers for 1 passages, wanted one each, or none",
        ),
        ('"teacher_negatives": [1]', "`teacher_negatives` holds 1 numbers for 2 passages"),
        ('"teacher_positives": [NaN]', "`teacher_positives` holds nan, wanted finite numbers"),
        ('"teacher_negatives": [1, -1e999]', "`teacher_negatives` holds 1.0, -inf, wanted finite numbers"),
    ],
)
def test_a_teachers_scores_that_fit_no_passages_are_refused(query_id: str, more: str, message: str) -> None:
    passages = (
        '"positives": [{"id": "1", "text": "x"}], "negatives": [{"id": "2", "text": "y"}, {"id": "3", "text": "z"}]'
    )
    with pytest.raises(ValueError, match=message):
        Pair.from_json(f'{{"query_id": {query_id}, "query": "?", {passages}, {more}}}'.encode())


def test_a_number_beyond_all_floats_is_refused_by_name() -> None:
    """Python's own error for it is none that a quarantine catches."""
    with pytest.raises(ValueError, match="`weight` holds inf, wanted finite numbers"):
        Pair.from_json(b'{"query_id": "1", "query": "?", "positives": [], "weight": 1' + b"0" * 400 + b"}")


def test_a_pair_keeps_what_is_said_of_the_passages_that_it_keeps() -> None:
    passages = tuple(Passage(id=str(at), text=str(at)) for at in range(5))
    pair = Pair(
        query_id="q",
        query="?",
        positives=passages[:3],
        negatives=passages[3:],
        weight=2.0,
        scores=(1.0, 2.0, 3.0),
        teacher_positives=(0.1, 0.2, 0.3),
        teacher_negatives=(-1.0, -2.0),
    )
    kept = pair.keeping([0, 2])
    assert (kept.positives, kept.scores, kept.teacher_positives) == (
        (passages[0], passages[2]),
        (1.0, 3.0),
        (0.1, 0.3),
    )
    assert (kept.negatives, kept.teacher_negatives, kept.weight) == (passages[3:], (-1.0, -2.0), 2.0)
    assert pair.keeping([1], [1]).teacher_negatives == (-2.0,)
    bare = Pair(query_id="q", query="?", positives=passages[:3]).keeping([2])
    assert (bare.positives, bare.scores, bare.teacher_positives) == ((passages[2],), (), ())


def test_an_id_has_a_hash_as_it_is_spelt() -> None:
    """Embedding sets hold these on disk: they never change."""
    assert id_hash("p-1") == 7944182258543056510
    assert id_hash("P-1") != id_hash("p-1")


def test_what_others_write_is_read_as_tolerantly_as_it_is_strictly() -> None:
    """Both ways give the same pair; unknown keys are passed over."""
    row = '"query": "?", "positives": [{"id": "7", "text": "x", "url": "u"}], "extra": {"a": [1]}'
    strict = Pair.from_json(f'{{"query_id": "5", {row}}}'.encode())
    assert strict == Pair.from_json(f'{{"query_id": 5, {row}}}'.encode())
    assert Passage.from_json(b'{"id": 7, "title": null, "text": "x"}') == Passage.from_json(b'{"id":"7","text":"x"}')


@pytest.mark.parametrize("payload", [b'{"id": "\\ud800", "text": "x"}', b'{"id": "1", "text": "a\\udfff"}'])
def test_half_a_character_is_no_text(payload: bytes) -> None:
    """Whoever hashed or tokenised it later would fail."""
    with pytest.raises(UnicodeEncodeError):
        Passage.from_json(payload)


def test_a_pair_without_positives_has_no_hash() -> None:
    assert Pair(query_id="q", query="?", positives=()).first_positive_hash == 0
    titled = Pair(query_id="q", query="?", positives=(Passage(id="1", title="Sort", text="a list"),))
    assert titled.first_positive_hash == text_hash("sort a list")
