"""The BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, each plain or `.gz`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_shards.errors import UserError
from data_shards.qrels import Qrels, read_qrels
from data_shards.rows import Row, read_jsonl
from data_shards.samples import Passage


class BeirFolder:
    """A retrieval data set: passages, queries, and judgements by split."""

    def __init__(self, folder: Path | str) -> None:
        """Look that the three parts are there.

        Raises:
            UserError: one is missing.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder; wanted a BEIR folder")
        self._corpus = self._part("corpus.jsonl")
        self._queries = self._part("queries.jsonl")
        if not self.splits:
            raise UserError(f"{self.folder} has no qrels/SPLIT.tsv; wanted a BEIR folder")

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Tell whether a folder means to be of this layout."""
        return any((folder / f"corpus.jsonl{ending}").is_file() for ending in ("", ".gz"))

    @property
    def splits(self) -> list[str]:
        """Names of the splits that are judged."""
        names = {path.name.removesuffix(".gz") for path in (self.folder / "qrels").glob("*.tsv*")}
        return sorted(name.removesuffix(".tsv") for name in names if name.endswith(".tsv"))

    @property
    def files(self) -> list[Path]:
        """The corpus and the queries."""
        return [self._corpus, self._queries]

    def corpus(self) -> Iterator[Passage]:
        """Yield every passage.

        Raises:
            UserError: a line lacks its `_id` or its texts; the message names it.
        """
        for row in read_jsonl(self._corpus):
            title, text = row.values.get("title") or "", row.values.get("text")
            if not has_id(row) or not isinstance(text, str) or not isinstance(title, str):
                raise row.error("wanted `_id` and `text` (and `title`, if any) of a passage")
            yield Passage(id=str(row.values["_id"]), title=title, text=text)

    def queries(self) -> dict[str, str]:
        """Return the text of every query, of all splits, by id.

        Raises:
            UserError: a line lacks its `_id` or its text; the message names it.
        """
        queries: dict[str, str] = {}
        for row in read_jsonl(self._queries):
            if not has_id(row) or not isinstance(row.values.get("text"), str):
                raise row.error("wanted `_id` and `text` of a query")
            queries[str(row.values["_id"])] = row.values["text"]
        return queries

    def qrels_path(self, split: str) -> Path:
        """Return the file of a split's judgements.

        Raises:
            UserError: there is no such split; the message names those there are.
        """
        if split not in self.splits:
            raise UserError(f"{self.folder} has no split {split!r}; there are: {', '.join(self.splits)}")
        return self._part(f"qrels/{split}.tsv")

    def qrels(self, split: str) -> Qrels:
        """Return the judgements of a split (see `qrels_path`, `read_qrels`)."""
        return read_qrels(self.qrels_path(split))

    def _part(self, name: str) -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        raise UserError(f"{self.folder} has no {name} or {name}.gz; wanted a BEIR folder")


def has_id(row: Row) -> bool:
    """Tell whether a row of queries or passages has an id that judgements can name."""
    return isinstance(row.values.get("_id"), str | int) and row.values["_id"] != ""


def folder_and_split(place: str) -> tuple[str, str]:
    """Take `FOLDER:SPLIT` apart; where no split is named it is `test`. Either may come out empty."""
    folder, colon, split = place.rpartition(":")
    return (folder, split) if colon else (place, "test")
