"""What a dataset shares with others and should not, or should and does not: evaluation splits, and its corpus."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data_shards.beir import BeirFolder, folder_and_split
from data_shards.errors import UserError
from data_shards.findings.finding import EXAMPLES
from data_shards.findings.parts import NO_TEXT, Keys, Part, batches, id_key, key_of, parts_of
from data_shards.findings.seen import (
    Seen,
    Spot,
    Spots,
    earliest,
    first_spots,
    first_texts,
    positive_ids,
    positive_texts,
    seen,
)
from data_shards.hash_spool import HashSpool, Rows
from data_shards.reader import CorpusDataset

_BATCH = 2048


class EvaluationSplit:
    """The judged queries of a split and the passages that answer them, and which of both were met."""

    def __init__(self, name: str) -> None:
        """Read the split.

        Args:
            name: `FOLDER:SPLIT`, a folder in BEIR's layout; the split is `test` unless given.

        Raises:
            UserError: there is no such folder or split, or it is malformed.
        """
        self.folder, self.split = split_of(name)
        beir = BeirFolder(self.folder)
        qrels = beir.qrels(self.split)
        judged = {query for query, grades in qrels.items() if max(grades.values()) > 0}
        relevant = {passage for grades in qrels.values() for passage, grade in grades.items() if grade > 0}
        self.queries = _sorted_keys([key_of(text) for name, text in beir.queries().items() if name in judged])
        texts = {passage.id: key_of(passage.content) for passage in beir.corpus() if passage.id in relevant}
        self.passages = _sorted_keys(list(texts.values()))
        self._ids = np.array([id_key(name) for name in texts], dtype=np.uint64)
        self._texts = np.array(list(texts.values()), dtype=np.uint64)
        self._in_corpus = np.zeros(len(texts), dtype=np.bool_)
        self._met = np.zeros(len(self.queries), dtype=np.bool_)
        self._query_at: Spots = []
        self._positives = self._positives_met = 0
        self._positive_at: Spots = []

    @property
    def name(self) -> str:
        """Folder and split, without the folder's place."""
        return f"{self.folder.name}:{self.split}"

    def look(self, parts: list[Part]) -> None:
        """Take a batch of pairs or of passages."""
        by_name = {part.name: part for part in parts}
        if passages := by_name.get("passage"):
            # Few against many: each of the evaluation's passages is sought in the batch.
            self._in_corpus |= np.isin(self._ids, passages.id_keys) | np.isin(self._texts, passages.text_keys)
            return
        queries, positives = by_name["query"], by_name["positive"]
        hits = np.isin(queries.text_keys, self.queries)
        self._met[np.searchsorted(self.queries, queries.text_keys[hits])] = True
        self._query_at = _first(self._query_at, queries, hits)
        hits = np.isin(positives.text_keys, self.passages)
        self._positives += len(hits)
        self._positives_met += int(hits.sum())
        self._positive_at = _first(self._positive_at, positives, hits)

    def findings_of_pairs(self, max_leaked_share: float) -> list[Seen]:
        """Return what training shares with the split."""
        leaked = int(self._met.sum())
        fatal = leaked > max_leaked_share * len(self.queries)
        limit = f" (fatal above checks.max_leaked_share = {max_leaked_share:g})" if fatal else ""
        found = [
            seen(
                "evaluation_query_in_training",
                "fatal" if fatal else "warning",
                (leaked, len(self.queries), f"queries of {self.name}"),
                "scores on that split will flatter; import again with cleaning.decontaminate" + limit,
                first_texts,
                self._query_at,
            ),
            seen(
                "evaluation_passage_in_training",
                "note",
                (self._positives_met, self._positives, "positives"),
                f"they answer queries of {self.name} too; usual where one corpus serves both, else a leak",
                positive_texts,
                self._positive_at,
            ),
        ]
        return [one for one in found if one.finding.count]

    def findings_of_corpus(self) -> list[Seen]:
        """Return what the corpus lacks of the split."""
        lacking = int((~self._in_corpus).sum())
        found = seen(
            "evaluation_passage_not_in_corpus",
            "warning",
            (lacking, len(self._in_corpus), f"right answers of {self.name}"),
            "no index over this corpus can return them; add them, or evaluate on another split",
            first_texts,
            [],
        )
        return [found] if lacking else []


class CorpusJoin:
    """Looks up the positives of pairs in their corpus, by id and by text."""

    def __init__(self, folder: Path | str) -> None:
        """Read the whole corpus once.

        Raises:
            UserError: it is no corpus, or a shard of it is damaged.
        """
        corpus = CorpusDataset(folder)
        self._by_id, self._by_text = HashSpool(), HashSpool()
        for numbers in batches(len(corpus), _BATCH):
            (part,) = parts_of(corpus.passages(numbers), numbers.start)
            self._by_id.add(part.id_keys, part.text_keys, part.ordinals)
            self._by_text.add(part.text_keys, part.id_keys, part.ordinals)

    def findings(self, positives: HashSpool, max_missing_share: float) -> list[Seen]:
        """Return what the corpus lacks of the positives: rows of (id, text, sample)."""
        strangers, changed, changed_at = self._join_ids(positives)
        missing, missing_at, renamed_at = self._join_texts(strangers)
        fatal = missing > max_missing_share * positives.rows
        limit = f" (fatal above checks.max_missing_share = {max_missing_share:g})" if fatal else ""
        found = [
            seen(
                "positive_not_in_corpus",
                "fatal" if fatal else "warning",
                (missing, positives.rows, "positives"),
                "neither its id nor its title and text are there: search can never find it; is this the right corpus?"
                + limit,
                positive_texts,
                missing_at,
            ),
            seen(
                "positive_differs_from_corpus",
                "warning",
                (changed, positives.rows, "positives"),
                "the corpus has another text under its id; import both with the same cleaning and chunking",
                positive_ids,
                changed_at,
            ),
            seen(
                "positive_under_another_id",
                "note",
                (strangers.rows - missing, positives.rows, "positives"),
                "the corpus has its text under another id; mining compares texts as well, so it is not mined",
                positive_texts,
                renamed_at,
            ),
        ]
        return [one for one in found if one.finding.count]

    def _join_ids(self, positives: HashSpool) -> tuple[HashSpool, int, Spots]:
        """Return positives whose id is not there, by text; how many differ from the text of their id, and where."""
        strangers = HashSpool()
        changed, changed_at = 0, Spots()
        for wanted, there in positives.groups(self._by_id):
            found, at = _find(wanted, there)
            differs = found.copy()
            differs[found] = there["value"][at[found]] != (wanted["value"][found] & np.uint64(0xFFFFFFFF))
            changed += int(differs.sum())
            changed_at = first_spots(changed_at, wanted[differs])
            rest = wanted[~found]
            strangers.add(rest["value"], rest["key"], rest["place"].astype(np.int64))
        return strangers, changed, changed_at

    def _join_texts(self, strangers: HashSpool) -> tuple[int, Spots, Spots]:
        """Return how many texts are not there, where these are, and where those are that are."""
        missing, missing_at, found_at = 0, Spots(), Spots()
        for wanted, there in strangers.groups(self._by_text):
            found, _ = _find(wanted, there)
            missing += int((~found).sum())
            missing_at = first_spots(missing_at, wanted[~found])
            found_at = first_spots(found_at, wanted[found])
        return missing, missing_at, found_at


def split_of(name: str) -> tuple[Path, str]:
    """Take `FOLDER:SPLIT` apart.

    Raises:
        UserError: it names nothing.
    """
    folder, split = folder_and_split(name)
    if not folder or not split:
        raise UserError(f"checks.evaluation holds {name!r}; wanted FOLDER:SPLIT, such as scifact:test")
    return Path(folder), split


def _find(wanted: Rows, there: Rows) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Look keys up in sorted rows: whether each is there, and where."""
    at = np.searchsorted(there["key"], wanted["key"]).astype(np.int64)
    found = at < len(there)
    found[found] = there["key"][at[found]] == wanted["key"][found]
    return found, at


def _first(known: Spots, part: Part, hits: NDArray[np.bool_]) -> Spots:
    """Keep the first few places; batches come in order."""
    if len(known) >= EXAMPLES or not hits.any():
        return known
    return earliest([*known, *map(Spot, part.ordinals[hits].tolist(), part.text_keys[hits].tolist())])


def _sorted_keys(keys: list[int]) -> Keys:
    unique = np.unique(np.array(keys, dtype=np.uint64))
    return cast(Keys, unique[unique != NO_TEXT])
