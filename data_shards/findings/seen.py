"""A finding between texts before its examples are read: known by the number of the sample and the key of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.findings.finding import EXAMPLES, Finding, Severity
from data_shards.findings.parts import Keys, Part
from data_shards.hash_spool import Rows

KeysOf = Callable[[list[Part]], tuple[Part, Keys]]
"""From a batch to the part that a finding is about, and the key of each of its texts: so examples are found again."""


class Spot(NamedTuple):
    """Where a text is that a finding is about."""

    place: int
    """Number of the sample."""
    key: int
    """Of the text."""
    first: int = -1
    """Number of the sample where the text, or what has its id, is first seen; -1 where the finding is of one text."""


Spots = list[Spot]
"""The first few, each key once."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A finding, and where its examples are."""

    finding: Finding
    keys_of: KeysOf
    spots: Spots


def seen(
    name: str, severity: Severity, counts: tuple[int, int, str], advice: str, keys_of: KeysOf, spots: Spots
) -> Seen:
    """Put a finding together; `counts` are how many, of how many, of what."""
    count, of, unit = counts
    finding = Finding(name=name, severity=severity, count=count, of=of, unit=unit, advice=advice)
    return Seen(finding=finding, keys_of=keys_of, spots=spots)


def first_spots(known: Spots, rows: Rows, first: NDArray[np.uint32] | None = None) -> Spots:
    """Return the first few of those known and those of the rows, each key once.

    Args:
        known: came before.
        rows: sorted by key; of equal keys the earliest come first.
        first: where each row's key is first seen.
    """
    new = np.flatnonzero(np.append(True, rows["key"][1:] != rows["key"][:-1])) if len(rows) else np.empty(0, np.int64)
    new = new[np.argsort(rows["place"][new], kind="stable")[:EXAMPLES]]
    places, keys = rows["place"][new].tolist(), rows["key"][new].tolist()
    firsts = first[new].tolist() if first is not None else [-1] * len(new)
    return earliest([*known, *map(Spot, places, keys, firsts)])


def earliest(spots: Iterable[Spot]) -> Spots:
    """Return the first few, each key once."""
    by_key: dict[int, Spot] = {}
    for spot in sorted(spots):
        by_key.setdefault(spot.key, spot)
    return list(by_key.values())[:EXAMPLES]


def first_texts(parts: list[Part]) -> tuple[Part, Keys]:
    """Look among queries, or passages, by text; see `KeysOf`."""
    return parts[0], parts[0].text_keys


def first_ids(parts: list[Part]) -> tuple[Part, Keys]:
    """Look among queries, or passages, by id."""
    return parts[0], parts[0].id_keys


def positive_texts(parts: list[Part]) -> tuple[Part, Keys]:
    """Look among positives, by text."""
    return parts[1], parts[1].text_keys


def positive_ids(parts: list[Part]) -> tuple[Part, Keys]:
    """Look among positives, by id."""
    return parts[1], parts[1].id_keys
