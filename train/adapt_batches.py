"""The `adapt` stage's batches: passages of the corpus in a global order of their own, some of their tokens hidden."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_shards.collate import pad_chunks
from data_shards.errors import UserError
from data_shards.order import GlobalOrder
from data_shards.reader import CorpusDataset
from data_shards.samples import Passage
from encoder.model import Encoder, with_settings
from train.batches import BatchConfig
from train.masking import MaskedText, Vocabulary, mask_text
from train.read_ahead import FETCH_EVERY_STEPS, fetch_ahead, read_ahead
from train.schedule import OptimizerConfig

IGNORED = -100
"""A label that no loss counts."""
_FILL_HIDDEN = 64

# Axes: B texts, T tokens, m hidden tokens of a chunk.


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Masked-language-model training of the backbone on the raw corpus, before contrastive training begins."""

    steps: int = 0
    """Optimiser steps; where it is above 0 it takes the place of `epochs`."""
    epochs: float = 0.0
    """Passes over the corpus. With both at 0 there is no such stage."""
    batch_size: int = 256
    """Passages that all ranks together consume in one step."""
    max_tokens: int = 0
    """Passages are cut to this; 0 is the encoder's own length."""
    mask_share: float = 0.15
    """Share of each passage's tokens that are hidden and guessed."""
    learning_rate: float = 1e-4
    """The highest. An encoder from scratch takes 1e-3; what else AdamW wants stands in [optimizer]."""
    warmup_share: float = 0.1
    """Share of the stage's steps over which the rate rises."""
    tokens_per_chunk: int = 4096
    """Most tokens in one forward pass, padding counted; memory grows with this, not with the batch."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.steps < 0 or not 0 <= self.epochs < math.inf:
            raise UserError("adapt.steps and adapt.epochs must be 0 or more; both at 0 turn the stage off")
        for name in ("batch_size", "tokens_per_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"adapt.{name} must be at least 1, came {getattr(self, name)}")
        if self.max_tokens != 0 and self.max_tokens < 3:
            raise UserError(
                f"adapt.max_tokens must be at least 3, or 0 for the encoder's own; came {self.max_tokens}"
            )
        for name in ("mask_share", "warmup_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"adapt.{name} is a share between 0 and 1, came {getattr(self, name)}")
        if self.mask_share == 0:
            raise UserError("adapt.mask_share must be above 0; 0.15 is usual, up to 0.4 can pay")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"adapt.learning_rate must be positive, came {self.learning_rate}")

    @property
    def on(self) -> bool:
        """Whether there is such a stage."""
        return self.steps > 0 or self.epochs > 0

    def check_divides(self, ranks: int) -> None:
        """Refuse a batch that does not divide over the ranks.

        Raises:
            UserError: it does not; the message proposes the nearest sizes that do.
        """
        if self.batch_size % ranks:
            below = self.batch_size // ranks * ranks
            sizes = f"{below} or {below + ranks}" if below else f"{ranks}"
            raise UserError(
                f"adapt.batch_size {self.batch_size} does not divide over {ranks} ranks; set it to {sizes}"
            )

    def total_steps(self, order: GlobalOrder) -> int:
        """Return the length of the stage in steps."""
        return self.steps or max(1, round(self.epochs * order.steps_per_epoch))

    def optimizer(self, base: OptimizerConfig) -> OptimizerConfig:
        """Return AdamW's settings: those of contrastive training with this stage's rate, and without an average."""
        return replace(base, learning_rate=self.learning_rate, warmup_share=self.warmup_share, ema_decay=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedChunk:
    """Some texts of a batch, of similar length, padded to the longest."""

    input_ids: Tensor
    """int64 [B, T]."""
    attention_mask: Tensor
    """int64 [B, T]: 1 for a token, 0 for padding."""
    place_m: Tensor
    """int64: where tokens are hidden in the flattened chunk; there may be none."""
    label_m: Tensor
    """int64: which they are; `IGNORED` where the row is only there to fill up."""

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a `MaskedLM` takes, on a device."""
        parts = (self.input_ids, self.attention_mask, self.place_m, self.label_m)
        ids, mask, place, label = (part.to(device, non_blocking=True) for part in parts)
        return ids, mask, place, label


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedBatch:
    """One rank's part of a global batch."""

    step: int
    chunks: list[MaskedChunk]
    """At least one."""
    masked: int
    """Hidden tokens."""
    tokens: int
    """Tokens, padding left out."""
    padded_tokens: int
    """The same, padding counted."""
    skipped: int
    """Passages that are damaged and were left out; their places are in the quarantine file."""


class MaskedLoader:
    """Yields one rank's batches; each is a pure function of the step."""

    def __init__(
        self,
        *,
        dataset: CorpusDataset,
        order: GlobalOrder,
        encoder: Encoder,
        config: AdaptConfig,
        batch: BatchConfig,
        rank: int,
        world: int,
    ) -> None:
        """Keep the parts; nothing is read yet.

        Args:
            dataset: the corpus.
            order: of its passages.
            encoder: its tokenizer is used, and none of its prompts: they would be guessed in every passage.
            config: of the stage.
            batch: how chunks are padded, and how many steps are read ahead.
            rank: whose part this is.
            world: how many ranks there are; they divide the batch.
        """
        self._dataset, self._order, self._config, self._batch = dataset, order, config, batch
        bare = replace(encoder.settings, query_prompt="", passage_prompt="", source_prompts={})
        self._encoder = with_settings(encoder, bare)
        self._rank, self._world = rank, world
        # Where shapes of chunks are kept few, the head's are as well: on a CPU in bfloat16 this saved a seventh of a
        # step, and most of the memory that each new shape takes.
        self._multiple = _FILL_HIDDEN if batch.pad_to_multiple_of > 1 else 1
        self._vocabulary = Vocabulary.of(encoder.tokenizer)

    def steps(self, start: int, stop: int) -> Iterator[MaskedBatch]:
        """Yield the steps from `start` up to `stop`, read ahead in a thread."""

        def make(step: int) -> MaskedBatch:
            if step == start or step % FETCH_EVERY_STEPS == 0:
                shards = len(self._dataset.manifest.shards)
                fetch_ahead(self._dataset, self._order, shards=shards, step=step, rank=self._rank, world=self._world)
            return self.load(step)

        return read_ahead(make, start, stop, depth=self._batch.prefetch_steps)

    def load(self, step: int) -> MaskedBatch:
        """Read, tokenise and hide tokens."""
        wanted = self._order.rank_slice(step, self._rank, self._world)
        ordinals, passages = self._dataset.sound_passages(wanted)
        texts = self._masked(step, ordinals.tolist(), passages) if passages else [self._nothing()]
        chunks = self._chunks(texts)
        return MaskedBatch(
            step=step,
            chunks=chunks,
            masked=sum(len(text.places) for text in texts),
            tokens=sum(int(chunk.attention_mask.sum()) for chunk in chunks),
            padded_tokens=sum(chunk.input_ids.numel() for chunk in chunks),
            skipped=len(wanted) - len(passages),
        )

    def _masked(self, step: int, ordinals: list[int], passages: list[Passage]) -> list[MaskedText]:
        """Hide tokens: other ones each time that a passage comes up, the same on any number of ranks."""
        contents = [passage.content for passage in passages]
        token_ids = self._encoder.tokenize(contents, "passage", self._config.max_tokens or None)
        return [
            mask_text(
                ids,
                self._vocabulary,
                share=self._config.mask_share,
                key=(int(self._order.identity[:15], 16), step, ordinal),  # the identity holds the seed
            )
            for ids, ordinal in zip(token_ids, ordinals, strict=True)
        ]

    def _nothing(self) -> MaskedText:
        """Stand in where all of a rank's passages are damaged: it has to come to the collectives all the same."""
        none = np.empty(0, dtype=np.int64)
        return MaskedText([self._vocabulary.mask_id], none, none)

    def _chunks(self, texts: list[MaskedText]) -> list[MaskedChunk]:
        padded = pad_chunks(
            [text.input_ids for text in texts],
            pad_id=self._encoder.tokenizer.pad_token_id or 0,
            tokens_per_chunk=self._config.tokens_per_chunk,
            chunk_cost=self._batch.chunk_cost_tokens,
            multiple_of=self._batch.pad_to_multiple_of or 1,
            rows_multiple_of=self._batch.rows_multiple_of or 1,
        )
        chunks = []
        for chunk in padded:
            width = chunk.input_ids.shape[1]
            inside = [texts[row] for row in chunk.rows.tolist()]
            places = np.concatenate([row * width + text.places for row, text in enumerate(inside)])
            labels = np.concatenate([text.labels for text in inside])
            fill = -len(places) % self._multiple
            chunks.append(
                MaskedChunk(
                    input_ids=chunk.input_ids,
                    attention_mask=chunk.attention_mask,
                    place_m=torch.from_numpy(np.pad(places, (0, fill))),
                    label_m=torch.from_numpy(np.pad(labels, (0, fill), constant_values=IGNORED)),
                )
            )
        return chunks
