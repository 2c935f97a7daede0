"""Words, for comparing and counting texts in any script, and hashes of them."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import regex

UINT64 = np.uint64
HashArray = NDArray[np.uint64]

# Scripts that put no blank between words: a character counts as a word there.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+")


@cache
def _word() -> regex.Pattern[str]:
    import regex

    # Not `re`, whose \w leaves out the vowel signs of Indic scripts and so breaks their words.
    return regex.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def count_words(text: str) -> int:
    """Count the words; punctuation is none."""
    return len(_ASCII_WORD.findall(text) if text.isascii() else _word().findall(text))


def folded_words(text: str) -> list[str]:
    """Return the words without differences of case and width."""
    if text.isascii():  # the same words, four times as fast
        return _ASCII_WORD.findall(text.lower())
    found: list[str] = _word().findall(unicodedata.normalize("NFKC", text).casefold())
    return found


def hashes_of(parts: list[str]) -> HashArray:
    """Hash each string to 64 bits, the same on every machine."""
    from xxhash import xxh3_64_intdigest

    return np.fromiter(
        (xxh3_64_intdigest(part.encode("utf-8", "surrogatepass")) for part in parts), dtype=UINT64, count=len(parts)
    )


def run_hashes(items: HashArray, length: int) -> HashArray:
    """Hash every run of `length` neighbouring items; fewer items than that give the hash of them all.

    Each place has an odd factor of its own, so that order counts and runs that differ in one item never collide.
    """
    length = min(length, len(items))
    if length == 0:
        return np.empty(0, dtype=UINT64)
    mixed = np.zeros(len(items) - length + 1, dtype=UINT64)
    for place in range(length):
        mixed += items[place : place + len(mixed)] * UINT64(_factor(place))
    return mix(mixed)


def mix(values: HashArray) -> HashArray:
    """Scatter 64 bits over 64 bits (the finaliser of SplitMix64); products wrap, as they should."""
    values = (values ^ (values >> UINT64(30))) * UINT64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> UINT64(27))) * UINT64(0x94D049BB133111EB)
    mixed: HashArray = values ^ (values >> UINT64(31))
    return mixed


def _factor(place: int) -> int:
    """Return an odd number that looks random."""
    value = (place + 1) * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF_FFFF_FFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFF_FFFF_FFFF_FFFF
    return (value ^ value >> 31) | 1
