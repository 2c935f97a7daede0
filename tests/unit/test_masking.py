"""Which tokens are hidden: words only, as many as asked, and the same ones for the same key."""

from __future__ import annotations

import numpy as np
import pytest

from train.masking import mask_text

MASK, SPECIAL = 4, [0, 1, 2, 3, 4]  # [PAD] [UNK] [CLS] [SEP] [MASK]


def hide(words: list[int], share: float = 0.5, key: tuple[int, ...] = (7, 0, 0)):
    return mask_text([2, *words, 3], share=share, mask_id=MASK, special_ids=SPECIAL, key=key)


def test_hidden_tokens_become_the_mask_and_their_labels_what_they_were() -> None:
    words = list(range(10, 30))
    text = hide(words)
    original = [2, *words, 3]
    assert len(text.places) == 10
    assert list(text.places) == sorted(set(text.places.tolist()))
    assert [original[place] for place in text.places] == text.labels.tolist()
    shown = [MASK if place in text.places else token for place, token in enumerate(original)]
    assert text.input_ids == shown


@pytest.mark.parametrize(
    ("words", "share", "hidden"),
    [(1, 0.15, 1), (3, 0.15, 1), (10, 0.15, 2), (13, 0.15, 2), (20, 0.15, 3), (100, 0.4, 40), (5, 1.0, 5)],
)
def test_the_share_is_rounded_and_one_at_least(words: int, share: float, hidden: int) -> None:
    assert len(hide(list(range(10, 10 + words)), share).places) == hidden


def test_what_is_no_word_is_never_hidden() -> None:
    """An unknown word is not one to guess: every unknown one would be right."""
    text = hide([1, 11, 1, 12], share=1.0)
    assert text.places.tolist() == [2, 4]
    assert text.labels.tolist() == [11, 12]
    assert text.input_ids == [2, 1, MASK, 1, MASK, 3]
    assert hide([1, 1]).places.tolist() == []
    assert hide([]).input_ids == [2, 3]


def test_places_follow_from_the_key_alone_and_differ_with_each_part_of_it() -> None:
    words = list(range(10, 60))
    assert hide(words, key=(7, 3, 5)).input_ids == hide(words, key=(7, 3, 5)).input_ids
    seen = [tuple(hide(words, key=key).places) for key in ((7, 3, 5), (8, 3, 5), (7, 4, 5), (7, 3, 6), (7, 5, 3))]
    assert len(set(seen)) == 5


def test_every_word_is_hidden_as_often_as_every_other() -> None:
    """400 draws of 2 of 10 words: each is hidden 80 times, give or take 5 standard deviations of 8."""
    counts = np.zeros(10)
    for step in range(400):
        counts[hide(list(range(10, 20)), share=0.2, key=(7, step, 0)).places - 1] += 1
    assert counts.sum() == 800
    assert abs(counts - 80).max() < 40
