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
