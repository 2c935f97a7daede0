"""What a shard holds: pairs and passages, and the hashes by which their texts are compared."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec

# Structs instead of dataclasses: a shard's JSON is decoded straight into them, checked on the way, eight times as
# fast as through dictionaries. They can hold no cycles, so the garbage collector need not track them.

_Item = TypeVar("_Item")
_Relevance = Annotated[float, msgspec.Meta(ge=0)]


class Passage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One unit of the corpus."""

    id: str
    """Unique in its corpus."""
    title: str = ""
    """May be empty."""
    text: str
    """The body."""

    @property
    def content(self) -> str:
        """What the encoder reads: title and text, joined by a space as the BEIR baselines do."""
        return f"{self.title} {self.text}" if self.title else self.text

    @property
    def content_hash(self) -> int:
        """See `text_hash`; two passages with the same content are textual duplicates whatever their ids."""
        return text_hash(self.content)

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form used inside samples."""
        return {"id": self.id, "title": self.title, "text": self.text}

    def to_json(self) -> bytes:
        """Return the payload of a corpus shard's member."""
        return msgspec.json.encode(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Passage:
        """Read the JSON form; an absent title is an empty one.

        Raises:
            KeyError: `id` or `text` is missing.
            TypeError: a value is of another type than text.
        """
        return cls(id=_id(row["id"]), title=_text(row.get("title") or "", "title"), text=_text(row["text"], "text"))

    @classmethod
    def from_json(cls, payload: bytes) -> Passage:
        """Read a corpus shard's member.

        Raises:
            KeyError, TypeError, ValueError: the payload is no passage; readers turn this into `ShardCorruptError`.
        """
        try:
            return decode_passage(payload)
        except NOT_PLAIN:
            return cls.from_dict(_object(payload))


class Pair(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A query with its positive passages and any given negatives: one training sample."""

    query_id: str
    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...] = ()
    source: str = ""
    """Name of the dataset that the pair came from."""
    weight: _Relevance = 1.0
    """How much the pair counts in the loss."""
    scores: tuple[_Relevance, ...] = ()
    """Graded relevance of the positives, one each: clicks, purchases, ratings. Empty: all count the same."""
    teacher_positives: tuple[float, ...] = ()
    """A teacher model's score of each positive, of any sign, to distil from. Empty: there are none."""
    teacher_negatives: tuple[float, ...] = ()
    """The same of each given negative."""

    def __post_init__(self) -> None:
        """Check the teacher's scores: one that is missing would train on another passage's."""
        if self.teacher_positives:
            _check_teacher("teacher_positives", self.teacher_positives, self.positives)
        if self.teacher_negatives:
            _check_teacher("teacher_negatives", self.teacher_negatives, self.negatives)

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher has scored all of its passages, of which there is one at least."""
        scored = len(self.teacher_positives), len(self.teacher_negatives)
        return bool(self.positives) and scored == (len(self.positives), len(self.negatives))

    def keeping(self, positives: Sequence[int], negatives: Sequence[int] | None = None) -> Pair:
        """Return the pair with some of its passages, by their places, and what is said of them.

        Args:
            positives: which stay.
            negatives: which stay; by default all.
        """
        others = range(len(self.negatives)) if negatives is None else negatives
        return msgspec.structs.replace(
            self,
            positives=_at(self.positives, positives),
            negatives=_at(self.negatives, others),
            scores=_at(self.scores, positives),
            teacher_positives=_at(self.teacher_positives, positives),
            teacher_negatives=_at(self.teacher_negatives, others),
        )

    def relevance(self, positive: int) -> float:
        """Return how much one of the positives counts: the pair's weight, times its own score where it has one."""
        return self.weight * (self.scores[positive] if positive < len(self.scores) else 1.0)

    @property
    def first_positive_hash(self) -> int:
        """By this the order keeps pairs with the same positive out of one batch; 0 where there is none."""
        return self.positives[0].content_hash if self.positives else 0

    def to_json(self) -> bytes:
        """Return the payload of a training shard's member; weights and scores are left out where they say nothing."""
        row: dict[str, Any] = {
            "query_id": self.query_id,
            "query": self.query,
            "positives": self.positives,
            "negatives": self.negatives,
            "source": self.source,
        }
        if self.weight != 1.0:
            row["weight"] = self.weight
        for name in ("scores", "teacher_positives", "teacher_negatives"):
            if values := getattr(self, name):
                row[name] = values
        return msgspec.json.encode(row)

    @classmethod
    def from_json(cls, payload: bytes) -> Pair:
        """Read a training shard's member.

        Raises:
            KeyError, TypeError, ValueError: the payload is no training sample; readers turn this into
                `ShardCorruptError`.
        """
        try:
            return decode_pair(payload)
        except NOT_PLAIN:
            return cls._tolerantly(_object(payload))

    @classmethod
    def _tolerantly(cls, row: dict[str, Any]) -> Pair:
        """Read what others write: numbers for ids, null for an empty title."""
        return cls(
            query_id=_id(row["query_id"]),
            query=_text(row["query"], "query"),
            positives=tuple(Passage.from_dict(passage) for passage in row["positives"]),
            negatives=tuple(Passage.from_dict(passage) for passage in row.get("negatives") or ()),
            source=_text(row.get("source") or "", "source"),
            weight=_relevance(row.get("weight", 1.0), "weight"),
            scores=tuple(_relevance(score, "scores") for score in row.get("scores") or ()),
            teacher_positives=tuple(map(_float, row.get("teacher_positives") or ())),
            teacher_negatives=tuple(map(_float, row.get("teacher_negatives") or ())),
        )


decode_passage = msgspec.json.Decoder(Passage).decode
"""The quick way of `Passage.from_json`; it raises `NOT_PLAIN` at what that one still takes."""
decode_pair = msgspec.json.Decoder(Pair).decode
"""The quick way of `Pair.from_json`."""


NOT_PLAIN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the quick ways raise; bad UTF-8 and deep nesting have exceptions of their own."""


def _object(payload: bytes) -> dict[str, Any]:
    try:
        row = json.loads(payload)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(row, dict):
        raise TypeError(f"wanted a JSON object, came {type(row).__name__}")
    return row


def _id(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"an id is of type {type(value).__name__}, wanted text")
    return _text(str(value), "id")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`{name}` is of type {type(value).__name__}, wanted text")
    value.encode()  # half a surrogate pair is no text: whoever hashed it would fail
    return value


def _float(value: Any) -> float:
    """Return a number as a float, one beyond all floats as infinite: whoever asked refuses that by name."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _relevance(value: Any, name: str) -> float:
    number = _float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"`{name}` holds {number}, wanted finite numbers of 0 or more")
    return number


def _check_teacher(name: str, scores: tuple[float, ...], passages: tuple[Passage, ...]) -> None:
    if len(scores) != len(passages):
        raise ValueError(
            f"`{name}` holds {len(scores)} numbers for {len(passages)} passages, wanted one each, or none"
        )
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"`{name}` holds {', '.join(map(str, scores))}, wanted finite numbers")


def _at(values: tuple[_Item, ...], places: Sequence[int]) -> tuple[_Item, ...]:
    """Return the values at some places; where there are none, none."""
    return tuple(values[place] for place in places) if values else ()


def sample_key(ordinal: int) -> str:
    """Return the key of a dataset's n-th sample; keys are unique over its shards."""
    return f"{ordinal:09d}"


def id_hash(name: str) -> int:
    """Hash an id, exactly as it is spelt, to a stable signed 64-bit integer; see `text_hash` for chances."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def text_hash(text: str) -> int:
    """Hash a text so that what differs only in case, width or white space is equal.

    Returns:
        A stable signed 64-bit integer, the same on every machine and run: it fits a torch int64 tensor and can
        be gathered across ranks. By the birthday bound, 10^6 texts collide with probability 3e-8.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)
