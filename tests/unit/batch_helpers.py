"""Opens a loader on a few pairs, and reads a batch back into texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from data_shards.negatives import MinedNegative
from data_shards.reader import PairDataset
from data_shards.samples import Passage
from encoder.model import Encoder
from train.batches import BatchConfig, BatchLoader, StepBatch


class Mined(dict[tuple[str, int], list[Passage]]):
    """Mined negatives that say which sample they are for."""

    def mined(self, stem: str, row: int) -> list[MinedNegative]:
        return [MinedNegative(passage, score=0.5) for passage in self.get((stem, row), [])]


def open_loader(
    dataset: PairDataset, encoder: Encoder, *, rank: int = 0, world: int = 1, **config: Any
) -> BatchLoader:
    settings = BatchConfig(**{"batch_size": 4, **config})
    order = dataset.order(batch_size=settings.batch_size, seed=3)
    return BatchLoader(dataset=dataset, order=order, encoder=encoder, config=settings, rank=rank, world=world)


def texts(encoder: Encoder, batch: StepBatch, side: str) -> list[str]:
    """Return the batch's texts, decoded and in order."""
    found = batch.queries if side == "query" else batch.passages
    decoded: Mapping[int, str] = {
        row: encoder.tokenizer.decode(ids, skip_special_tokens=True)
        for chunk in found.chunks
        for row, ids in zip(chunk.rows.tolist(), chunk.input_ids, strict=True)
    }
    assert sorted(decoded) == list(range(found.distinct)), "each text once"
    return [decoded[place] for place in found.places.tolist()]


def same(one: StepBatch, other: StepBatch) -> bool:
    """Compare every tensor."""
    tensors = [
        [
            *(t for c in (*b.queries.chunks, *b.passages.chunks) for t in (c.rows, c.input_ids, c.attention_mask)),
            b.queries.places,
            b.passages.places,
            *(getattr(b.labels, field.name).nan_to_num(9.0) for field in dataclasses.fields(b.labels)),
        ]
        for b in (one, other)
    ]
    return len(tensors[0]) == len(tensors[1]) and all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


def encoder_text(encoder: Encoder, text: str) -> str:
    """Return what the tokenizer makes of a text."""
    ids = encoder.tokenize([text], "query")[0]
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=True))
