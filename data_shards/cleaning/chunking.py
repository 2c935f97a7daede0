"""Long documents to passages: windows of tokens that overlap, cut between sentences."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.words import count_words
from data_shards.samples import Passage

CountTokens = Callable[[str], int]

_NUMBER = re.compile(r"#\d{4,}$")
_PIECES_PER_WINDOW = 8  # a sentence that no window can hold is cut so small that windows still fill up


class _Piece(NamedTuple):
    """A sentence, or part of an overlong one: text[start:end]."""

    start: int
    end: int
    tokens: int


def document_of(passage_id: str) -> str:
    """Return the id of the document that a passage was cut from."""
    return _NUMBER.sub("", passage_id)


class Chunker:
    """Cuts documents into windows of at most `chunk_tokens`, title included, so that an encoder reads each whole.

    A window takes as many whole sentences as it can hold. The next one begins with the last of them, as few as reach
    `chunk_overlap_tokens`; fewer where the sentence that follows would not fit otherwise. A sentence that is longer
    than a window is cut at line ends or between words. No text is lost.
    """

    def __init__(self, config: CleaningConfig, count_tokens: CountTokens | None = None) -> None:
        """Say how tokens are counted.

        Args:
            config: holds sizes and language.
            count_tokens: of the encoder that will read the passages, special tokens included if it adds them; words
                are counted without it.
        """
        self._count = count_tokens or count_words
        self._limit = config.chunk_tokens
        self._overlap = config.chunk_overlap_tokens
        self._language = config.chunk_language
        if self._limit:
            self._special = self._count("")

    def chunks(self, passage: Passage) -> list[Passage]:
        """Return the document's passages in order, ids `DOC#0000` onwards; itself where `chunk_tokens` is 0."""
        if not self._limit:
            return [passage]
        title, text = self._shorten_title(passage.title.strip(), passage.text.strip())
        texts = [text] if self._fits(title, text) else self._cut(title, text)
        return [
            Passage(id=f"{passage.id}#{number:04d}", title=title, text=piece) for number, piece in enumerate(texts)
        ]

    def _cut(self, title: str, text: str) -> list[str]:
        pieces = list(self._pieces(title, text))
        return [text[pieces[begin].start : pieces[end - 1].end] for begin, end in self._windows(title, text, pieces)]

    def _windows(self, title: str, text: str, pieces: list[_Piece]) -> Iterator[tuple[int, int]]:
        """Yield the windows as ranges of pieces; each holds at least one that none before it holds."""

        def fits(begin: int, end: int) -> bool:
            return self._fits(title, text[pieces[begin].start : pieces[end - 1].end])

        budget = self._budget(title)
        begin, new = 0, 0
        while new < len(pieces):
            end = new + 1
            tokens = sum(piece.tokens for piece in pieces[begin:end])
            while end < len(pieces) and tokens + pieces[end].tokens <= budget:
                tokens += pieces[end].tokens
                end += 1
            # A sum of counts is near the count of the sum, but some tokenizers join tokens over borders.
            while end > new + 1 and not fits(begin, end):
                end -= 1
            yield begin, end
            begin, new = self._next_begin(pieces, begin, end), end
            while begin < new < len(pieces) and not fits(begin, new + 1):
                begin += 1

    def _next_begin(self, pieces: list[_Piece], begin: int, end: int) -> int:
        shared, start = 0, end
        while start > begin + 1 and shared < self._overlap:
            start -= 1
            shared += pieces[start].tokens
        return start

    def _pieces(self, title: str, text: str) -> Iterator[_Piece]:
        budget = self._budget(title)
        for start, end in self._sentences(text):
            tokens = self._tokens(text[start:end])
            # Most sentences are far below: then a tokenizer that joins tokens over borders makes no difference.
            if 2 * tokens <= budget or self._fits(title, text[start:end]):
                yield _Piece(start, end, tokens)
            else:
                yield from self._halves(title, text, start, end, max(1, budget // _PIECES_PER_WINDOW))

    def _halves(self, title: str, text: str, start: int, end: int, most: int) -> Iterator[_Piece]:
        """Cut a sentence in the middle, and the halves again, until they have at most so many tokens."""
        start, end = _stripped(text, start, end)
        tokens = self._tokens(text[start:end])
        if end - start <= 1 or (tokens <= most and self._fits(title, text[start:end])):
            yield _Piece(start, end, tokens)
            return
        middle = _middle(text, start, end)
        yield from self._halves(title, text, start, middle, most)
        yield from self._halves(title, text, middle, end, most)

    def _sentences(self, text: str) -> Iterator[tuple[int, int]]:
        from sentencex import segment

        end = 0
        for sentence in segment(self._language, text):
            start, end = end, end + len(sentence)
            if sentence.strip():
                yield _stripped(text, start, end)
        assert end == len(text), "the sentences are not the text"

    def _shorten_title(self, title: str, text: str) -> tuple[str, str]:
        """Leave the text at least half of a window: what a title has beyond that begins the text."""
        most = self._limit // 2
        if not title or self._count(title) <= most:
            return title, text
        words = title.split(" ")
        counts = range(len(words) + 1)
        kept = bisect_right(counts, most, key=lambda count: self._count(" ".join(words[:count]))) - 1
        rest = " ".join(words[max(0, kept) :])
        return " ".join(words[: max(0, kept)]), f"{rest}\n{text}" if rest else text

    def _fits(self, title: str, text: str) -> bool:
        return self._count(f"{title} {text}" if title else text) <= self._limit

    def _budget(self, title: str) -> int:
        return self._limit - self._tokens(title) - self._special

    def _tokens(self, text: str) -> int:
        return self._count(text) - self._special


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range without white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def _middle(text: str, start: int, end: int) -> int:
    """Return a place to cut near the middle: a line's end in the middle half, else a blank, else anywhere."""
    middle, quarter = (start + end) // 2, (end - start) // 4
    places = [
        text.rfind("\n", middle - quarter, middle),
        text.find("\n", middle, middle + quarter),
    ]
    if max(places) < 0:
        places = [text.rfind(" ", start, middle), text.find(" ", middle, end)]
    found = [place for place in places if place >= 0]
    return min(found, key=lambda place: abs(place - middle)) if found else middle
