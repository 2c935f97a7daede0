"""A toy batch with everything that has ever broken a distributed loss, and a slow, plain reference for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_shards.collate import pad_chunks
from data_shards.samples import text_hash
from encoder.model import Encoder, EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from train.batches import StepBatch
from train.loss import Labels

GLOBAL_BATCH = 8
TEMPERATURE = 0.07
_WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@dataclass(frozen=True)
class Row:
    """A query, its known positives (the first is the one in the batch), its negatives, its weight."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    weight: float


def rows() -> list[Row]:
    """Return the global batch: uneven lengths, uneven negatives, an equal query, a duplicate, two positives."""
    made = [
        Row(
            query=" ".join(_WORDS[: 1 + k % 5]) + f" q{k}",
            positives=(" ".join(_WORDS[k % 4 :]) + f" p{k}",),
            negatives=tuple(f"{_WORDS[k]} negative {j}" for j in range(k % 3)),
            weight=1.0 + k % 2,
        )
        for k in range(GLOBAL_BATCH)
    ]
    made[3] = Row(made[1].query, made[3].positives, made[3].negatives, 1.0)  # another rank asks the same
    made[6] = Row(made[6].query, made[6].positives, (made[0].positives[0],), 1.0)  # another's positive, mined
    made[0] = Row(made[0].query, made[0].positives + made[5].positives, made[0].negatives, 2.0)
    return made


def save_encoder(path: Path, *, dropout: float = 0.0) -> Path:
    """Write a small encoder for all processes: training a tokenizer twice does not always give the same one."""
    texts = [row.query for row in rows()] + [text for row in rows() for text in (*row.positives, *row.negatives)]
    scratch = ScratchConfig(vocab_size=120, width=16, heads=2, layers=2, dropout=dropout)
    save_snapshot(scratch_encoder(scratch, EncoderSettings(max_tokens=32), texts, seed=3), path)
    return path


def encoder(path: Path, *, wide: bool = True) -> Encoder:
    """Load it, ready to train; `wide` makes it float64."""
    made = load_encoder(path)
    return (made.double() if wide else made).train()


def part(model: Encoder, rank: int, world_size: int, *, tokens_per_chunk: int = 24) -> StepBatch:
    """Return one rank's part, in chunks whose number differs between ranks."""
    share = GLOBAL_BATCH // world_size
    mine = rows()[rank * share : (rank + 1) * share]
    passages = [row.positives[0] for row in mine] + [text for row in mine for text in row.negatives]
    most = max(len(row.positives) for row in mine)
    labels = Labels(
        query_hash_b=torch.tensor([text_hash(row.query) for row in mine]),
        positive_hash_bK=torch.tensor(
            [[text_hash(text) for text in (row.positives + row.positives[:1] * most)[:most]] for row in mine]
        ),
        passage_hash_n=torch.tensor([text_hash(text) for text in passages]),
        weight_b=torch.tensor([row.weight for row in mine], dtype=torch.float64),
    )
    queries = pad_chunks(
        model.tokenize([row.query for row in mine], "query"), pad_id=0, tokens_per_chunk=tokens_per_chunk
    )
    chunks = pad_chunks(model.tokenize(passages, "passage"), pad_id=0, tokens_per_chunk=tokens_per_chunk)
    return StepBatch(step=0, queries=queries, passages=chunks, labels=labels, skipped=0, tokens=0, padded_tokens=0)


def reference(model: Encoder) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of the global batch, text by text, with none of the code under test.

    Only the encoder's own forward pass is shared: one text at a time, no padding, no chunks, no masks as tensors.
    """
    model.zero_grad()
    batch = rows()

    def encode(text: str, side: str) -> Tensor:
        ids = torch.tensor(model.tokenize([text], "query" if side == "query" else "passage"))
        return model(ids, torch.ones_like(ids))[0]

    passages = [(k, row.positives[0], True) for k, row in enumerate(batch)]
    passages += [(k, text, False) for k, row in enumerate(batch) for text in row.negatives]
    vectors = [encode(text, "passage") for _, text, _ in passages]
    total = torch.zeros((), dtype=torch.float64)
    for k, row in enumerate(batch):
        query = encode(row.query, "query")
        kept = []
        for (owner, text, positive), vector in zip(passages, vectors, strict=True):
            own = positive and owner == k
            known = text in row.positives or (positive and batch[owner].query == row.query)
            if own:
                right = query @ vector / TEMPERATURE
            if own or not known:
                kept.append(query @ vector / TEMPERATURE)
        total = total + row.weight * (torch.logsumexp(torch.stack(kept), 0) - right)
    loss = total / sum(row.weight for row in batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients
