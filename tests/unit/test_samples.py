"""What is compared when texts are compared, and what a sample looks like in a shard."""

from __future__ import annotations

import hashlib

import pytest
import torch

from data_shards.samples import Pair, Passage, text_hash


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
