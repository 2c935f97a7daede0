"""Any text at all, the hostile and the broken included."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, strategies as st

from data_shards.cleaning.clean import TextCleaner, tidy_whitespace
from data_shards.cleaning.config import CleaningConfig

PIECES = st.sampled_from(
    ["<p>", "</p>", "<br", "a<b", "&amp;", "&#128;", "Ã©", "â€œ", "\ud800", "\udc00", "\x00", "\x1b[1m", "\u200b"]
    + [" ", "\t", "\r\n", "\u3000", "bob@example.com", "10.20.30.40", "+1 650-253-0000", "4111111111111111", "日本"]
)  # fmt: skip
TEXT = st.lists(PIECES | st.text(st.characters(exclude_categories=()), max_size=8), max_size=20).map("".join)

ALL = TextCleaner(
    CleaningConfig(
        html=True,
        boilerplate=True,
        pii=("email", "phone", "card", "ip", "iban"),
        pii_phone_regions=("US", "DE"),
        pii_patterns=("NUMBER=[0-9]{30}",),
    )
)


@given(text=TEXT)
def test_tidy_text_is_left_as_it_is(text: str) -> None:
    once = tidy_whitespace(text)
    assert tidy_whitespace(once) == once


@given(text=TEXT)
def test_any_text_comes_through_all_steps_and_can_be_written(text: str) -> None:
    cleaned = ALL.clean(text, Counter())
    cleaned.encode()
    assert ALL.clean(text, Counter()) == cleaned
