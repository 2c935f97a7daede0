"""Texts in, passages out: an index, the encoder that it was made with, and the corpus that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.corpora import open_corpus, without
from data_shards.errors import UserError
from encoder.embed import embed_texts
from encoder.model import Encoder
from encoder.snapshot import load_encoder, snapshot_hash
from index_build.index_version import current_version, open_index


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A passage that was found."""

    id: str
    title: str
    text: str
    score: float
    """Its similarity to the query, as the index computes it."""


class Searcher:
    """Searches one version of an index by text; `newer` gives the searcher of the next one.

    searcher = Searcher(Path("runs/tldr/index"), Path("runs/tldr/snapshots/final"))
    for hit in searcher.search(["list all open network ports"], k=5)[0]:
        print(hit.score, hit.id, hit.text)
    """

    def __init__(
        self, index_root: Path, model: Path, corpus: Path | str | None = None, *, encoder: Encoder | None = None
    ) -> None:
        """Open the current index version, the encoder and the corpus, and see that they belong together.

        Args:
            index_root: folder of the index versions.
            model: the snapshot that embedded the corpus.
            corpus: folder or URL; by default where it was when it was embedded.
            encoder: what `model` holds, where it is loaded already.

        Raises:
            UserError: one is missing or damaged, or the index was made by another snapshot or from another corpus.
        """
        self._root, self._model, self._place = index_root, model, corpus
        self.index = open_index(index_root)
        made = self.index.manifest
        self._encoder = encoder or load_encoder(model)
        if (found := snapshot_hash(model)) != made.snapshot["hash"]:
            raise UserError(
                f"{model} is {found}, but {index_root} was made by {made.snapshot['path']} "
                f"({made.snapshot['hash']}); give that model, or embed and index anew"
            )
        self._dim = None if made.dim == self._encoder.dim else made.dim
        whole = open_corpus(corpus or made.corpus["path"])
        self._corpus = without(whole, made.corpus.get("left_out", []))
        if self._corpus.dataset_id != made.corpus["dataset_id"]:
            raise UserError(
                f"{self._corpus.location} is not the corpus that {index_root} was made from "
                f"({self._corpus.dataset_id}, wanted {made.corpus['dataset_id']}); give that one"
            )

    @property
    def version(self) -> int:
        """The index version that is searched."""
        return self.index.manifest.version

    def newer(self) -> Searcher | None:
        """Return a searcher of the version that is current now, with the same encoder; None where it is this one's.

        This one goes on working: nobody who searches with it is disturbed.

        Raises:
            UserError: the version is damaged, or was made by another snapshot.
        """
        if current_version(self._root) == self.version:
            return None
        return Searcher(self._root, self._model, self._place, encoder=self._encoder)

    def search(self, texts: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return the k nearest passages of each text, best first; fewer where the index gives fewer."""
        if k < 1:
            raise UserError(f"k is {k}, wanted at least 1")
        if blank := [text for text in texts if not text.strip()]:
            raise UserError(f"cannot search for {blank[0]!r}; give some words")
        vectors = embed_texts(self._encoder, texts, side="query", dim=self._dim)
        found = self.index.search(vectors, min(k, self.index.manifest.ntotal))
        answers = []
        for rows, scores in zip(found.rows, found.scores, strict=True):
            there = rows >= 0
            passages = self._corpus.passages(rows[there])
            answers.append(
                [
                    Hit(id=passage.id, title=passage.title, text=passage.text, score=float(score))
                    for passage, score in zip(passages, scores[there].tolist(), strict=True)
                ]
            )
        return answers
