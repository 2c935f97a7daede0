"""What is wrong between texts: repetitions, ids that name several texts, texts that go by several ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.findings.parts import NO_TEXT, Keys, Part, pair_keys
from data_shards.findings.seen import (
    Seen,
    Spots,
    first_ids,
    first_spots,
    first_texts,
    positive_ids,
    positive_texts,
    seen,
)
from data_shards.hash_spool import HashSpool, Rows

HUB_SHARE = 0.01
"""A passage that is a positive of more pairs than this comes into most batches more than once."""


@dataclass(kw_only=True)
class Repeats:
    """What the rows of a spool have in common."""

    rows: int = 0
    keys: int = 0
    """Distinct ones."""
    values: int = 0
    """Distinct (key, value)."""
    torn_keys: int = 0
    """Keys with more than one value."""
    largest: int = 0
    """Rows of the most frequent key,"""
    largest_at: Spots = field(default_factory=list)
    """and where it is first seen."""
    again_at: Spots = field(default_factory=list)
    """The first places of keys seen before."""
    torn_at: Spots = field(default_factory=list)
    """The first places of keys seen before with another value."""

    def take(self, rows: Rows) -> None:
        """Count the rows of a range of keys, sorted by key, value and place."""
        if not len(rows):
            return
        new_key = _changes(rows["key"])
        new_value = new_key | _changes(rows["value"])
        begins = np.flatnonzero(new_key)
        sizes = np.diff(np.append(begins, len(rows)))
        self.rows += len(rows)
        self.keys += len(begins)
        self.values += int(new_value.sum())
        self.torn_keys += int((np.add.reduceat(new_value.astype(np.int64), begins) > 1).sum())
        if (most := int(sizes.max())) > self.largest:
            group = int(begins[sizes.argmax()])
            self.largest, self.largest_at = most, first_spots([], rows[group : group + 1])
        self._show(rows[np.repeat(sizes > 1, sizes)])

    def _show(self, rows: Rows) -> None:
        """Keep where keys come again, and where with another value than first."""
        if not len(rows):
            return
        rows = rows[np.lexsort((rows["place"], rows["key"]))]
        new_key = _changes(rows["key"])
        begins = np.repeat(np.flatnonzero(new_key), np.diff(np.append(np.flatnonzero(new_key), len(rows))))
        first, differs = rows["place"][begins], rows["value"] != rows["value"][begins]
        self.again_at = first_spots(self.again_at, rows[~new_key], first[~new_key])
        self.torn_at = first_spots(self.torn_at, rows[differs], first[differs])


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell where a value differs from the one before; the first does."""
    return np.append(True, values[1:] != values[:-1])


def repeats_of(spool: HashSpool) -> Repeats:
    """Group the rows of a spool by key."""
    repeats = Repeats()
    for (rows,) in spool.groups():
        repeats.take(rows)
    return repeats


class PairDuplicates:
    """Repetitions among pairs."""

    def __init__(self) -> None:
        """Begin empty."""
        self._queries = HashSpool()
        self._query_ids = HashSpool()
        self._pairs = HashSpool()
        self._positives = HashSpool()
        self.positive_ids = HashSpool(wide=True)
        """By id, with the keys of the texts: what a corpus is asked for."""

    def look(self, parts: list[Part]) -> None:
        """Take a batch."""
        queries, positives, _ = parts
        _add(self._queries, queries, queries.text_keys, queries.id_keys)
        _add(self._query_ids, queries, queries.id_keys, queries.text_keys)
        _add(self._pairs, positives, pair_keys(queries, positives), positives.id_keys)
        _add(self._positives, positives, positives.text_keys, positives.id_keys)
        _add(self.positive_ids, positives, positives.id_keys, positives.text_keys)

    def findings(self) -> list[Seen]:
        """Return what was seen at all."""
        return [one for one in (*self._of_queries(), *self._of_positives()) if one.finding.count]

    def _of_queries(self) -> list[Seen]:
        queries, ids, pairs = map(repeats_of, (self._queries, self._query_ids, self._pairs))
        return [
            seen(
                "repeated_pair",
                "warning",
                (pairs.rows - pairs.keys, pairs.rows, "pairs of query and positive"),
                "the same query with the same positive again; import again with exact deduplication",
                lambda parts: (parts[1], pair_keys(parts[0], parts[1])),
                pairs.again_at,
            ),
            seen(
                "repeated_query",
                "note",
                (queries.rows - queries.keys, queries.rows, "queries"),
                "the same query in several samples; merge their positives, or one counts as negative for the other",
                first_texts,
                queries.again_at,
            ),
            seen(
                "query_under_several_ids",
                "note",
                (queries.torn_keys, queries.keys, "distinct queries"),
                "equal queries under different ids are counted as different ones in reports; give them one id",
                first_texts,
                queries.torn_at,
            ),
            seen(
                "query_id_of_several_texts",
                "warning",
                (ids.torn_keys, ids.keys, "query ids"),
                "one id names different queries, so judgements by id mix them up; give each query an id of its own",
                first_ids,
                ids.torn_at,
            ),
        ]

    def _of_positives(self) -> list[Seen]:
        positives, ids = repeats_of(self._positives), repeats_of(self.positive_ids)
        hub = positives.largest if positives.largest > max(2, HUB_SHARE * self._queries.rows) else 0
        return [
            seen(
                "positive_under_several_ids",
                "note",
                (positives.torn_keys, positives.keys, "distinct positives"),
                "the same text goes by several ids; text is compared as well, but the corpus wastes room",
                positive_texts,
                positives.torn_at,
            ),
            seen(
                "positive_id_of_several_texts",
                "warning",
                (ids.torn_keys, ids.keys, "ids of positives"),
                "one id names different texts: passages of different corpora or chunks need ids of their own",
                positive_ids,
                ids.torn_at,
            ),
            seen(
                "frequent_positive",
                "warning",
                (hub, positives.rows, "positives"),
                "one passage is the positive of more than 1 % of the pairs: most batches hold it twice; thin it out",
                positive_texts,
                positives.largest_at,
            ),
        ]


class CorpusDuplicates:
    """Repetitions among the passages of a corpus."""

    def __init__(self) -> None:
        """Begin empty."""
        self._texts = HashSpool()
        self._ids = HashSpool()

    def look(self, parts: list[Part]) -> None:
        """Take a batch."""
        (passages,) = parts
        _add(self._texts, passages, passages.text_keys, passages.id_keys)
        _add(self._ids, passages, passages.id_keys, passages.text_keys)

    def findings(self) -> list[Seen]:
        """Return what was seen at all."""
        texts, ids = repeats_of(self._texts), repeats_of(self._ids)
        found = [
            seen(
                "id_not_unique",
                "fatal",
                (ids.rows - ids.keys, ids.rows, "passages"),
                "an index holds each id once: give every passage an id of its own",
                first_ids,
                ids.again_at,
            ),
            seen(
                "passage_under_several_ids",
                "warning",
                (texts.values - texts.keys, texts.rows, "passages"),
                "exact duplicates under other ids crowd the results; import again with exact deduplication",
                first_texts,
                texts.torn_at,
            ),
        ]
        return [one for one in found if one.finding.count]


def _add(spool: HashSpool, part: Part, keys: Keys, values: Keys) -> None:
    real: NDArray[np.bool_] = part.text_keys != NO_TEXT
    spool.add(keys[real], values[real], part.ordinals[real])
