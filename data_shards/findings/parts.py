"""A batch of samples taken apart by role, with the keys by which texts and ids are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data_shards.samples import Pair, Passage, id_hash, text_hash

Keys = NDArray[np.uint64]

NO_TEXT = np.uint64(text_hash("") & (2**64 - 1))
"""Key of a blank text; blank texts are no duplicates of each other."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The texts of one role in a batch: queries, positives, negatives, or a corpus's passages."""

    name: str
    """`query`, `positive`, `negative` or `passage`."""
    ids: list[str]
    texts: list[str]
    """What the encoder reads."""
    bodies: list[str]
    """The same without titles."""
    ordinals: NDArray[np.int64]
    """Number of the sample that each is from."""

    @cached_property
    def text_keys(self) -> Keys:
        """Hashes of the texts; what differs only in case, width or white space is equal."""
        return np.array([text_hash(text) for text in self.texts], dtype=np.int64).view(np.uint64)

    @cached_property
    def body_keys(self) -> Keys:
        """Hashes of the texts without titles."""
        hashes = self.text_keys.tolist()
        for at, (text, body) in enumerate(zip(self.texts, self.bodies, strict=True)):
            if body is not text:  # most have no title
                hashes[at] = text_hash(body) & (2**64 - 1)
        return np.array(hashes, dtype=np.uint64)

    @cached_property
    def id_keys(self) -> Keys:
        """Hashes of the ids, as they stand."""
        return np.array([id_hash(name) for name in self.ids], dtype=np.int64).view(np.uint64)


def parts_of(items: Sequence[Pair | Passage], begin: int) -> list[Part]:
    """Take samples apart; `begin` is the number of the first."""
    if items and isinstance(items[0], Passage):
        return [_passages("passage", list(enumerate(cast(Sequence[Passage], items), begin)))]
    pairs = list(enumerate(cast(Sequence[Pair], items), begin))
    queries = [pair.query for _, pair in pairs]
    return [
        Part(
            name="query",
            ids=[pair.query_id for _, pair in pairs],
            texts=queries,
            bodies=queries,
            ordinals=np.arange(begin, begin + len(pairs)),
        ),
        _passages("positive", [(at, passage) for at, pair in pairs for passage in pair.positives]),
        _passages("negative", [(at, passage) for at, pair in pairs for passage in pair.negatives]),
    ]


def pair_keys(queries: Part, positives: Part) -> Keys:
    """Return the key of each positive together with its query."""
    query_keys = queries.text_keys[positives.ordinals - queries.ordinals[0]] if len(positives.ids) else NO_TEXT
    # The odd factor keeps (a, b) apart from (b, a); the product wraps, which is what a hash wants.
    return cast(Keys, query_keys * np.uint64(0x9E3779B97F4A7C15) ^ positives.text_keys)


def key_of(text: str) -> int:
    """Hash a text to 64 bits without a sign; see `Part.text_keys`."""
    return text_hash(text) & (2**64 - 1)


def batches(count: int, size: int) -> Iterator[range]:
    """Cut so many numbers into ranges."""
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))


def _passages(name: str, numbered: list[tuple[int, Passage]]) -> Part:
    return Part(
        name=name,
        ids=[passage.id for _, passage in numbered],
        texts=[passage.content for _, passage in numbered],
        bodies=[passage.text for _, passage in numbered],
        ordinals=np.array([at for at, _ in numbered], dtype=np.int64),
    )
