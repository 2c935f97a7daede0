"""Limits on the length of queries and passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.words import count_words
from data_shards.errors import UserError

CountTokens = Callable[[str], int]


class LengthLimits:
    """Tells which texts are within the limits of a config."""

    def __init__(self, config: CleaningConfig, count_tokens: CountTokens | None = None) -> None:
        """Choose the unit.

        Args:
            config: holds unit and limits.
            count_tokens: needed where the unit is tokens.

        Raises:
            UserError: the unit is tokens, and there is no tokenizer.
        """
        if config.length_unit == "tokens" and count_tokens is None:
            raise UserError('cleaning.length_unit is "tokens"; name a tokenizer folder in cleaning.tokenizer')
        tokens = count_tokens or count_words
        self._count: CountTokens = {"characters": len, "words": count_words, "tokens": tokens}[config.length_unit]
        self._limits = {
            "query": (config.query_min_length, config.query_max_length),
            "passage": (config.passage_min_length, config.passage_max_length),
        }

    def keeps_query(self, text: str, counts: Counter[str]) -> bool:
        """Tell whether a query is within its limits; if not, `query_too_short` or `query_too_long` counts one."""
        return self._keeps("query", text, counts)

    def keeps_passage(self, text: str, counts: Counter[str]) -> bool:
        """Tell whether a passage's content is within its limits; see `keeps_query`."""
        return self._keeps("passage", text, counts)

    def _keeps(self, kind: str, text: str, counts: Counter[str]) -> bool:
        low, high = self._limits[kind]
        if not low and not high:
            return True
        length = self._count(text)
        if length < low:
            counts[f"{kind}_too_short"] += 1
        elif high and length > high:
            counts[f"{kind}_too_long"] += 1
        else:
            return True
        return False
