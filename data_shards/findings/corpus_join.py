"""Positives of pairs that their corpus lacks, or holds in another form."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.findings.parts import NO_TEXT, Part, batches, parts_of
from data_shards.findings.seen import Seen, Spots, earliest, first_spots, positive_texts, seen
from data_shards.hash_spool import HashSpool, Rows
from data_shards.reader import CorpusDataset

_BATCH = 2048


@dataclass(frozen=True)
class _Tally:
    """How many positives, and where the first few are."""

    count: int = 0
    at: Spots = field(default_factory=Spots)

    def plus(self, keys: NDArray[np.uint64], places: NDArray[np.uint32]) -> _Tally:
        """Count more, by the keys of their texts."""
        rows = np.empty(len(keys), dtype=[("key", "<u8"), ("place", "<u4")])
        rows["key"], rows["place"] = keys, places
        rows = rows[np.lexsort((rows["place"], rows["key"]))]
        return _Tally(self.count + len(rows), first_spots(self.at, rows))


class CorpusJoin:
    """Looks up the positives of pairs in their corpus: by id, by title and text, and by text alone."""

    def __init__(self, folder: Path | str) -> None:
        """Read the whole corpus once.

        Raises:
            UserError: it is no corpus, or a shard of it is damaged.
        """
        corpus = CorpusDataset(folder)
        self._by_id, self._by_text, self._by_body = HashSpool(), HashSpool(), HashSpool()
        self._bodies = HashSpool(wide=True)
        for numbers in batches(len(corpus), _BATCH):
            (part,) = parts_of(corpus.passages(numbers), numbers.start)
            self._by_id.add(part.id_keys, part.text_keys, part.ordinals)
            self._by_text.add(part.text_keys, part.id_keys, part.ordinals)
            self._by_body.add(part.body_keys, part.id_keys, part.ordinals)

    def look(self, parts: list[Part]) -> None:
        """Take a batch of pairs: what their positives are without titles."""
        positives = parts[1]
        told = positives.body_keys != NO_TEXT
        self._bodies.add(positives.text_keys[told], positives.body_keys[told], positives.ordinals[told])

    def findings(self, positives: HashSpool, max_missing_share: float) -> list[Seen]:
        """Return what the corpus lacks of the positives: rows of (id, text, sample)."""
        strangers, others = self._join_ids(positives)
        renamed, unknown = self._join_texts(strangers)
        # Whether its id is there or not: is the text, without the title?
        retitled, missing = self._join_bodies(unknown)
        retitled_too, changed = self._join_bodies(others)
        fatal = missing.count > max_missing_share * positives.rows
        limit = f" (fatal above checks.max_missing_share = {max_missing_share:g})" if fatal else ""
        found = [
            seen(
                "positive_not_in_corpus",
                "fatal" if fatal else "warning",
                (missing.count, positives.rows, "positives"),
                "neither its id nor its text is there: search can never find it; is this the right corpus?" + limit,
                positive_texts,
                missing.at,
            ),
            seen(
                "positive_differs_from_corpus",
                "warning",
                (changed.count, positives.rows, "positives"),
                "the corpus has another text under its id; import both with the same cleaning and chunking",
                positive_texts,
                changed.at,
            ),
            seen(
                "positive_title_differs",
                "warning",
                (retitled.count + retitled_too.count, positives.rows, "positives"),
                "the corpus has its text with another title, or one has none; map columns.title in both alike",
                positive_texts,
                earliest([*retitled.at, *retitled_too.at]),
            ),
            seen(
                "positive_under_another_id",
                "note",
                (renamed.count, positives.rows, "positives"),
                "the corpus has its text under another id; mining compares texts as well, so it is not mined",
                positive_texts,
                renamed.at,
            ),
        ]
        return [one for one in found if one.finding.count]

    def _join_ids(self, positives: HashSpool) -> tuple[HashSpool, HashSpool]:
        """Return positives whose id is not there, and those whose id names something else: (text, id, sample)."""
        strangers, others = HashSpool(), HashSpool()
        for wanted, there in positives.groups(self._by_id):
            found, at = _find(wanted, there)
            differs = found.copy()
            differs[found] = there["value"][at[found]] != (wanted["value"][found] & np.uint64(0xFFFFFFFF))
            for spool, rows in ((strangers, wanted[~found]), (others, wanted[differs])):
                spool.add(rows["value"], rows["key"], rows["place"].astype(np.int64))
        return strangers, others

    def _join_texts(self, strangers: HashSpool) -> tuple[_Tally, HashSpool]:
        """Look texts up, titles included; return those that are there, and the others by text."""
        there, others = _Tally(), HashSpool()
        for wanted, known in strangers.groups(self._by_text):
            found, _ = _find(wanted, known)
            there = there.plus(wanted["key"][found], wanted["place"][found])
            rest = wanted[~found]
            others.add(rest["key"], rest["value"].astype(np.uint64), rest["place"].astype(np.int64))
        return there, others

    def _join_bodies(self, texts: HashSpool) -> tuple[_Tally, _Tally]:
        """Look up without its title what was not found with it; return what is there, and what is not."""
        there, missing, bodies = _Tally(), _Tally(), HashSpool(wide=True)
        for wanted, known in texts.groups(self._bodies):
            found, at = _find(wanted, known)
            bodies.add(known["value"][at[found]], wanted["key"][found], wanted["place"][found].astype(np.int64))
            missing = missing.plus(wanted["key"][~found], wanted["place"][~found])
        for wanted, known in bodies.groups(self._by_body):
            found, _ = _find(wanted, known)
            there = there.plus(wanted["value"][found], wanted["place"][found])
            missing = missing.plus(wanted["value"][~found], wanted["place"][~found])
        return there, missing


def _find(wanted: Rows, there: Rows) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Look keys up in sorted rows: whether each is there, and where."""
    at = np.searchsorted(there["key"], wanted["key"]).astype(np.int64)
    found = at < len(there)
    found[found] = there["key"][at[found]] == wanted["key"][found]
    return found, at
