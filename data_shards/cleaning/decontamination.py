"""Keeps evaluation queries out of training.

A text is contaminated if it equals an evaluation text in all but case, width, punctuation and white space, or shares
so many words in a row with one (13 by default, as usual since GPT-3's report). Short texts, as most queries are, have
to be equal: `python list sort` inside a longer question is no leak.

Source: Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, for the overlap of 13 words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_shards.beir import BeirFolder, folder_and_split
from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.words import UINT64, HashArray, folded_words, hashes_of, run_hashes
from data_shards.errors import UserError
from data_shards.rows import open_text, read_jsonl

_QUERY_COLUMNS = ("query", "text", "question", "anchor")
_COMMON = 10
"""A run of words in more evaluation texts than this is a template, such as an instruction, and no evidence."""


class Decontaminator:
    """Knows the evaluation data of a config, as sorted hashes: eight bytes a run of words."""

    def __init__(self, config: CleaningConfig) -> None:
        """Read the evaluation data; the positives only where they are asked for, since that reads a whole corpus.

        Raises:
            UserError: a source is missing or of no known kind, or holds no query.
        """
        self._words = config.decontaminate_words
        sources = [_Source(place) for place in config.decontaminate]
        self._queries = self._runs_of(query for source in sources for query in source.queries())
        self._positives = _unique([])
        if config.decontaminate_positives != "ignore":
            self._positives = _unique([_whole(text) for source in sources for text in source.positives()])

    def hits(self, query: str) -> bool:
        """Tell whether a training query is an evaluation query, or overlaps one."""
        words = hashes_of(folded_words(query))
        return _any_of(np.append(run_hashes(words, self._words), run_hashes(words, len(words))), self._queries)

    def hits_positive(self, content: str) -> bool:
        """Tell whether a training pair's positive is also one of an evaluation query.

        It has to be equal: passages of one corpus share boilerplate, so a run of words proves nothing there.
        """
        return _any_of(_whole(content), self._positives)

    def _runs_of(self, texts: Iterable[str]) -> HashArray:
        runs, wholes = [], []
        for text in texts:
            words = hashes_of(folded_words(text))
            wholes.append(run_hashes(words, len(words)))
            runs.append(np.unique(run_hashes(words, self._words)))
        found, texts_with = np.unique(np.concatenate(runs or wholes or [_NONE]), return_counts=True)
        return _unique([found[texts_with <= _COMMON], *wholes])


class _Source:
    """A place that holds evaluation queries: `FOLDER:SPLIT`, or a file."""

    def __init__(self, place: str) -> None:
        self.path = Path(place)
        self._beir = None
        if not self.path.is_file():
            folder, split = folder_and_split(place)
            if not Path(folder).is_dir():
                wanted = "wanted FOLDER:SPLIT of a BEIR folder, or a .txt or .jsonl file"
                raise UserError(f"cleaning.decontaminate: {place} does not exist; {wanted}")
            self._beir = BeirFolder(folder)
            self._qrels = self._beir.qrels(split)

    def queries(self) -> Iterator[str]:
        """Yield the texts of the judged queries, or of all lines of a file."""
        found = False
        for text in self._judged_queries() if self._beir else self._lines():
            found = found or bool(text.strip())
            yield text
        if not found:
            raise UserError(f"cleaning.decontaminate: {self.path} holds no query")

    def positives(self) -> Iterator[str]:
        """Yield the contents of the passages that are judged relevant; a file has none."""
        if self._beir is None:
            return
        wanted = {passage for judged in self._qrels.values() for passage, grade in judged.items() if grade > 0}
        yield from (passage.content for passage in self._beir.corpus() if passage.id in wanted)

    def _judged_queries(self) -> Iterator[str]:
        assert self._beir is not None
        texts = self._beir.queries()
        yield from (texts[query] for query in self._qrels if query in texts)

    def _lines(self) -> Iterator[str]:
        ending = Path(self.path.name.removesuffix(".gz")).suffix.lower()
        if ending == ".txt":
            with open_text(self.path) as file:
                yield from file
        elif ending in (".jsonl", ".ndjson"):
            for row in read_jsonl(self.path):
                text = next((row.values[name] for name in _QUERY_COLUMNS if name in row.values), None)
                if not isinstance(text, str):
                    raise row.error(f"no evaluation query (looked for {', '.join(_QUERY_COLUMNS)})")
                yield text
        else:
            raise UserError(f"cleaning.decontaminate: {self.path} is neither .txt nor .jsonl (or these .gz)")


_NONE: HashArray = np.empty(0, dtype=UINT64)


def _whole(text: str) -> HashArray:
    words = hashes_of(folded_words(text))
    return run_hashes(words, len(words))


def _unique(hashes: list[HashArray]) -> HashArray:
    return np.unique(np.concatenate([_NONE, *hashes]))


def _any_of(hashes: HashArray, known: HashArray) -> bool:
    """Tell whether one of the hashes is among the sorted known ones."""
    if not len(known):
        return False
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return bool((known[places] == hashes).any())
