"""Invariant 2 in one process: with any chunking, the cached step has the gradient of the whole batch."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from data_shards.collate import Chunk, pad_chunks
from data_shards.samples import text_hash
from encoder.model import Encoder
from tests.unit.tiny import TEXTS, tiny_encoder
from train.batches import StepBatch
from train.grad_cache import cached_step, plain_step
from train.loss import Labels, LossConfig, LossOutput, info_nce

Step = Callable[..., LossOutput]
CONFIG = LossConfig(temperature=0.1)
PASSAGES = [*TEXTS, "a hard negative", "another of them that is longer"]


@functools.cache
def _base(dropout: float) -> Encoder:
    return tiny_encoder(dropout=dropout).double().train()


def wide_encoder(dropout: float = 0.0) -> Encoder:
    """Return a copy of one encoder: a tokenizer that is trained twice is not always the same."""
    return copy.deepcopy(_base(dropout))


class BareBackend:
    """No engine between the step and the parameters; it notes what it is asked to do."""

    device = torch.device("cpu")
    equal_backwards = False

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.graphs: list[bool] = []
        self.lasts: list[bool] = []

    def encode(self, chunk: Chunk) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        vectors: Tensor = self.encoder(chunk.input_ids, chunk.attention_mask)
        return vectors

    @contextlib.contextmanager
    def chunk(self, *, last: bool) -> Iterator[None]:
        self.lasts.append(last)
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def make_batch(encoder: Encoder, tokens_per_chunk: int, step: int = 3) -> StepBatch:
    """Return a batch of uneven lengths and weights, with two hard negatives."""
    queries = [text[::-1] for text in TEXTS]
    made = [
        pad_chunks(encoder.tokenize(texts, side), pad_id=0, tokens_per_chunk=tokens_per_chunk)
        for texts, side in ((queries, "query"), (PASSAGES, "passage"))
    ]
    labels = Labels(
        query_hash_b=torch.tensor([text_hash(text) for text in queries]),
        positive_hash_bK=torch.tensor([[text_hash(text)] for text in TEXTS]),
        passage_hash_n=torch.tensor([text_hash(text) for text in PASSAGES]),
        weight_b=torch.arange(1.0, 1 + len(queries)),
    )
    return StepBatch(
        step=step, queries=made[0], passages=made[1], labels=labels, skipped=0, tokens=0, padded_tokens=0
    )


def gradients(
    advance: Step, *, tokens_per_chunk: int, dropout: float = 0.0, seed: int = 5
) -> tuple[LossOutput, dict[str, Tensor]]:
    """Take one step on a fresh float64 encoder; return its output and the gradients."""
    encoder = wide_encoder(dropout)
    batch = make_batch(encoder, tokens_per_chunk)
    output = advance(BareBackend(encoder), batch, CONFIG, seed=seed)
    return output, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Compare relative to the largest gradient: float64 leaves 1e-16 of it, so 1e-10 hides no mistake."""
    assert one.keys() == other.keys()
    assert len(one) > 20
    scale = max(gradient.abs().max() for gradient in one.values())
    assert scale > 1e-3
    for name, gradient in one.items():
        assert (gradient - other[name]).abs().max() <= 1e-10 * scale, name


def direct_step(backend: BareBackend, batch: StepBatch, config: LossConfig, *, seed: int) -> LossOutput:
    """Encode each text alone, in the batch's order, and differentiate: no chunk, no padding, no cache."""

    def encode(chunks: list[Chunk]) -> Tensor:
        found = {}
        for chunk in chunks:
            for row, ids, mask in zip(chunk.rows.tolist(), chunk.input_ids, chunk.attention_mask, strict=True):
                found[row] = backend.encoder(ids[mask == 1][None], torch.ones_like(ids[mask == 1])[None])
        return torch.cat([found[row] for row in sorted(found)])

    output = info_nce(encode(batch.queries), encode(batch.passages), batch.labels, config)
    output.loss.backward()  # type: ignore[no-untyped-call]
    return output


@pytest.mark.parametrize("advance", [cached_step, plain_step])
@pytest.mark.parametrize("tokens_per_chunk", [1, 20, 33, 1000])
def test_gradients_are_exact_for_any_chunking(advance: Step, tokens_per_chunk: int) -> None:
    """Against single texts, each encoded alone."""
    wanted, wanted_gradients = gradients(direct_step, tokens_per_chunk=1000)
    output, found = gradients(advance, tokens_per_chunk=tokens_per_chunk)
    assert output.loss.item() == pytest.approx(wanted.loss.item(), abs=1e-12)
    assert_equal(wanted_gradients, found)
    assert {name: value.item() for name, value in output.sums.items()} == pytest.approx(
        {name: value.item() for name, value in wanted.sums.items()}, abs=1e-10
    )


@pytest.mark.parametrize("tokens_per_chunk", [20, 33])
def test_gradients_are_exact_with_dropout(tokens_per_chunk: int) -> None:
    """The second pass must draw what the first drew; several chunks, so that a shared seed would not do."""
    plain, wanted = gradients(plain_step, tokens_per_chunk=tokens_per_chunk, dropout=0.3)
    cached, found = gradients(cached_step, tokens_per_chunk=tokens_per_chunk, dropout=0.3)
    assert cached.loss.item() == pytest.approx(plain.loss.item(), abs=1e-12)
    assert_equal(wanted, found)


def test_dropout_differs_between_seeds_steps_and_chunks() -> None:
    losses = {gradients(cached_step, tokens_per_chunk=20, dropout=0.3, seed=seed)[0].loss.item() for seed in (1, 2)}
    encoder = wide_encoder(0.3)
    for step in (3, 4):
        losses.add(cached_step(BareBackend(encoder), make_batch(encoder, 20, step), CONFIG, seed=5).loss.item())
    assert len(losses) == 4
    twice = make_batch(encoder, 1000)
    twice = StepBatch(
        step=0,
        queries=twice.queries,
        passages=twice.queries,
        labels=twice.labels,
        skipped=0,
        tokens=0,
        padded_tokens=0,
    )
    backend = BareBackend(encoder)
    seen: list[Tensor] = []
    encode = backend.encode
    backend.encode = lambda chunk: seen.append(encode(chunk)) or seen[-1]  # type: ignore[func-returns-value,method-assign]
    plain_step(backend, twice, LossConfig(mask_duplicates=False), seed=5)
    assert (seen[0] - seen[1]).abs().max() > 0.01, "the same texts in two chunks draw different dropout"


def test_one_chunk_s_graph_is_held_at_a_time() -> None:
    encoder = wide_encoder()
    backend, batch = BareBackend(encoder), make_batch(encoder, 20)
    chunks = len(batch.queries) + len(batch.passages)
    assert chunks > 5
    cached_step(backend, batch, CONFIG, seed=0)
    assert backend.graphs == [False] * chunks + [True] * chunks
    assert backend.lasts == [False] * (chunks - 1) + [True]


def test_a_rank_with_fewer_chunks_repeats_its_last_with_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every backward is a collective, and another rank has four chunks more."""
    _, wanted = gradients(cached_step, tokens_per_chunk=33)
    monkeypatch.setattr("train.grad_cache.max_over_ranks", lambda value, device: value + 4)
    monkeypatch.setattr(BareBackend, "equal_backwards", True)
    encoder = wide_encoder()
    backend, batch = BareBackend(encoder), make_batch(encoder, 33)
    cached_step(backend, batch, CONFIG, seed=5)
    chunks = len(batch.queries) + len(batch.passages)
    assert len(backend.lasts) == chunks + 4
    assert_equal(wanted, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
