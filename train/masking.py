"""Which tokens of a text are hidden, and guessed: a function of the text's place in the order, not of the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

Int64s = NDArray[np.int64]

_MASKED, _REPLACED = 0.8, 0.1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What hiding has to know of a tokenizer."""

    mask_id: int
    """Of the mask token."""
    is_word: NDArray[np.bool_]
    """Of each token id: whether it is no special one, like separators, padding and the unknown."""
    word_ids: Int64s
    """Those that are."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read it from a tokenizer that has a mask token."""
        assert tokenizer.mask_token_id is not None, "such a tokenizer is refused before"
        is_word = np.ones(len(tokenizer), dtype=bool)
        is_word[tokenizer.all_special_ids] = False
        return cls(int(tokenizer.mask_token_id), is_word, np.flatnonzero(is_word))


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text with some of its tokens hidden."""

    input_ids: list[int]
    places: Int64s
    """Where tokens are to be guessed, ascending."""
    labels: Int64s
    """Which they are."""


def mask_text(token_ids: Sequence[int], vocabulary: Vocabulary, *, share: float, key: Sequence[int]) -> MaskedText:
    """Choose a share of a text's tokens, one at least, to be guessed; special ones are never chosen.

    As in BERT (Devlin et al. 2019) eight in ten of them become the mask token, one a random word, and one stays as it
    is: a text's vector is pooled from visible tokens, and with masks alone the loss asks nothing of the vector at a
    visible one. That this is the better choice here is reasoned, not measured.

    Args:
        token_ids: of one text.
        vocabulary: of its tokenizer.
        share: of its tokens, rounded to a whole number of them.
        key: whole numbers, none negative; with an equal key equal places of equal texts are chosen.
    """
    draw = np.random.default_rng(key)
    ids = np.asarray(token_ids, dtype=np.int64)
    words = np.flatnonzero(vocabulary.is_word[ids])
    count = min(len(words), max(1, round(share * len(words))))
    places = np.sort(draw.choice(words, count, replace=False, shuffle=False))
    labels = ids[places]
    lot = draw.random(count)
    random_words = vocabulary.word_ids[draw.integers(len(vocabulary.word_ids), size=count)]
    shown = np.where(lot < _MASKED + _REPLACED, random_words, labels)
    ids[places] = np.where(lot < _MASKED, vocabulary.mask_id, shown)
    return MaskedText(ids.tolist(), places, labels)
