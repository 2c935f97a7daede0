"""Global order to tensors: what one rank needs for one step, read and tokenised ahead of the compute."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.collate import CHUNK_COST, Chunk, pad_chunks
from data_shards.errors import ShardCorruptError, UserError
from data_shards.negatives import NegativesSource
from data_shards.order import GlobalOrder
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, text_hash
from encoder.model import Encoder
from train.loss import Labels

_FETCH_EVERY_STEPS = 32  # how often remote shards that will be needed are asked for
_FETCH_LOOKS = 8
_STAND_INS = 32  # places looked at where all of a rank's part is damaged
_STAND_IN_EPOCHS = 0.37  # how far apart: within an epoch its lanes come to other shards, in the next they are others


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How pairs become tensors."""

    batch_size: int = 256
    """Pairs that all ranks together consume in one step."""
    query_max_tokens: int = 48
    """Queries are cut to this while training; a snapshot cuts both sides at the encoder's own length."""
    tokens_per_chunk: int = 2048
    """Most tokens in one forward pass, padding counted; memory grows with this, not with the batch."""
    chunk_cost_tokens: int = CHUNK_COST
    """What one more chunk costs, in tokens: the more, the fewer chunks and the more padding."""
    pad_to_multiple_of: int = 1
    """Chunks are padded to a multiple of this length. In bfloat16 on a CPU each new shape costs some ten milliseconds
    and megabytes once, so 16 pays there although it pads more."""
    passage_token_dropout: float = 0.0
    """Share of each passage's tokens that is left out at random: fewer tokens to encode, and less is learnt by heart.
    It pays for small encoders from scratch."""
    hard_negatives: int = 1
    """Most negatives taken for each query: given ones first, then mined ones."""
    prefetch_steps: int = 2
    """Steps that are read and tokenised ahead."""

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("batch_size", "query_max_tokens", "tokens_per_chunk", "pad_to_multiple_of", "prefetch_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"batch.{name} must be at least 1, came {getattr(self, name)}")
        if not 0 <= self.passage_token_dropout < 1:
            raise UserError(
                f"batch.passage_token_dropout must be at least 0 and below 1, came {self.passage_token_dropout}"
            )
        for name in ("hard_negatives", "chunk_cost_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"batch.{name} must be 0 or more, came {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """One rank's part of one global batch."""

    step: int
    queries: list[Chunk]
    passages: list[Chunk]
    """The queries' positives first, then their negatives; `Chunk.rows` tells which is which."""
    labels: Labels
    skipped: int
    """Pairs that are damaged and were left out; their places are in the quarantine file."""
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
                    if self._dataset.is_remote and (step == start or step % _FETCH_EVERY_STEPS == 0):
                        self._dataset.prefetch(self._ahead(step))
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
        try:
            ordinals, pairs, skipped = self._sound_pairs(step)
        except ShardCorruptError as error:
            what = f'{error.what} (data.on_error = "quarantine" skips such samples)'
            raise ShardCorruptError(error.path, error.offset, what) from None
        if bare := next((pair for pair in pairs if not pair.positives), None):
            raise UserError(
                f"query {bare.query_id} in {self._dataset.location} has no positive passage; import the pairs anew"
            )
        turns = [step % len(pair.positives) for pair in pairs]
        positives = [pair.positives[turn] for pair, turn in zip(pairs, turns, strict=True)]
        hard = self._hard_negatives(ordinals.tolist(), pairs, negatives)
        passages = [*positives, *hard]
        query_ids = self._encoder.tokenize([pair.query for pair in pairs], "query", self._config.query_max_tokens)
        passage_ids = self._encoder.tokenize([passage.content for passage in passages], "passage")
        if self._config.passage_token_dropout:
            passage_ids = self._thinned(passage_ids, step)
        pad_id, budget = self._encoder.tokenizer.pad_token_id or 0, self._config.tokens_per_chunk
        shape = {
            "chunk_cost": self._config.chunk_cost_tokens,
            "multiple_of": self._config.pad_to_multiple_of,
        }
        query_chunks = pad_chunks(query_ids, pad_id=pad_id, tokens_per_chunk=budget, **shape)
        passage_chunks = pad_chunks(passage_ids, pad_id=pad_id, tokens_per_chunk=budget, **shape)
        return StepBatch(
            step=step,
            queries=query_chunks,
            passages=passage_chunks,
            labels=_labels(pairs, passages, turns),
            skipped=skipped,
            tokens=sum(map(len, query_ids)) + sum(map(len, passage_ids)),
            padded_tokens=sum(chunk.input_ids.numel() for chunk in (*query_chunks, *passage_chunks)),
        )

    def _thinned(self, token_ids: list[list[int]], step: int) -> list[list[int]]:
        """Leave tokens out at random; the first and the last, which are special, stay."""
        draw = np.random.default_rng([int(self._order.identity[:15], 16), step, self._rank])
        thinned = []
        for ids in token_ids:
            kept = draw.random(len(ids)) >= self._config.passage_token_dropout
            kept[[0, -1]] = True
            thinned.append(np.asarray(ids)[kept].tolist())
        return thinned

    def _sound_pairs(self, step: int) -> tuple[NDArray[np.int64], list[Pair], int]:
        """Return the ordinals and pairs of this rank's part that can be read, and how many cannot.

        A rank must not come to the collectives with nothing. Where a shard is lost, all of its part may be of it:
        then its part of another step stands in.

        Raises:
            UserError: wherever it looks, all is damaged.
        """
        wanted = self._order.rank_slice(step, self._rank, self._world)
        ordinals, pairs = self._dataset.sound_pairs(wanted)
        skipped = len(wanted) - len(pairs)
        for turn in range(1, _STAND_INS):
            if pairs:
                break
            elsewhere = step + turn + int(turn * _STAND_IN_EPOCHS * self._order.steps_per_epoch)
            ordinals, pairs = self._dataset.sound_pairs(self._order.rank_slice(elsewhere, self._rank, self._world))
        if not pairs:
            raise UserError(
                f"all {len(wanted)} pairs of rank {self._rank} at step {step} are damaged in "
                f"{self._dataset.location}, and so is what could stand in; copy the dataset again, or make it anew"
            )
        return ordinals, pairs, skipped

    def _ahead(self, step: int) -> NDArray[np.int64]:
        """Return some of the ordinals that this rank comes to while it consumes about half a shard in each lane.

        A few steps of that stretch name nearly all shards that it touches.
        """
        rows = len(self._dataset) / len(self._dataset.shard_stems)
        reach = rows * self._order.lanes / self._order.batch_size / 2
        steps = np.unique(np.linspace(step, step + max(reach, _FETCH_EVERY_STEPS), _FETCH_LOOKS).astype(int))
        return np.concatenate([self._order.rank_slice(int(at), self._rank, self._world) for at in steps])

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


def _labels(pairs: list[Pair], passages: list[Passage], turns: list[int]) -> Labels:
    """Return who is whose; a pair counts by its weight, times the graded relevance of the positive in turn."""
    most = max(len(pair.positives) for pair in pairs)
    hashes = [[positive.content_hash for positive in pair.positives] for pair in pairs]
    return Labels(
        query_hash_b=torch.tensor([text_hash(pair.query) for pair in pairs]),
        positive_hash_bK=torch.tensor([row + row[:1] * (most - len(row)) for row in hashes]),
        passage_hash_n=torch.tensor([passage.content_hash for passage in passages]),
        weight_b=torch.tensor([pair.relevance(turn) for pair, turn in zip(pairs, turns, strict=True)]),
    )
