"""Windows of hand-counted words."""

from __future__ import annotations

from itertools import pairwise

import pytest

from data_shards.cleaning.chunking import Chunker, document_of
from data_shards.cleaning.config import CleaningConfig
from data_shards.samples import Passage

TEN = [f"{word} b c d e f g h i end." for word in ("One", "Two", "Three", "Four", "Five", "Six")]


def cut(text: str, *, title: str = "", size: int = 32, overlap: int = 0, count=None, **more: object) -> list[Passage]:
    config = CleaningConfig(chunk_tokens=size, chunk_overlap_tokens=overlap, **more)
    return Chunker(config, count).chunks(Passage(id="doc", title=title, text=text))


def sentences(*numbers: int) -> str:
    return " ".join(TEN[number] for number in numbers)


def test_windows_take_as_many_sentences_as_they_hold():
    found = cut(" ".join(TEN))
    assert [chunk.text for chunk in found] == [sentences(0, 1, 2), sentences(3, 4, 5)]
    assert [chunk.id for chunk in found] == ["doc#0000", "doc#0001"]


@pytest.mark.parametrize("overlap", [1, 10])
def test_neighbours_share_the_fewest_sentences_that_reach_the_overlap(overlap):
    assert [chunk.text for chunk in cut(" ".join(TEN), overlap=overlap)] == [
        sentences(0, 1, 2), sentences(2, 3, 4), sentences(4, 5),
    ]  # fmt: skip


def test_a_longer_overlap_shares_more():
    found = [chunk.text for chunk in cut(" ".join(TEN), overlap=11)]
    assert found == [sentences(0, 1, 2), sentences(1, 2, 3), sentences(2, 3, 4), sentences(3, 4, 5)]


def test_the_overlap_gives_way_to_a_sentence_that_would_not_fit():
    long = "Long " + "x " * 27 + "end."
    assert [chunk.text for chunk in cut(f"{TEN[0]} {TEN[1]} {long} {TEN[2]}", overlap=10)] == [
        sentences(0, 1), long, TEN[2],
    ]  # fmt: skip


def test_the_title_is_on_each_passage_and_counts():
    found = cut(" ".join(TEN), title="A title of five words")
    assert [chunk.text for chunk in found] == [sentences(0, 1), sentences(2, 3), sentences(4, 5)]
    assert {chunk.title for chunk in found} == {"A title of five words"}


def test_a_title_may_take_half_a_window_and_the_rest_of_it_begins_the_text():
    title = " ".join(f"t{number}" for number in range(20))
    found = cut(sentences(0, 1), title=title)
    assert found[0].title == " ".join(f"t{number}" for number in range(16))
    assert found[0].text.startswith("t16 t17 t18 t19\nOne b")


def test_a_sentence_longer_than_a_window_is_cut_between_words():
    words = [f"w{number}" for number in range(100)]
    found = cut(" ".join(words), overlap=4)
    assert all(len(chunk.text.split()) <= 32 for chunk in found)
    shared = [len(set(first.text.split()) & set(second.text.split())) for first, second in pairwise(found)]
    assert len(shared) >= 3
    assert all(4 <= count <= 7 for count in shared), "pieces of 4 words at most reach the overlap"
    assert [word for word in words if not any(word in chunk.text.split() for chunk in found)] == []


def test_lines_are_kept_whole_where_a_long_sentence_has_some():
    table = "\n".join(f"row {number} has six words" for number in range(20))
    for chunk in cut(table):
        assert all(line.startswith("row") and line.endswith("words") for line in chunk.text.split("\n"))


def test_a_word_longer_than_a_window_is_cut_anywhere():
    found = cut("x" * 500, size=100, count=len)
    assert "".join(chunk.text for chunk in found) == "x" * 500
    assert max(len(chunk.text) for chunk in found) <= 100


def test_a_short_document_is_one_passage_with_a_number_too():
    assert [(chunk.id, chunk.text) for chunk in cut("Short.\n\n  Text. ")] == [("doc#0000", "Short.\n\n  Text.")]
    assert [(chunk.id, chunk.text) for chunk in cut("")] == [("doc#0000", "")]


def test_without_a_size_documents_stay_whole():
    passage = Passage(id="doc", text=" ".join(TEN))
    assert Chunker(CleaningConfig()).chunks(passage) == [passage]


def test_sentences_end_where_their_script_says():
    text = "最初の文です。次の文です。最後です。"
    assert [chunk.text for chunk in cut(text, size=8)] == ["最初の文です。", "次の文です。", "最後です。"]
    german = "Das ist z.B. ein Satz mit neun Worten drin. Und noch einer, auch mit neun Worten drin."
    assert [chunk.text[:3] for chunk in cut(german, size=10, chunk_language="de")] == ["Das", "Und"]


def test_special_tokens_count_once_a_window():
    with_two = lambda text: len(text.split()) + 2  # noqa: E731
    assert [chunk.text for chunk in cut(" ".join(TEN), count=with_two)] == [sentences(0, 1, 2), sentences(3, 4, 5)]
    assert [chunk.text for chunk in cut(" ".join(TEN), count=with_two, size=31)] == [
        sentences(0, 1), sentences(2, 3), sentences(4, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["doc", "a#b", "doc#0001", "http://x/y#0000"])
def test_a_passage_leads_back_to_its_document(name):
    chunker = Chunker(CleaningConfig(chunk_tokens=8, chunk_overlap_tokens=0))
    found = chunker.chunks(Passage(id=name, text=" ".join(TEN)))
    assert len(found) > 3
    assert {document_of(chunk.id) for chunk in found} == {name}
    assert document_of("doc#12345") == "doc"
