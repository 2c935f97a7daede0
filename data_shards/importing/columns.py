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
ID_COLUMNS = ("id", "_id", "docid", "pid", "passage_id")
_QUERY_ID = ("query_id", "qid", "_id", "id")
TEXT_COLUMNS = ("text", "contents", "content", "passage", "body")
_TEACHER_POSITIVES = ("teacher_positives", "pos_scores")
_TEACHER_NEGATIVES = ("teacher_negatives", "neg_scores")
_TEACHER = ("scores", "score")
_NUMBERED_NEGATIVE = re.compile(r"negative_\d+")
_SHOWN = 24  # characters of a number that is none

Floats = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns, where they are not the usual ones. Empty: the usual ones are looked for."""

    query: str = ""
    """Of the query; else `query`, `anchor` or `question`."""
    positive: str = ""
    """Of the positive passage or passages; else `positive`, `pos`, `passage` and the like."""
    negative: str = ""
    """Of given negatives; else `negative`, `negative_1` and on, `neg` and the like, where there are some."""
    query_id: str = ""
    """Of the query's id; else `query_id`, `qid`, `_id`, `id`, or one made from the query."""
    weight: str = ""
    """Of a number above 0 that says how much a pair counts (clicks, purchases); else `weight`."""
    scores: str = ""
    """Of the positives' graded relevance, one number each (ratings); else `scores`."""
    teacher_positives: str = ""
    """Of a teacher's scores of the positives, one number each; else `teacher_positives` or `pos_scores`."""
    teacher_negatives: str = ""
    """The same of the given negatives; else `teacher_negatives` or `neg_scores`."""
    teacher: str = ""
    """Of a teacher's scores of both, the positives' first; or of how far one positive is above each negative. Else
    `scores` or `score`, where that is a list of one number for each positive and negative."""
    id: str = ""
    """Of a passage's id; else `id`, `_id`, `docid` and the like, or one made from the content."""
    title: str = ""
    """Of a passage's title; else `title`."""
    text: str = ""
    """Of a passage's text; else `text`, `contents`, `body` and the like."""


_USUAL = Columns()


def pair_of(row: Row, columns: Columns, source: str) -> Pair:
    """Read a pair from a row; one without a query id gets one from its query, a passage without one from its content.

    Raises:
        RowError: a wanted column is not there, or holds what cannot be text; the message names file and line.
    """
    query = _column(row, columns.query, _QUERY, "query")
    if query is not None and not isinstance(query, str):
        raise row.error(f"the query is of type {type(query).__name__}, wanted text")
    values = _column(row, columns.positive, _POSITIVE, "positive")
    positives = tuple(_passages(values, row, columns))
    negatives = tuple(_passages(_negatives(row, columns.negative), row, columns))
    given_id = _first(row, columns.query_id, _QUERY_ID, "query_id")
    of_positives, of_negatives = _teacher(row, columns, len(positives), len(negatives))
    return Pair(
        query_id=str(given_id) if given_id is not None else f"q{exact_hash(query or ''):016x}",
        query=query or "",
        positives=positives,
        negatives=negatives,
        source=str(row.values.get("source") or source),
        weight=_weight(row, columns.weight),
        scores=_scores(row, columns.scores, len(positives), len(negatives)),
        teacher_positives=of_positives,
        teacher_negatives=of_negatives,
    )


def passage_of(values: dict[str, Any], row: Row, columns: Columns = _USUAL) -> Passage:
    """Read a passage from an object of a row, or from the row's own values; see `pair_of`."""
    name = columns.text or next((name for name in TEXT_COLUMNS if name in values), None)
    if name is None or name not in values:
        tried = columns.text or ", ".join(TEXT_COLUMNS)
        raise row.error(f"a passage has no text (looked for {tried}); there are: {_list(values)}")
    if columns.title and columns.title not in values:
        raise row.error(f"a passage has no {columns.title}, its title's column; there are: {_list(values)}")
    text, title = values[name], values.get(columns.title or "title")
    text, title = "" if text is None else text, "" if title is None else title
    if not isinstance(text, str) or not isinstance(title, str):
        raise row.error(f"a passage's title or {name} is not text")
    given_id = _first(row._replace(values=values), columns.id, ID_COLUMNS, "id")
    passage_id = str(given_id) if given_id is not None else f"p{exact_hash(title, text):016x}"
    return Passage(id=passage_id, title=title, text=text)


def exact_hash(*texts: str) -> int:
    """Hash texts as they stand, to 64 bits; `samples.text_hash` is the one that folds case and white space."""
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    joined = "".join([f"{len(text)}:{text}" for text in texts])
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")


def _column(row: Row, name: str, aliases: tuple[str, ...], wanted: str) -> Any:
    for candidate in (name,) if name else aliases:
        if candidate in row.values:
            return row.values[candidate]
    tried = name or ", ".join(aliases)
    there = _list(row.values)
    raise row.error(f"no {wanted} (looked for {tried}); there are: {there}; name its column with --columns.{wanted}")


def _negatives(row: Row, name: str) -> list[Any]:
    if name:
        return [_column(row, name, (), "negative")]
    return [
        value
        for key, value in row.values.items()
        if key in _NEGATIVE or _NUMBERED_NEGATIVE.fullmatch(key) is not None
    ]


def _passages(value: Any, row: Row, columns: Columns) -> Iterator[Passage]:
    if value is None:
        return
    if isinstance(value, str):
        yield passage_of({"text": value}, row)
    elif isinstance(value, dict):
        yield passage_of(value, row, columns)
    elif isinstance(value, list):
        for item in value:
            yield from _passages(item, row, columns)
    else:
        raise row.error(f"a passage is of type {type(value).__name__}, wanted text, an object with `text`, or a list")


def _weight(row: Row, name: str) -> float:
    given = _column(row, name, (), "weight") if name else row.values.get("weight")
    if given in (None, ""):
        return 1.0
    weight = _number(given, row, "weight")
    if weight < 0:
        raise row.error(f"weight {given!r} is below 0")
    return weight


def _scores(row: Row, name: str, positives: int, negatives: int) -> Floats:
    given = _column(row, name, (), "scores") if name else row.values.get("scores")
    if not name and _is_of_both(given, positives, negatives):
        return ()  # a teacher's
    scores = _numbers(given, row, "score")
    if scores and len(scores) != positives:
        raise row.error(f"{len(scores)} scores for {positives} positives; wanted one each")
    if scores and min(scores) < 0:
        raise row.error(f"score {min(scores):g} is below 0; a negative passage belongs among the negatives")
    return scores


def _teacher(row: Row, columns: Columns, positives: int, negatives: int) -> tuple[Floats, Floats]:
    """Return a teacher's scores of the positives and of the negatives; either may be empty."""
    if columns.teacher:
        return _teacher_of_both(_column(row, columns.teacher, (), "teacher"), row, positives, negatives)
    for name in _TEACHER if not columns.scores else ():
        if _is_of_both(row.values.get(name), positives, negatives):
            return _teacher_of_both(row.values[name], row, positives, negatives)
    sides = (
        ("positives", columns.teacher_positives, _TEACHER_POSITIVES, positives),
        ("negatives", columns.teacher_negatives, _TEACHER_NEGATIVES, negatives),
    )
    found = []
    for side, name, aliases, count in sides:
        if name:
            given = _column(row, name, (), f"teacher_{side}")
        else:
            given = next((row.values[alias] for alias in aliases if alias in row.values), None)
        scores = _numbers(given, row, "teacher score")
        if scores and len(scores) != count:
            raise row.error(f"{len(scores)} teacher scores for {count} {side}; wanted one each")
        found.append(scores)
    return found[0], found[1]


def _teacher_of_both(given: Any, row: Row, positives: int, negatives: int) -> tuple[Floats, Floats]:
    """Take a teacher's scores apart; margins, as sentence-transformers trains on, are scores below a positive's 0."""
    scores = _numbers(given, row, "teacher score")
    if not scores or len(scores) == positives + negatives:
        return scores[:positives], scores[positives:]
    if positives == 1 and len(scores) == negatives:
        return (0.0,), tuple(-margin for margin in scores)
    raise row.error(
        f"{len(scores)} teacher scores for {positives} positives and {negatives} negatives; wanted one each"
    )


def _is_of_both(given: Any, positives: int, negatives: int) -> bool:
    """Tell a list of numbers for positives and negatives from one for the positives alone."""
    return isinstance(given, list) and negatives > 0 and len(given) == positives + negatives


def _numbers(given: Any, row: Row, what: str) -> Floats:
    if given in (None, "", []):
        return ()
    return tuple(_number(value, row, what) for value in (given if isinstance(given, list) else [given]))


def _number(given: Any, row: Row, what: str) -> float:
    try:
        number = float(cast(Any, given))
    except (TypeError, ValueError):
        raise row.error(f"{what} {given!r} is no number") from None
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise row.error(f"{what} {str(given)[:_SHOWN]} is not finite")
    return number


def _first(row: Row, name: str, aliases: tuple[str, ...], wanted: str) -> Any:
    """Return the first id that is given; one whose column was named has to be there."""
    if name:
        given = _column(row, name, (), wanted)
        if given in (None, ""):
            raise row.error(f"its {name} is empty, which was named as the column of the {wanted}")
        return given
    return next((row.values[alias] for alias in aliases if row.values.get(alias) not in (None, "")), None)


def _list(values: dict[str, Any]) -> str:
    return ", ".join(map(str, values)) or "none"
