"""All about the texts of one part: what is wrong with each, how long they are, what languages they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_shards.findings.finding import EXAMPLES, Example, Finding, Places
from data_shards.findings.language import UNSURE, language_of
from data_shards.findings.lengths import Lengths
from data_shards.findings.parts import Part
from data_shards.findings.text_sample import BottomK
from data_shards.findings.texts import TextChecks, plural

CountTokens = Callable[[Sequence[str]], list[int]]

CUT_SHARE = 0.05
"""More texts longer than the encoder takes are a warning, fewer a note."""

OTHER_LANGUAGE_SHARE = 0.01
"""Fewer texts in other languages than most are as likely the model's mistakes."""

_KEPT_CHARS = 20_000  # of a sampled text; more cannot change what is told from it


class _Sampled(NamedTuple):
    example: Example
    text: str


class PartChecks:
    """Takes the texts of one part, batch by batch."""

    def __init__(self, part: str, places: Places, sample_texts: int, seed: int) -> None:
        """Begin empty.

        Args:
            part: `query`, `positive`, `negative` or `passage`.
            places: where samples are.
            sample_texts: languages and tokens are told from so many.
            seed: of which.
        """
        self._part = part
        self._places = places
        self._texts = TextChecks(part, places)
        self._words, self._chars, self._tokens = Lengths(), Lengths(), Lengths()
        self._sample: BottomK[_Sampled] = BottomK(sample_texts, seed)
        self._cut: list[tuple[int, Example]] = []
        self._codes: list[str] = []

    @property
    def count(self) -> int:
        """Texts so far."""
        return self._chars.count

    def look(self, part: Part) -> None:
        """Take a batch."""
        self._texts.look(part)
        self._words.add([len(text.split()) for text in part.texts])
        self._chars.add(map(len, part.texts))
        for at, key in enumerate(part.text_keys.tolist()):
            if self._sample.wants(key):
                example = self._places.example(int(part.ordinals[at]), part.ids[at], part.texts[at])
                self._sample.put(key, _Sampled(example, part.texts[at][:_KEPT_CHARS]))

    def numbers(self, count_tokens: CountTokens | None) -> dict[str, Any]:
        """Return counts, lengths and languages."""
        sampled = self._sample.items()
        measured = self._words
        numbers: dict[str, Any] = {
            "count": self.count,
            "words": self._words.describe(),
            "chars": self._chars.describe(),
        }
        if count_tokens is not None and sampled:
            counts = count_tokens([row.text for row in sampled])
            self._tokens.add(counts)
            self._cut = sorted(
                ((count, row.example) for count, row in zip(counts, sampled, strict=True)), key=lambda row: -row[0]
            )
            measured = self._tokens
            numbers["tokens"] = {**measured.describe(), "sampled": len(sampled)}
        unit = "words" if measured is self._words else "tokens"
        numbers["histogram"] = {"unit": unit, **measured.histogram()}
        if sampled:
            numbers["languages"] = {"sampled": len(sampled), "shares": self._languages(sampled)}
        return numbers

    def findings(self, max_empty_share: float) -> list[Finding]:
        """Return what is wrong with single texts."""
        return self._texts.findings(max_empty_share)

    def length_findings(self, max_tokens: int) -> Iterator[Finding]:
        """Tell what the encoder would cut, and what is in other languages than most; after `numbers`."""
        if max_tokens and (cut := self._tokens.above(max_tokens)):
            share = cut / self._tokens.count
            yield Finding(
                name=f"too_long_{self._part}",
                severity="warning" if share > CUT_SHARE else "note",
                count=cut,
                of=self._tokens.count,
                unit=f"sampled {plural(self._part)}",
                advice=f"the encoder reads {max_tokens} tokens; raise max_tokens, or set cleaning.chunk_tokens",
                examples=tuple(example for count, example in self._cut[:EXAMPLES] if count > max_tokens),
            )
        yield from self._other_languages()

    def _languages(self, sampled: list[_Sampled]) -> dict[str, float]:
        self._codes = [language_of(row.text) for row in sampled]
        codes, counts = np.unique(self._codes, return_counts=True)
        shares = sorted(zip((-counts).tolist(), codes.tolist(), strict=True))
        return {code: round(-count / len(sampled), 4) for count, code in shares}

    def _other_languages(self) -> Iterator[Finding]:
        sampled = self._sample.items()
        known = [code for code in self._codes if code != UNSURE]
        if not known:
            return
        main = max(sorted(set(known)), key=known.count)
        others = [row.example for row, code in zip(sampled, self._codes, strict=True) if code not in (main, UNSURE)]
        if len(others) > OTHER_LANGUAGE_SHARE * len(sampled):
            yield Finding(
                name=f"other_language_{self._part}",
                severity="note",
                count=len(others),
                of=len(sampled),
                unit=f"sampled {plural(self._part)}",
                advice=f"not in {main}, as most are, as far as short texts can tell: is the encoder made for them",
                examples=tuple(others[:EXAMPLES]),
            )
