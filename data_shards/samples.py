"""What a shard holds: pairs and passages, and the hashes by which their texts are compared."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
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

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Passage:
        """Read the JSON form; an absent title is an empty one.

        Raises:
            KeyError: `id` or `text` is missing.
        """
        return cls(id=str(row["id"]), title=row.get("title") or "", text=row["text"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A query with its positive passages and any given negatives: one training sample."""

    query_id: str
    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...] = ()
    source: str = ""
    """Name of the dataset that the pair came from."""
    weight: float = 1.0
    """How much the pair counts in the loss."""

    def to_json(self) -> bytes:
        """Return the payload of a training shard's member; the weight is left out where it is 1."""
        row: dict[str, Any] = {
            "query_id": self.query_id,
            "query": self.query,
            "positives": [passage.to_dict() for passage in self.positives],
            "negatives": [passage.to_dict() for passage in self.negatives],
            "source": self.source,
        }
        if self.weight != 1.0:
            row["weight"] = self.weight
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, payload: bytes) -> Pair:
        """Read a training shard's member.

        Raises:
            KeyError, ValueError: the payload is no training sample; readers turn this into `ShardCorruptError`.
        """
        row = json.loads(payload)
        return cls(
            query_id=str(row["query_id"]),
            query=row["query"],
            positives=tuple(Passage.from_dict(passage) for passage in row["positives"]),
            negatives=tuple(Passage.from_dict(passage) for passage in row.get("negatives", ())),
            source=row.get("source", ""),
            weight=float(row.get("weight", 1.0)),
        )


def text_hash(text: str) -> int:
    """Hash a text so that what differs only in case, width or white space is equal.

    Returns:
        A stable signed 64-bit integer, the same on every machine and run: it fits a torch int64 tensor and can
        be gathered across ranks. By the birthday bound, 10^6 texts collide with probability 3e-8.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)
