"""One raw sample in, the clean one out, or none; every loss is counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from data_shards.cleaning.clean import TextCleaner
from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.lengths import LengthLimits
from data_shards.samples import Pair, Passage

CountTokens = Callable[[str], int]


class Refiner:
    """The steps that look at one sample at a time."""

    def __init__(self, config: CleaningConfig, count_tokens: CountTokens | None = None) -> None:
        """Load what the steps need.

        Args:
            config: which steps.
            count_tokens: counts a text's tokens, for limits and chunks; hashable, so that it can be kept.
        """
        self._texts = TextCleaner(config)
        self._limits = LengthLimits(config, count_tokens)
        self._chunks = None
        self._evaluation = None
        self._on_evaluation_positive = config.decontaminate_positives
        if config.chunk_tokens:
            from data_shards.cleaning.chunking import Chunker

            self._chunks = Chunker(config, count_tokens)
        if config.decontaminate:
            from data_shards.cleaning.decontamination import Decontaminator

            self._evaluation = Decontaminator(config)

    def pair(self, pair: Pair, counts: Counter[str]) -> Pair | None:
        """Return the pair without what is blank, out of bounds or worth nothing; None where no positive is left.

        A given negative with the text of a positive goes as well.
        """
        query = self._texts.clean(pair.query, counts)
        if not query.strip():
            counts["blank_query"] += 1
            return None
        if pair.weight == 0:
            counts["weight_zero"] += 1
            return None
        if not self._limits.keeps_query(query, counts):
            return None
        if self._evaluation is not None and self._evaluation.hits(query):
            counts["evaluation_query"] += 1
            return None
        clean = self._with(counts)
        cleaned = msgspec.structs.replace(
            pair,
            query=query,
            positives=tuple(map(clean, pair.positives)),
            negatives=tuple(map(clean, pair.negatives)),
        )
        positives = self._positives(cleaned, counts)
        if not positives:
            counts["pair_without_positive"] += 1
            return None
        if self._is_evaluated([cleaned.positives[at] for at in positives], counts):
            return None
        return cleaned.keeping(positives, self._negatives(cleaned, pair.positives, counts))

    def passages(self, passage: Passage, counts: Counter[str]) -> list[Passage]:
        """Return what becomes of a document: itself, its chunks, or nothing."""
        cleaned = self._with(counts)(passage)
        if not self._keeps(cleaned, "passage", counts):
            return []
        if self._chunks is None:
            return [cleaned]
        chunks = self._chunks.chunks(cleaned)
        if len(chunks) > 1:
            counts["documents_cut"] += 1
            counts["chunks_added"] += len(chunks) - 1
        return chunks

    def _is_evaluated(self, positives: Sequence[Passage], counts: Counter[str]) -> bool:
        """Tell whether the pair has to go because a positive of it is also that of an evaluation query."""
        if self._evaluation is None or self._on_evaluation_positive == "ignore":
            return False
        if not any(self._evaluation.hits_positive(passage.content) for passage in positives):
            return False
        counts["evaluation_positive"] += 1
        return self._on_evaluation_positive == "drop"

    def _with(self, counts: Counter[str]) -> Callable[[Passage], Passage]:
        clean = self._texts.clean
        return lambda passage: Passage(
            id=passage.id,
            title=clean(passage.title, counts) if passage.title else "",
            text=clean(passage.text, counts),
        )

    def _keeps(self, passage: Passage, what: str, counts: Counter[str]) -> bool:
        if not passage.content.strip():
            counts[f"blank_{what}"] += 1
            return False
        return self._limits.keeps_passage(passage.content, counts)

    def _positives(self, pair: Pair, counts: Counter[str]) -> list[int]:
        """Return which positives stay."""
        scores = pair.scores or (1.0,) * len(pair.positives)
        return [
            at
            for at, (passage, score) in enumerate(zip(pair.positives, scores, strict=True))
            if self._keeps(passage, "positive", counts) and _is_worth_something(score, counts)
        ]

    def _negatives(self, pair: Pair, raw_positives: Sequence[Passage], counts: Counter[str]) -> list[int]:
        """Return which given negatives stay; also what was the text of a positive before that was made clean goes."""
        if not pair.negatives:
            return []
        contents = {passage.content_hash for passage in (*pair.positives, *raw_positives)}
        kept = []
        for at, passage in enumerate(pair.negatives):
            if not self._keeps(passage, "negative", counts):
                continue
            if passage.content_hash in contents:
                counts["negative_is_positive"] += 1
            else:
                kept.append(at)
        return kept


@lru_cache(maxsize=1)
def refiner(config: CleaningConfig, count_tokens: CountTokens | None, evaluation: tuple[str, ...]) -> Refiner:
    """Return a refiner; a process makes one and keeps it from part to part.

    Args:
        config: which steps.
        count_tokens: see `Refiner`.
        evaluation: checksums of the files that the config names: when they change, a new one is made.
    """
    return Refiner(config, count_tokens)


def _is_worth_something(score: float, counts: Counter[str]) -> bool:
    if score == 0:
        counts["score_zero"] += 1
    return score != 0
