"""Which tokens of a text are hidden, and guessed: a function of the text's place in the order, not of the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text with some of its tokens hidden."""

    input_ids: list[int]
    places: Int64s
    """Where tokens are hidden, ascending."""
    labels: Int64s
    """Which they are."""


def mask_text(
    token_ids: Sequence[int], *, share: float, mask_id: int, special_ids: Sequence[int], key: Sequence[int]
) -> MaskedText:
    """Hide a share of a text's tokens, one at least; special ones are never hidden.

    Every hidden token is replaced by the mask token. BERT leaves a tenth of them as they are and puts random ones in
    place of another tenth. Wettig et al. 2023, "Should You Mask 15% in Masked Language Modeling?", find that this
    gains nothing; and without it a text that training will encode has no wrong words in it, only missing ones.

    Args:
        token_ids: of one text.
        share: of its tokens, rounded to a whole number of them.
        mask_id: of the mask token.
        special_ids: of what is no word: separators, padding, the unknown.
        key: whole numbers, none negative; with an equal key equal places of equal texts are hidden.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    words = np.flatnonzero(~np.isin(ids, special_ids))
    count = min(len(words), max(1, round(share * len(words))))
    places = np.sort(np.random.default_rng(key).choice(words, count, replace=False, shuffle=False))
    labels = ids[places]
    ids[places] = mask_id
    return MaskedText(ids.tolist(), places, labels)
