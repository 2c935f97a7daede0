"""Any text, any sizes: no sentence is lost, no window too long, neighbours overlap as asked."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from data_shards.cleaning.chunking import Chunker, _Piece
from data_shards.cleaning.config import CleaningConfig
from data_shards.samples import Passage

WORD = st.sampled_from(["a", "bb", "Ccc", "e.g.", "x=1", "日本", "हिन्दी", "https://example.com/path", "word" * 12])
SENTENCE = st.tuples(st.lists(WORD, min_size=1, max_size=25), st.sampled_from([". ", "! ", "。", "\n", "\n\n", "; "]))
TEXT = st.lists(SENTENCE, max_size=25).map(lambda parts: "".join(" ".join(words) + end for words, end in parts))
CHARACTERS = st.text(max_size=300)


def by_fours(text: str) -> int:
    """A tokenizer that joins tokens over sentence borders, and adds two special ones."""
    return -(-len(text) // 4) + 2


COUNTS = st.sampled_from([lambda text: len(text.split()), len, by_fours])


@given(text=TEXT | CHARACTERS, title=st.text("ab ", max_size=40), size=st.integers(8, 60), data=st.data())
def test_every_sentence_is_in_some_window_and_every_window_within_its_budget(text, title, size, data):
    count, overlap = data.draw(COUNTS), data.draw(st.integers(0, size // 2))
    chunker = Chunker(CleaningConfig(chunk_tokens=size, chunk_overlap_tokens=overlap), count)
    found = chunker.chunks(Passage(id="doc", title=title, text=text))
    assert [chunk.id for chunk in found] == [f"doc#{number:04d}" for number in range(len(found))]
    for chunk in found:
        assert count(chunk.content) <= size
        assert chunk.title == found[0].title
    if not overlap:
        parts = [found[0].title, *(chunk.text for chunk in found)]
        assert squeezed("".join(parts)) == squeezed(title + text), "text is lost, or there twice"


@given(sentences=st.lists(st.lists(WORD, min_size=1, max_size=25), max_size=20), size=st.integers(40, 90))
def test_every_sentence_that_fits_is_whole_in_some_window(sentences, size):
    texts = [f"{number} {' '.join(words)} end." for number, words in enumerate(sentences)]
    texts = [text for text in texts if len(text) <= 40]
    chunker = Chunker(CleaningConfig(chunk_tokens=size, chunk_overlap_tokens=size // 4), len)
    found = [chunk.text for chunk in chunker.chunks(Passage(id="doc", text=" ".join(texts)))]
    assert [text for text in texts if not any(text in chunk for chunk in found)] == []


def squeezed(text: str) -> str:
    return "".join(text.split())


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), overlap=st.integers(0, 15))
def test_neighbours_overlap_by_the_fewest_sentences_that_reach_what_is_asked(lengths, overlap):
    size = 30
    text = " ".join("w " * (length - 1) + "w." for length in lengths)
    pieces, at = [], 0
    for length in lengths:
        pieces.append(_Piece(at, at + 2 * length, length))
        at += 2 * length + 1
    chunker = Chunker(CleaningConfig(chunk_tokens=size, chunk_overlap_tokens=overlap), lambda text: len(text.split()))
    windows = list(chunker._windows("", text, pieces))
    assert windows[0][0] == 0
    assert windows[-1][1] == len(lengths)
    for begin, end in windows:
        assert sum(lengths[begin:end]) <= size
    for (begin, end), (next_begin, next_end) in pairwise(windows):
        assert begin < next_begin <= end < next_end
        shared, following = sum(lengths[next_begin:end]), lengths[end]
        assert sum(lengths[next_begin + 1 : end]) < overlap or next_begin == end, "one sentence fewer would do"
        if shared < overlap and next_begin > begin + 1:
            assert shared + lengths[next_begin - 1] + following > size, "one sentence more would fit"
        assert sum(lengths[begin : end + 1]) > size, "the window had room"
