"""Which tokens are hidden: words only, as many as asked, as BERT hides them, and the same ones for the same key."""

from __future__ import annotations

import numpy as np
import pytest

from encoder.model import Encoder
from train.masking import MaskedText, Vocabulary, mask_text

MASK, WORDS = 4, np.arange(5, 60)  # [PAD] [UNK] [CLS] [SEP] [MASK] come first
VOCABULARY = Vocabulary(MASK, np.arange(60) >= 5, WORDS)


def hide(words: list[int], share: float = 0.5, key: tuple[int, ...] = (7, 0, 0)) -> MaskedText:
    return mask_text([2, *words, 3], VOCABULARY, share=share, key=key)


def test_labels_are_what_stood_at_the_places_and_nothing_else_changes() -> None:
    words = list(range(10, 30))
    text = hide(words)
    original = [2, *words, 3]
    assert len(text.places) == 10
    assert list(text.places) == sorted(set(text.places.tolist()))
    assert [original[place] for place in text.places] == text.labels.tolist()
    others = [place for place in range(22) if place not in text.places]
    assert [text.input_ids[place] for place in others] == [original[place] for place in others]


@pytest.mark.parametrize(
    ("words", "share", "hidden"),
    [(1, 0.15, 1), (3, 0.15, 1), (10, 0.15, 2), (13, 0.15, 2), (20, 0.15, 3), (100, 0.4, 40), (5, 1.0, 5)],
)
def test_the_share_is_rounded_and_one_at_least(words: int, share: float, hidden: int) -> None:
    assert len(hide([10 + k % 40 for k in range(words)], share).places) == hidden


def test_what_is_no_word_is_never_chosen() -> None:
    """An unknown word is not one to guess: every unknown one would be right."""
    text = hide([1, 11, 1, 12], share=1.0)
    assert text.places.tolist() == [2, 4]
    assert text.labels.tolist() == [11, 12]
    assert [text.input_ids[place] for place in (0, 1, 3, 5)] == [2, 1, 1, 3]
    assert hide([1, 1]).places.tolist() == []
    assert hide([]).input_ids == [2, 3]


def test_places_follow_from_the_key_alone_and_differ_with_each_part_of_it() -> None:
    words = list(range(10, 60))
    assert hide(words, key=(7, 3, 5)).input_ids == hide(words, key=(7, 3, 5)).input_ids
    seen = [tuple(hide(words, key=key).places) for key in ((7, 3, 5), (8, 3, 5), (7, 4, 5), (7, 3, 6), (7, 5, 3))]
    assert len(set(seen)) == 5


def test_every_word_is_chosen_as_often_as_every_other() -> None:
    """400 draws of 2 of 10 words: each is chosen 80 times, give or take 5 standard deviations of 8."""
    counts = np.zeros(10)
    for step in range(400):
        counts[hide(list(range(10, 20)), share=0.2, key=(7, step, 0)).places - 1] += 1
    assert counts.sum() == 800
    assert abs(counts - 80).max() < 40


def test_of_ten_eight_are_masked_one_is_another_word_and_one_stays() -> None:
    """Of 8,000 chosen tokens; a random word is the right one in one of 55 cases. Five standard deviations are 140."""
    masked = stayed = 0
    replaced = []
    for step in range(200):
        text = hide([10] * 40, share=1.0, key=(7, step, 0))
        shown = np.array(text.input_ids)[text.places]
        masked += int((shown == MASK).sum())
        stayed += int((shown == 10).sum())
        replaced += shown[(shown != MASK) & (shown != 10)].tolist()
    assert masked + stayed + len(replaced) == 8000
    assert abs(masked - 6400) < 180
    assert abs(stayed - 800 - 800 / 55) < 140
    assert set(replaced) == set(WORDS.tolist()) - {10}, "any word, and no special token"


def test_a_tokenizer_s_special_tokens_are_no_words(encoder: Encoder) -> None:
    vocabulary = Vocabulary.of(encoder.tokenizer)
    assert vocabulary.mask_id == encoder.tokenizer.mask_token_id == 4
    assert not vocabulary.is_word[:5].any()
    assert vocabulary.is_word[5:].all()
    assert vocabulary.word_ids.tolist() == list(range(5, len(encoder.tokenizer)))
