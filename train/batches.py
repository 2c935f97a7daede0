"""Global order to tensors: what one rank needs for one step, read and tokenised ahead of the compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.collate import CHUNK_COST, Chunk, pad_chunks
from data_shards.errors import ShardCorruptError, UserError
from data_shards.negatives import NegativesSource
from data_shards.order import GlobalOrder
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, text_hash
from encoder.model import Encoder, Side
from train.mfu import squared_lengths
from train.objective import Labels
from train.read_ahead import FETCH_EVERY_STEPS, fetch_ahead, read_ahead

TokenIds = NDArray[np.int32]

_TOKENIZED_AT_ONCE = 256
_STAND_INS = 32  # places looked at where all of a rank's part is damaged
_STAND_IN_EPOCHS = 0.37  # how far apart: within an epoch its lanes come to other shards, in the next they are others

NegativesAt = Callable[[int], NegativesSource | None]

_AT_LEAST_ONE = (
    "batch_size",
    "query_max_tokens",
    "tokens_per_chunk",
    "positives",
    "accumulation",
    "prefetch_steps",
)


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
    pad_to_multiple_of: int = 0
    """Chunks are padded to a multiple of this length, so that they come in fewer shapes. In bfloat16 on a CPU each
    new shape costs ten milliseconds and a megabyte: 0 is 16 there, although that pads more, and 1 elsewhere."""
    rows_multiple_of: int = 0
    """Chunks have a multiple of so many texts, for the same end; 0 is 8 in bfloat16 on a CPU, and 1 elsewhere."""
    passage_token_dropout: float = 0.0
    """Share of each passage's tokens that is left out at random: fewer tokens to encode, and less is learnt by heart.
    It pays for small encoders from scratch."""
    positives: int = 1
    """Most positives of a query that are encoded in one step; they take turns, and share the query's weight."""
    hard_negatives: int = 1
    """Most negatives taken for each query: given ones first, then mined ones."""
    accumulation: int = 1
    """Parts into which a global batch is cut; each is contrasted within itself, and their gradients are averaged."""
    prefetch_steps: int = 2
    """Steps that are read and tokenised ahead."""

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UserError(f"batch.{name} must be at least 1, came {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch.batch_size {self.batch_size} does not divide into batch.accumulation = "
                f"{self.accumulation} parts"
            )
        if not 0 <= self.passage_token_dropout < 1:
            raise UserError(
                f"batch.passage_token_dropout must be at least 0 and below 1, came {self.passage_token_dropout}"
            )
        for name in ("hard_negatives", "chunk_cost_tokens", "pad_to_multiple_of", "rows_multiple_of"):
            if getattr(self, name) < 0:
                raise UserError(f"batch.{name} must be 0 or more, came {getattr(self, name)}")

    def on(self, device: torch.device, precision: str) -> BatchConfig:
        """Return the config with shapes that suit a device."""
        few = device.type == "cpu" and precision == "bfloat16"
        return replace(
            self,
            pad_to_multiple_of=self.pad_to_multiple_of or (16 if few else 1),
            rows_multiple_of=self.rows_multiple_of or (8 if few else 1),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """One side of a batch: every distinct text once, in chunks."""

    chunks: list[Chunk]
    places: Tensor
    """int64 [b]: which of the distinct texts stands at each place of the batch; `Chunk.rows` counts distinct ones."""

    @property
    def distinct(self) -> int:
        """How many texts are encoded."""
        return sum(len(chunk.rows) for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """One rank's part of what is contrasted with each other: a global batch, or a part of one."""

    step: int
    queries: Texts
    passages: Texts
    """The queries' positives first, then their negatives."""
    labels: Labels
    skipped: int
    """Pairs that are damaged and were left out; their places are in the quarantine file."""
    tokens: int
    """Tokens of the distinct texts, padding left out."""
    padded_tokens: int
    """The same, padding counted."""
    squares: int = 0
    """Sum of the squares of the distinct texts' lengths: what attention costs."""


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
        order.rank_slice(0, rank, world * config.accumulation)
        self._dataset, self._order, self._encoder, self._config = dataset, order, encoder, config
        self._rank, self._world = rank, world

    def steps(
        self, start: int, stop: int, negatives_at: NegativesAt = lambda step: None
    ) -> Iterator[list[StepBatch]]:
        """Yield the parts of steps `start` to `stop`.

        A thread reads ahead; what it raises is raised here. Leaving the iterator early ends the thread.

        Args:
            start: the first step.
            stop: the one after the last.
            negatives_at: tells the negatives of a step. When step n is yielded, it may have been asked about
                `prefetch_steps` + 1 more.
        """

        def make(step: int) -> list[StepBatch]:
            if step == start or step % FETCH_EVERY_STEPS == 0:
                shards = len(self._dataset.shard_stems)
                fetch_ahead(self._dataset, self._order, shards=shards, step=step, rank=self._rank, world=self._world)
            negatives = negatives_at(step)
            return [self.load(step, negatives, part) for part in range(self._config.accumulation)]

        return read_ahead(make, start, stop, depth=self._config.prefetch_steps)

    def load(self, step: int, negatives: NegativesSource | None, part: int = 0) -> StepBatch:
        """Read and tokenise this rank's share of one part of a global batch; a pure function of its arguments."""
        try:
            ordinals, pairs, skipped = self._sound_pairs(step, part)
        except ShardCorruptError as error:
            what = f'{error.what} (data.on_error = "quarantine" skips such samples)'
            raise ShardCorruptError(error.path, error.offset, what) from None
        if bare := next((pair for pair in pairs if not pair.positives), None):
            raise UserError(
                f"query {bare.query_id} in {self._dataset.location} has no positive passage; import the pairs anew"
            )
        chosen = self._positives(pairs, step)
        chosen += self._hard_negatives(ordinals.tolist(), pairs, negatives)
        asked = [(pair.query, pair.source) for pair in pairs]
        answers = [(row.passage.content, pairs[row.owner].source) for row in chosen]
        queries = self._texts(self._tokenized(asked, "query", self._config.query_max_tokens))
        passages = self._texts(self._tokenized(answers, "passage"), thin_at=step)
        chunks = [*queries.chunks, *passages.chunks]
        return StepBatch(
            step=step,
            queries=queries,
            passages=passages,
            labels=labels_of(pairs, chosen),
            skipped=skipped,
            tokens=sum(int(chunk.attention_mask.sum()) for chunk in chunks),
            padded_tokens=sum(chunk.input_ids.numel() for chunk in chunks),
            squares=squared_lengths(chunks),
        )

    def _tokenized(self, texts: list[tuple[str, str]], side: Side, max_tokens: int | None = None) -> list[TokenIds]:
        """Return the token ids of (text, source), some texts at a time.

        While it works a tokenizer holds some 130 bytes a token, and its answer 36: at once, for a batch of thousands,
        that would be the largest thing that reading needs.
        """
        rows = []
        for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
            contents, sources = zip(*texts[start : start + _TOKENIZED_AT_ONCE], strict=True)
            ids = self._encoder.tokenize(contents, side, max_tokens, sources=sources)
            rows += [np.array(row, dtype=np.int32) for row in ids]
        return rows

    def _texts(self, token_ids: list[TokenIds], *, thin_at: int | None = None) -> Texts:
        """Keep each distinct text once, and cut them into chunks."""
        places: dict[bytes, int] = {}
        at = [places.setdefault(ids.tobytes(), len(places)) for ids in token_ids]
        distinct = [np.frombuffer(ids, dtype=np.int32) for ids in places]
        if thin_at is not None and self._config.passage_token_dropout:
            distinct = self._thinned(distinct, thin_at)
        chunks = pad_chunks(
            distinct,
            pad_id=self._encoder.tokenizer.pad_token_id or 0,
            tokens_per_chunk=self._config.tokens_per_chunk,
            chunk_cost=self._config.chunk_cost_tokens,
            multiple_of=self._config.pad_to_multiple_of or 1,
            rows_multiple_of=self._config.rows_multiple_of or 1,
        )
        return Texts(chunks=chunks, places=torch.tensor(at))

    def _thinned(self, token_ids: list[TokenIds], step: int) -> list[TokenIds]:
        """Leave tokens out at random; the first and the last, which are special, stay."""
        draw = np.random.default_rng([int(self._order.identity[:15], 16), step, self._rank])
        thinned = []
        for ids in token_ids:
            kept = draw.random(len(ids)) >= self._config.passage_token_dropout
            kept[[0, -1]] = True
            thinned.append(ids[kept])
        return thinned

    def _sound_pairs(self, step: int, part: int) -> tuple[NDArray[np.int64], list[Pair], int]:
        """Return the ordinals and pairs of this rank's part that can be read, and how many cannot.

        A rank must not come to the collectives with nothing. Where a shard is lost, all of its part may be of it:
        then its part of another step stands in.

        Raises:
            UserError: wherever it looks, all is damaged.
        """
        # A part is a stretch of the global batch, so that who stands in which does not depend on the world size.
        share, shares = part * self._world + self._rank, self._world * self._config.accumulation
        wanted = self._order.rank_slice(step, share, shares)
        ordinals, pairs = self._dataset.sound_pairs(wanted)
        skipped = len(wanted) - len(pairs)
        for turn in range(1, _STAND_INS):
            if pairs:
                break
            elsewhere = step + turn + int(turn * _STAND_IN_EPOCHS * self._order.steps_per_epoch)
            ordinals, pairs = self._dataset.sound_pairs(self._order.rank_slice(elsewhere, share, shares))
        if not pairs:
            raise UserError(
                f"all {len(wanted)} pairs of rank {self._rank} at step {step} are damaged in "
                f"{self._dataset.location}, and so is what could stand in; copy the dataset again, or make it anew"
            )
        return ordinals, pairs, skipped

    def _positives(self, pairs: list[Pair], step: int) -> list[Candidate]:
        """Take at most `positives` of each pair; where there are more, they take turns from step to step."""
        chosen = []
        for owner, pair in enumerate(pairs):
            count = min(self._config.positives, len(pair.positives))
            for turn in range(step * count, (step + 1) * count):
                place = turn % len(pair.positives)
                chosen.append(
                    Candidate(
                        passage=pair.positives[place],
                        owner=owner,
                        positive=True,
                        weight=pair.relevance(place) / count,
                        teacher=_at(pair.teacher_positives, place),
                    )
                )
        return chosen

    def _hard_negatives(
        self, ordinals: list[int], pairs: list[Pair], negatives: NegativesSource | None
    ) -> list[Candidate]:
        """Take at most `hard_negatives` for each pair: those that came with it, then the mined ones."""
        chosen: list[Candidate] = []
        if self._config.hard_negatives == 0:
            return chosen
        shards, rows = self._dataset.locate(ordinals)
        for owner, (pair, shard, row) in enumerate(zip(pairs, shards, rows, strict=True)):
            candidates = [
                Candidate(passage=passage, owner=owner, teacher=_at(pair.teacher_negatives, place))
                for place, passage in enumerate(pair.negatives)
            ]
            if negatives is not None:
                candidates += [
                    Candidate(
                        passage=mined.passage,
                        owner=owner,
                        teacher=math.nan if mined.teacher is None else mined.teacher,
                    )
                    for mined in negatives.mined(self._dataset.shard_stems[shard], int(row))
                ]
            chosen += candidates[: self._config.hard_negatives]
        return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A passage of a batch, and the query that brought it there."""

    passage: Passage
    owner: int
    positive: bool = False
    weight: float = 0.0
    """How much a positive counts."""
    teacher: float = math.nan
    """What a teacher says of query and passage, where one was asked."""


def labels_of(pairs: list[Pair], chosen: list[Candidate]) -> Labels:
    """Return who is whose."""
    most = max(len(pair.positives) for pair in pairs)
    hashes = [[positive.content_hash for positive in pair.positives] for pair in pairs]
    return Labels(
        query_hash_b=torch.tensor([text_hash(pair.query) for pair in pairs]),
        positive_hash_bK=torch.tensor([row + row[:1] * (most - len(row)) for row in hashes]),
        passage_hash_n=torch.tensor([row.passage.content_hash for row in chosen]),
        owner_n=torch.tensor([row.owner for row in chosen]),
        positive_n=torch.tensor([row.positive for row in chosen]),
        weight_n=torch.tensor([row.weight for row in chosen]),
        teacher_n=torch.tensor([row.teacher for row in chosen]),
    )


def _at(scores: tuple[float, ...], place: int) -> float:
    return scores[place] if place < len(scores) else math.nan
