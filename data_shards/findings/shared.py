"""What a dataset shares with evaluation splits and should not, or should and does not."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data_shards.beir import BeirFolder, folder_and_split
from data_shards.errors import UserError
from data_shards.findings.finding import EXAMPLES
from data_shards.findings.parts import NO_TEXT, Keys, Part, key_of
from data_shards.findings.seen import Seen, Spot, Spots, earliest, first_texts, positive_texts, seen
from data_shards.samples import id_hash


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
        self._ids = np.array([id_hash(name) for name in texts], dtype=np.int64).view(np.uint64)
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


def split_of(name: str) -> tuple[Path, str]:
    """Take `FOLDER:SPLIT` apart.

    Raises:
        UserError: it names nothing.
    """
    folder, split = folder_and_split(name)
    if not folder or not split:
        raise UserError(f"checks.evaluation holds {name!r}; wanted FOLDER:SPLIT, such as scifact:test")
    return Path(folder), split


def _first(known: Spots, part: Part, hits: NDArray[np.bool_]) -> Spots:
    """Keep the first few places; batches come in order."""
    if len(known) >= EXAMPLES or not hits.any():
        return known
    return earliest([*known, *map(Spot, part.ordinals[hits].tolist(), part.text_keys[hits].tolist())])


def _sorted_keys(keys: list[int]) -> Keys:
    unique = np.unique(np.array(keys, dtype=np.uint64))
    return cast(Keys, unique[unique != NO_TEXT])
