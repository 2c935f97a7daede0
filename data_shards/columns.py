"""From a row's columns to a pair or a passage.

Columns may go by any of the names common in the field; passages may be plain strings, objects with `id`, `title` and
`text`, or lists of either, so that our own samples, and those of sentence-transformers, Tevatron and FlagEmbedding,
are read as they are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from data_shards.rows import Row
from data_shards.samples import Pair, Passage

_QUERY = ("query", "anchor", "question")
_POSITIVE = ("positive", "positives", "pos", "positive_passages", "passage", "answer")
_NEGATIVE = ("negative", "negatives", "neg", "negative_passages", "hard_negatives")
_ID = ("id", "_id", "docid", "pid", "passage_id")
_QUERY_ID = ("query_id", "qid", "_id", "id")
_TEXT = ("text", "contents", "content", "passage", "body")
_NUMBERED_NEGATIVE = re.compile(r"negative_\d+")


@dataclass(frozen=True, kw_only=True)
class PairColumns:
    """Names of a pair's columns, where they are not the usual ones."""

    query: str | None = None
    """Of the query."""
    positive: str | None = None
    """Of the positive passage or passages."""
    negative: str | None = None
    """Of the given negatives."""


def pair_of(row: Row, columns: PairColumns, source: str) -> Pair:
    """Read a pair from a row; one without a query id gets one from its query, a passage without one from its content.

    Raises:
        UserError: a wanted column is not there, or holds what cannot be text; the message names file and line.
    """
    query = _column(row, columns.query, _QUERY, "query")
    if query is not None and not isinstance(query, str):
        raise row.error(f"the query is of type {type(query).__name__}, wanted text")
    positives = _column(row, columns.positive, _POSITIVE, "positive")
    given_id = _first(row.values, _QUERY_ID)
    return Pair(
        query_id=str(given_id) if given_id is not None else f"q{exact_hash(query or ''):016x}",
        query=query or "",
        positives=tuple(_passages(positives, row)),
        negatives=tuple(_passages(_negatives(row, columns.negative), row)),
        source=str(row.values.get("source") or source),
        weight=_weight(row),
    )


def passage_of(values: dict[str, Any], row: Row) -> Passage:
    """Read a passage from an object of a row, or from the row's own values; see `pair_of`."""
    name = next((name for name in _TEXT if name in values), None)
    if name is None:
        raise row.error(f"a passage has no text (looked for {', '.join(_TEXT)}); there are: {_list(values)}")
    text, title = values[name], values.get("title")
    text, title = "" if text is None else text, "" if title is None else title
    if not isinstance(text, str) or not isinstance(title, str):
        raise row.error(f"a passage's title or {name} is not text")
    given_id = _first(values, _ID)
    passage_id = str(given_id) if given_id is not None else f"p{exact_hash(title, text):016x}"
    return Passage(id=passage_id, title=title, text=text)


def exact_hash(*texts: str) -> int:
    """Hash texts as they stand, to 64 bits; `samples.text_hash` is the one that folds case and white space."""
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    joined = "".join(f"{len(text)}:{text}" for text in texts)
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")


def _column(row: Row, name: str | None, aliases: tuple[str, ...], wanted: str) -> Any:
    for candidate in (name,) if name else aliases:
        if candidate in row.values:
            return row.values[candidate]
    tried = name or ", ".join(aliases)
    there = _list(row.values)
    raise row.error(f"no {wanted} (looked for {tried}); there are: {there}; name its column with --{wanted}-column")


def _negatives(row: Row, name: str | None) -> list[Any]:
    if name:
        return [_column(row, name, (), "negative")]
    return [
        value
        for key, value in row.values.items()
        if key in _NEGATIVE or _NUMBERED_NEGATIVE.fullmatch(key) is not None
    ]


def _passages(value: Any, row: Row) -> Iterator[Passage]:
    if value is None:
        return
    if isinstance(value, str):
        yield passage_of({"text": value}, row)
    elif isinstance(value, dict):
        yield passage_of(value, row)
    elif isinstance(value, list):
        for item in value:
            yield from _passages(item, row)
    else:
        raise row.error(f"a passage is of type {type(value).__name__}, wanted text, an object with `text`, or a list")


def _weight(row: Row) -> float:
    given = row.values.get("weight")
    if given in (None, ""):
        return 1.0
    try:
        weight = float(cast(Any, given))
    except (TypeError, ValueError):
        raise row.error(f"weight {given!r} is no number") from None
    if not 0 < weight < math.inf:
        raise row.error(f"weight {given!r} is not above 0 and finite")
    return weight


def _first(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _list(values: dict[str, Any]) -> str:
    return ", ".join(map(str, values)) or "none"
