"""A toy batch with everything that has ever broken a distributed loss, and a slow, plain reference for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_shards.collate import pad_chunks
from data_shards.samples import text_hash
from encoder.lora import LoraConfig, add_lora
from encoder.model import Encoder, EncoderSettings, ScratchConfig, Side, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from train.batches import StepBatch, Texts
from train.objective import Labels, LossConfig

GLOBAL_BATCH = 8
TEMPERATURE = 0.07
DIM = 16
_WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@dataclass(frozen=True)
class Row:
    """A query with what it brings into the batch."""

    query: str
    positives: tuple[str, ...]
    weights: tuple[float, ...]
    """One for each of `positives`."""
    negatives: tuple[str, ...]
    known: tuple[str, ...]
    """Known positives that are not its own in this batch."""


def rows() -> list[Row]:
    """Return the global batch: uneven lengths, negatives and positives, equal queries and passages, duplicates."""
    made = [
        Row(
            query=" ".join(_WORDS[: 1 + k % 5]) + f" q{k}",
            positives=(" ".join(_WORDS[k % 4 :]) + f" p{k}", f"{_WORDS[k]} second p{k}")[: 1 + (k % 3 == 2)],
            weights=(1.0 + k % 2, 0.5)[: 1 + (k % 3 == 2)],
            negatives=tuple(f"{_WORDS[k]} negative {j}" for j in range(k % 3)),
            known=(),
        )
        for k in range(GLOBAL_BATCH)
    ]
    made[3] = dataclasses.replace(made[3], query=made[1].query)  # of four ranks, another one asks the same
    made[6] = dataclasses.replace(made[6], negatives=made[0].positives)  # another's positive, mined
    made[7] = dataclasses.replace(made[7], negatives=made[6].positives)  # the same on its own rank
    made[0] = dataclasses.replace(made[0], known=made[5].positives)
    return made


def save_encoder(path: Path, *, dropout: float = 0.0, projection: int | None = None, towers: str = "one") -> Path:
    """Write a small encoder for all processes: training a tokenizer twice does not always give the same one."""
    texts = [text for row in rows() for text in (row.query, *row.positives, *row.negatives)]
    scratch = ScratchConfig(vocab_size=120, width=DIM, heads=2, layers=2, dropout=dropout)
    settings = EncoderSettings(max_tokens=32, projection_dim=projection, towers=towers)  # type: ignore[arg-type]
    made = scratch_encoder(scratch, settings, texts, seed=3)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.startswith("passage_"):  # else it is a copy of the queries', and a mix-up would not show
                value += 0.05 * torch.randn(value.shape, generator=draw)
    save_snapshot(made, path)
    return path


def encoder(path: Path, *, wide: bool = True, lora: int = 0) -> Encoder:
    """Load it, ready to train; `wide` makes it float64, `lora` is the rank of adapters."""
    made = load_encoder(path)
    add_lora(made, LoraConfig(rank=lora), seed=1)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "lora_B" in name:  # else it is zero, and so is the gradient of the other half
                value += 0.1 * torch.randn(value.shape, generator=draw)
    return (made.double() if wide else made).train()


def part(
    model: Encoder, rank: int, world_size: int, *, turn: int = 0, of: int = 1, tokens_per_chunk: int = 24
) -> StepBatch:
    """Return one rank's part, in chunks whose number differs between ranks.

    Args:
        model: its tokenizer is used.
        rank: whose part.
        world_size: of how many.
        turn: which of the parts into which accumulation cuts the batch.
        of: how many those are.
        tokens_per_chunk: the budget.
    """
    share = GLOBAL_BATCH // (world_size * of)
    first = (turn * world_size + rank) * share
    mine = rows()[first : first + share]
    # A query's negatives stand between its positives and the next query's.
    passages: list[tuple[int, str, bool, float]] = []
    for owner, row in enumerate(mine):
        passages += [(owner, text, True, weight) for text, weight in zip(row.positives, row.weights, strict=True)]
        passages += [(owner, text, False, 0.0) for text in row.negatives]
    known = [[text_hash(text) for text in (*row.positives, *row.known)] for row in mine]
    most = max(map(len, known))
    labels = Labels(
        query_hash_b=torch.tensor([text_hash(row.query) for row in mine]),
        positive_hash_bK=torch.tensor([(row + row[:1] * most)[:most] for row in known]),
        passage_hash_n=torch.tensor([text_hash(text) for _, text, _, _ in passages]),
        owner_n=torch.tensor([owner for owner, _, _, _ in passages]),
        positive_n=torch.tensor([positive for _, _, positive, _ in passages]),
        weight_n=torch.tensor([weight for *_, weight in passages], dtype=torch.float64),
    )

    def texts(found: list[str], side: Side) -> Texts:
        places = {text: place for place, text in enumerate(dict.fromkeys(found))}
        ids = model.tokenize(list(places), side)
        return Texts(
            chunks=pad_chunks(ids, pad_id=0, tokens_per_chunk=tokens_per_chunk),
            places=torch.tensor([places[text] for text in found]),
        )

    queries = texts([row.query for row in mine], "query")
    found = texts([text for _, text, _, _ in passages], "passage")
    chunks = [*queries.chunks, *found.chunks]
    return StepBatch(
        step=0,
        queries=queries,
        passages=found,
        labels=labels,
        skipped=0,
        tokens=sum(int(chunk.attention_mask.sum()) for chunk in chunks),
        padded_tokens=sum(chunk.input_ids.numel() for chunk in chunks),
    )


def reference(
    model: Encoder, config: LossConfig, *, base: Encoder | None = None, of: int = 1
) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of the global batch, text by text, with none of the code under test.

    Only the encoder's own forward pass is shared: one text at a time, no padding, no chunks, no masks as tensors.

    Args:
        model: float64, without dropout.
        config: of its options, temperature, symmetric, Matryoshka and the base model's weight are known here.
        base: where the config names a weight for it.
        of: parts into which accumulation cuts the batch.

    Returns:
        The gradients of the parameters by name, and of the logarithm of 1 / temperature as `log_scale`.
    """
    model.zero_grad()
    log_scale = torch.tensor(1 / config.temperature, dtype=torch.float64).log().requires_grad_()
    share = GLOBAL_BATCH // of
    parts = [rows()[turn * share : (turn + 1) * share] for turn in range(of)]
    loss = sum(_loss(model, part, config, log_scale.exp(), base) for part in parts) / of
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert log_scale.grad is not None
    return float(loss.detach()), {**gradients, "log_scale": log_scale.grad}


def _loss(model: Encoder, batch: list[Row], config: LossConfig, scale: Tensor, base: Encoder | None) -> Tensor:
    """Return the weighted mean over all pairs of a query and a positive."""

    def encode(encoder: Encoder, text: str, side: Side) -> Tensor:
        ids = torch.tensor(encoder.tokenize([text], side))
        vector: Tensor = encoder(ids, torch.ones_like(ids), side)[0]
        return vector

    found = [(k, text, w) for k, row in enumerate(batch) for text, w in zip(row.positives, row.weights, strict=True)]
    mined = [(k, text, 0.0) for k, row in enumerate(batch) for text in row.negatives]
    queries = [encode(model, row.query, "query") for row in batch]
    passages = [encode(model, text, "passage") for _, text, _ in (*found, *mined)]
    sizes = {queries[0].numel(): 1.0} | dict.fromkeys(config.matryoshka_dims, 1.0)
    total = torch.zeros((), dtype=torch.float64)
    for size in sizes:
        q, p = ([vector[:size] / vector[:size].norm() for vector in side] for side in (queries, passages))
        for place, (owner, _, weight) in enumerate(found):
            total = total + weight * _pair_loss(
                batch, [*found, *mined], len(found), owner, place, q, p, scale, config
            )
    if base is not None:
        far_q = [(v - encode(base, row.query, "query")).square().sum() for row, v in zip(batch, queries, strict=True)]
        every = zip([*found, *mined], passages, strict=True)
        far_p = [(v - encode(base, text, "passage")).square().sum() for (_, text, _), v in every]
        for owner, _, weight in found:
            own = [far for (other, _, _), far in zip([*found, *mined], far_p, strict=True) if other == owner]
            total = total + config.base_weight * weight * (far_q[owner] + torch.stack(own).mean()) / 2
    return total / sum(weight for _, _, weight in found)


def _pair_loss(
    batch: list[Row],
    texts: list[tuple[int, str, float]],
    positives: int,
    owner: int,
    place: int,
    q: list[Tensor],
    p: list[Tensor],
    scale: Tensor,
    config: LossConfig,
) -> Tensor:
    """Return the cross entropy of one pair against what is no known positive of its query."""
    row, text = batch[owner], texts[place][1]
    right = scale * (q[owner] @ p[place])
    seen = [right]
    for j, (other, passage, _) in enumerate(texts):
        equal_query = j < positives and batch[other].query == row.query
        if j != place and not equal_query and passage not in (*row.positives, *row.known):
            seen.append(scale * (q[owner] @ p[j]))
    forth = torch.logsumexp(torch.stack(seen), 0) - right
    if not config.symmetric:
        return forth
    back = [right]
    for k, another in enumerate(batch):
        if k != owner and another.query != row.query and text not in (*another.positives, *another.known):
            back.append(scale * (q[k] @ p[place]))
    return (forth + torch.logsumexp(torch.stack(back), 0) - right) / 2
