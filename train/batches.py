"""Global order to tensors: what one rank needs for one step, read and tokenised ahead of the compute."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data_shards.collate import Chunk, pad_chunks
from data_shards.errors import UserError
from data_shards.negatives import NegativesSource
from data_shards.order import GlobalOrder
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, text_hash
from encoder.model import Encoder
from train.loss import Labels


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How pairs become tensors."""

    batch_size: int = 256
    """Pairs that all ranks together consume in one step."""
    query_max_tokens: int = 48
    """Queries are cut to this while training; a snapshot cuts both sides at the encoder's own length."""
    tokens_per_chunk: int = 2048
    """Most tokens in one forward pass, padding counted; memory grows with this, not with the batch."""
    hard_negatives: int = 1
    """Most negatives taken for each query: given ones first, then mined ones."""
    prefetch_steps: int = 2
    """Steps that are read and tokenised ahead."""

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("batch_size", "query_max_tokens", "tokens_per_chunk", "prefetch_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"batch.{name} must be at least 1, came {getattr(self, name)}")
        if self.hard_negatives < 0:
            raise UserError(f"batch.hard_negatives must be 0 or more, came {self.hard_negatives}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """One rank's part of one global batch."""

    step: int
    queries: list[Chunk]
    passages: list[Chunk]
    """The queries' positives first, then their negatives; `Chunk.rows` tells which is which."""
    labels: Labels
    tokens: int
    """Tokens of all texts, padding left out."""
    padded_tokens: int
    """The same, padding counted."""


class BatchLoader:
    """Yields one rank's batches of a stretch of steps."""

    def __init__(
        self,
        *,
        dataset: PairDataset,
        order: GlobalOrder,
        encoder: Encoder,
        config: BatchConfig,
        rank: int,
        world: int,
    ) -> None:
        """Keep the parts; nothing is read yet.

        Raises:
            UserError: the ranks do not divide the global batch.
        """
        order.rank_slice(0, rank, world)
        self._dataset, self._order, self._encoder, self._config = dataset, order, encoder, config
        self._rank, self._world = rank, world

    def steps(self, start: int, stop: int, negatives: NegativesSource | None) -> Iterator[StepBatch]:
        """Yield the batches of steps `start` to `stop`, all with the same negatives version.

        A thread reads ahead; what it raises is raised here. Leaving the iterator early ends the thread.
        """
        ready: queue.Queue[StepBatch | BaseException] = queue.Queue(self._config.prefetch_steps)
        leaving = threading.Event()

        def put(item: StepBatch | BaseException) -> bool:
            while not leaving.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        def read_ahead() -> None:
            try:
                for step in range(start, stop):
                    if not put(self.load(step, negatives)):
                        return
            except BaseException as error:
                put(error)

        reader = threading.Thread(target=read_ahead, name="batches", daemon=True)
        reader.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            leaving.set()
            reader.join()

    def load(self, step: int, negatives: NegativesSource | None) -> StepBatch:
        """Read and tokenise this rank's part of one global batch; a pure function of its arguments."""
        ordinals = self._order.rank_slice(step, self._rank, self._world)
        pairs = self._dataset.pairs(ordinals)
        if bare := next((pair.query_id for pair in pairs if not pair.positives), None):
            raise UserError(f"query {bare} in {self._dataset.folder} has no positive passage; import the pairs anew")
        positives = [pair.positives[step % len(pair.positives)] for pair in pairs]
        hard = self._hard_negatives(ordinals.tolist(), pairs, negatives)
        passages = [*positives, *hard]
        query_ids = self._encoder.tokenize([pair.query for pair in pairs], "query", self._config.query_max_tokens)
        passage_ids = self._encoder.tokenize([passage.content for passage in passages], "passage")
        pad_id, budget = self._encoder.tokenizer.pad_token_id or 0, self._config.tokens_per_chunk
        query_chunks = pad_chunks(query_ids, pad_id=pad_id, tokens_per_chunk=budget)
        passage_chunks = pad_chunks(passage_ids, pad_id=pad_id, tokens_per_chunk=budget)
        return StepBatch(
            step=step,
            queries=query_chunks,
            passages=passage_chunks,
            labels=_labels(pairs, passages),
            tokens=sum(map(len, query_ids)) + sum(map(len, passage_ids)),
            padded_tokens=sum(chunk.input_ids.numel() for chunk in (*query_chunks, *passage_chunks)),
        )

    def _hard_negatives(
        self, ordinals: list[int], pairs: list[Pair], negatives: NegativesSource | None
    ) -> list[Passage]:
        """Take at most `hard_negatives` for each pair: those that came with it, then the mined ones."""
        chosen: list[Passage] = []
        if self._config.hard_negatives == 0:
            return chosen
        shards, rows = self._dataset.locate(ordinals)
        for pair, shard, row in zip(pairs, shards, rows, strict=True):
            candidates = list(pair.negatives)
            if negatives is not None:
                candidates += negatives.negatives(self._dataset.shard_stems[shard], int(row))
            chosen += candidates[: self._config.hard_negatives]
        return chosen


def _labels(pairs: list[Pair], passages: list[Passage]) -> Labels:
    most = max(len(pair.positives) for pair in pairs)
    hashes = [[positive.content_hash for positive in pair.positives] for pair in pairs]
    return Labels(
        query_hash_b=torch.tensor([text_hash(pair.query) for pair in pairs]),
        positive_hash_bK=torch.tensor([row + row[:1] * (most - len(row)) for row in hashes]),
        passage_hash_n=torch.tensor([passage.content_hash for passage in passages]),
        weight_b=torch.tensor([pair.weight for pair in pairs]),
    )
