"""Invariant 2 in one process: with any chunking, the cached step has the gradient of the whole batch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.collate import Chunk, pad_chunks
from data_shards.samples import text_hash
from encoder.model import Encoder, Side
from tests.unit.tiny import TEXTS, tiny_encoder
from train.batches import StepBatch, Texts
from train.grad_cache import train_step
from train.objective import Labels, LossConfig, LossOutput, Objective

CPU = torch.device("cpu")
CONFIG = LossConfig(temperature=0.1)
# One of them twice: it is encoded once.
PASSAGES = [*TEXTS, "a hard negative", "another of them that is longer", TEXTS[1]]
QUERIES = [text[::-1] for text in TEXTS]


@functools.cache
def _base(dropout: float) -> Encoder:
    return tiny_encoder(dropout=dropout).double().train()


def wide_encoder(dropout: float = 0.0) -> Encoder:
    """Return a copy of one encoder: a tokenizer that is trained twice is not always the same."""
    return copy.deepcopy(_base(dropout))


class BareBackend:
    """No engine between the step and the parameters; it notes what it is asked to do."""

    device = CPU
    equal_forwards = False
    equal_backwards = False

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.graphs: list[bool] = []
        self.lasts: list[bool] = []
        self.sides: list[Side] = []
        self.vectors: list[Tensor] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, side: Side) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        self.sides.append(side)
        self.vectors.append(self.encoder(input_ids, attention_mask, side))
        return self.vectors[-1]

    @contextlib.contextmanager
    def sync(self, *, last: bool) -> Iterator[None]:
        self.lasts.append(last)
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def make_texts(encoder: Encoder, found: list[str], side: Side, tokens_per_chunk: int) -> Texts:
    places = {text: place for place, text in enumerate(dict.fromkeys(found))}
    chunks = pad_chunks(encoder.tokenize(list(places), side), pad_id=0, tokens_per_chunk=tokens_per_chunk)
    return Texts(chunks=chunks, places=torch.tensor([places[text] for text in found]))


def make_batch(encoder: Encoder, tokens_per_chunk: int, *, step: int = 3, first: int = 0) -> StepBatch:
    """Return a batch of uneven lengths and weights, with three hard negatives, one of them another's positive."""
    queries, passages = QUERIES[first:], PASSAGES[first:]
    count = len(queries)
    labels = Labels(
        query_hash_b=torch.tensor([text_hash(text) for text in queries]),
        positive_hash_bK=torch.tensor([[text_hash(text)] for text in TEXTS[first:]]),
        passage_hash_n=torch.tensor([text_hash(text) for text in passages]),
        owner_n=torch.tensor([*range(count), 0, 1, 2]),
        positive_n=torch.tensor([True] * count + [False] * 3),
        weight_n=torch.arange(1.0, 1 + count + 3, dtype=torch.float64),
    )
    return StepBatch(
        step=step,
        queries=make_texts(encoder, queries, "query", tokens_per_chunk),
        passages=make_texts(encoder, passages, "passage", tokens_per_chunk),
        labels=labels,
        skipped=0,
        tokens=0,
        padded_tokens=0,
    )


def chunks_of(batch: StepBatch) -> int:
    return len(batch.queries.chunks) + len(batch.passages.chunks)


def step(
    encoder: Encoder, batches: list[StepBatch], *, cached: bool, seed: int = 5, **options: Any
) -> tuple[list[LossOutput], dict[str, Tensor], BareBackend]:
    """Take one step; return its outputs, the gradients and the backend."""
    backend = BareBackend(encoder)
    objective = Objective(options.pop("config", CONFIG), device=CPU)
    outputs = train_step(backend, batches, objective, seed=seed, keep_graphs=not cached, **options)
    return outputs, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}, backend


def direct(encoder: Encoder, batches: list[StepBatch], texts: list[tuple[list[str], list[str]]]) -> LossOutput:
    """Encode each text of each place alone, in the batch's order: no chunk, no padding, no cache, no sharing."""

    def encode(text: str, side: Side) -> Tensor:
        ids = torch.tensor(encoder.tokenize([text], side))
        vectors: Tensor = encoder(ids, torch.ones_like(ids), side)
        return vectors

    for batch, (queries, passages) in zip(batches, texts, strict=True):
        query_bD = torch.cat([encode(text, "query") for text in queries])
        passage_nD = torch.cat([encode(text, "passage") for text in passages])
        output = Objective(CONFIG, device=CPU)(query_bD, passage_nD, batch.labels)
        grads = [output.query_grad_bD / len(batches), output.passage_grad_nD / len(batches)]
        torch.autograd.backward([query_bD, passage_nD], grads)
    return output


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Compare relative to the largest gradient: float64 leaves 1e-16 of it, so 1e-10 hides no mistake."""
    assert one.keys() == other.keys()
    assert len(one) > 20
    scale = max(gradient.abs().max() for gradient in one.values())
    assert scale > 1e-3
    for name, gradient in one.items():
        assert (gradient - other[name]).abs().max() <= 1e-10 * scale, name


def gradients_of(encoder: Encoder) -> dict[str, Tensor]:
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "plain"])
@pytest.mark.parametrize("tokens_per_chunk", [1, 20, 33, 1000])
def test_gradients_are_exact_for_any_chunking(cached: bool, tokens_per_chunk: int) -> None:
    """Against single texts, each encoded alone."""
    reference, encoder = wide_encoder(), wide_encoder()
    wanted = direct(reference, [make_batch(reference, 1000)], [(QUERIES, PASSAGES)])
    (output,), found, _ = step(encoder, [make_batch(encoder, tokens_per_chunk)], cached=cached)
    assert output.loss.item() == pytest.approx(wanted.loss.item(), abs=1e-12)
    assert_equal(gradients_of(reference), found)
    assert {name: value.item() for name, value in output.sums.items()} == pytest.approx(
        {name: value.item() for name, value in wanted.sums.items()}, abs=1e-10
    )


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "plain"])
def test_parts_of_a_step_are_averaged(cached: bool) -> None:
    """Accumulation: each part is contrasted within itself."""
    reference, encoder = wide_encoder(), wide_encoder()
    whole = [make_batch(reference, 1000), make_batch(reference, 1000, first=2)]
    direct(reference, whole, [(QUERIES, PASSAGES), (QUERIES[2:], PASSAGES[2:])])
    parts = [make_batch(encoder, 20), make_batch(encoder, 33, first=2)]
    outputs, found, backend = step(encoder, parts, cached=cached)
    assert_equal(gradients_of(reference), found)
    assert [len(output.query_grad_bD) for output in outputs] == [6, 4]
    assert backend.lasts == [False] * (len(backend.lasts) - 1) + [True]


def test_both_ways_are_equal_bit_by_bit_with_dropout() -> None:
    """The second pass must draw what the first drew; several chunks, so that a shared seed would not do."""
    for tokens_per_chunk in (20, 33):
        results = []
        for cached in (True, False):
            encoder = wide_encoder(0.3)
            (output,), found, _ = step(encoder, [make_batch(encoder, tokens_per_chunk)], cached=cached)
            results.append((output.loss, found))
        assert torch.equal(results[0][0], results[1][0])
        assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())


def test_dropout_differs_between_seeds_steps_parts_and_chunks() -> None:
    encoder = wide_encoder(0.3)
    losses = set()
    for seed, number in ((1, 3), (2, 3), (5, 3), (5, 4)):
        (output,), _, _ = step(encoder, [make_batch(encoder, 20, step=number)], cached=True, seed=seed)
        losses.add(output.loss.item())
    assert len(losses) == 4
    first, second = step(encoder, [make_batch(encoder, 20)] * 2, cached=True)[0]
    assert first.loss != second.loss, "the same batch as two parts of one step draws anew"
    batch = make_batch(encoder, 1000)
    twice = dataclasses.replace(
        batch,
        passages=batch.queries,
        labels=dataclasses.replace(
            batch.labels,
            **{
                name: getattr(batch.labels, name)[: len(QUERIES)]
                for name in ("passage_hash_n", "owner_n", "positive_n", "weight_n")
            },
        ),
    )
    _, _, backend = step(encoder, [twice], cached=False, config=LossConfig(mask_duplicates=False))
    assert backend.sides == ["query", "passage"]
    seen = backend.vectors
    assert (seen[0] - seen[1]).abs().max() > 0.01, "the same texts in two chunks draw different dropout"


def test_equal_texts_are_encoded_once() -> None:
    encoder = wide_encoder()
    batch = make_batch(encoder, 20)
    assert batch.passages.distinct == len(PASSAGES) - 1
    _, _, backend = step(encoder, [batch], cached=False)
    assert sum(len(vectors) for vectors in backend.vectors) == len(QUERIES) + len(PASSAGES) - 1


def test_one_chunk_s_graph_is_held_at_a_time() -> None:
    encoder = wide_encoder()
    batch = make_batch(encoder, 20)
    assert chunks_of(batch) > 5
    _, _, backend = step(encoder, [batch], cached=True)
    assert backend.graphs == [False] * chunks_of(batch) + [True] * chunks_of(batch)
    # The first pass needs no gradient, and reduces none.
    assert backend.lasts == [False] + [False] * (chunks_of(batch) - 1) + [True]
    _, _, plain = step(wide_encoder(), [batch], cached=False)
    assert plain.graphs == [True] * chunks_of(batch)
    assert plain.lasts == [True]


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "plain"])
def test_the_last_pass_reaches_both_towers(cached: bool) -> None:
    """It is the one in which gradients are averaged: a tower that it does not reach would be averaged never."""
    reference, encoder = (_two_towers() for _ in range(2))
    direct(reference, [make_batch(reference, 1000)], [(QUERIES, PASSAGES)])
    _, found, backend = step(encoder, [make_batch(encoder, 20)], cached=cached, two_towers=True)
    assert_equal(gradients_of(reference), found)
    assert backend.lasts[-1] is True
    assert not any(backend.lasts[:-1])
    if cached:
        assert backend.sides[-2:] == ["query", "passage"]
        assert len(backend.lasts) == 1 + len(backend.sides) // 2 - 1, "two chunks go back together"


@functools.cache
def _towers() -> Encoder:
    encoder = tiny_encoder(towers="two").double().train()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name.startswith("passage_"):
                value += 0.1 * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    return encoder


def _two_towers() -> Encoder:
    return copy.deepcopy(_towers())


@pytest.mark.parametrize("two", [False, True], ids=["one tower", "two towers"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "plain"])
@pytest.mark.parametrize("forwards", [True, False], ids=["equal forwards", "equal backwards alone"])
def test_a_rank_with_fewer_chunks_repeats_its_last_with_no_effect(
    monkeypatch: pytest.MonkeyPatch, forwards: bool, cached: bool, two: bool
) -> None:
    """Where every backward is a collective, or every forward too, and another rank has four chunks more a side."""
    made = _two_towers if two else wide_encoder
    encoder = made()
    (wanted_output,), wanted, _ = step(encoder, [make_batch(encoder, 33)], cached=True, two_towers=two)
    monkeypatch.setattr("train.grad_cache.max_over_ranks", lambda value, device: value + 4)
    monkeypatch.setattr(BareBackend, "equal_backwards", True)
    monkeypatch.setattr(BareBackend, "equal_forwards", forwards)
    encoder = made()
    batch = make_batch(encoder, 33)
    (output,), found, backend = step(encoder, [batch], cached=cached, two_towers=two)
    passes = chunks_of(batch) + 8
    assert len(backend.graphs) == passes * (1 + cached), "as many on every rank"
    assert backend.graphs.count(True) == passes
    assert backend.lasts.count(True) == 1
    assert output.loss.item() == pytest.approx(wanted_output.loss.item(), abs=1e-12)
    assert_equal(wanted, found)


def test_the_base_model_s_vectors_stand_at_their_places() -> None:
    """A base that is the encoder itself is at no distance, whatever the chunks and the order of the texts."""
    encoder, reference = wide_encoder(), wide_encoder()
    config = LossConfig(temperature=0.1, base_weight=3.0)

    def base(chunk: Chunk, side: Side) -> Tensor:
        vectors: Tensor = reference(chunk.input_ids, chunk.attention_mask, side)
        return vectors

    (output,), found, _ = step(encoder, [make_batch(encoder, 20)], cached=True, config=config, base=base)
    assert output.sums["base"].item() == pytest.approx(0, abs=1e-20)
    plain = wide_encoder()
    _, wanted, _ = step(plain, [make_batch(plain, 33)], cached=False)
    assert_equal(wanted, found)
