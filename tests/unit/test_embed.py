"""Embedding many texts: in their order, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder import batches
from encoder.embed import embed_texts
from encoder.model import Encoder
from tests.unit.tiny import TEXTS, tiny_encoder

MANY = [f"{text} {number % 3}" for number in range(5) for text in TEXTS]


def one_by_one(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Return the vectors of texts encoded alone: no batch, no padding, no order to get wrong."""
    vectors = []
    for ids in encoder.tokenize(texts, "passage"):
        with torch.no_grad():
            vectors.append(encoder(torch.tensor([ids]), torch.ones((1, len(ids)), dtype=torch.int64))[0].numpy())
    return np.array(vectors)


@pytest.mark.parametrize("tokens_per_batch", [1, 17, 64, 4096])
def test_any_batch_budget_gives_the_vectors_of_single_texts_in_order(encoder: Encoder, tokens_per_batch: int) -> None:
    found = embed_texts(encoder, MANY, side="passage", tokens_per_batch=tokens_per_batch)
    assert found.dtype == np.float32
    assert np.abs(found - one_by_one(encoder, MANY)).max() < 1e-6


def test_order_is_kept_over_windows(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embed_texts(encoder, MANY, side="passage")
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 7)
    assert np.abs(embed_texts(encoder, MANY, side="passage") - whole).max() < 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training: bool) -> None:
    encoder = tiny_encoder(dropout=0.5).train(training)
    first, second = (embed_texts(encoder, TEXTS, side="query") for _ in range(2))
    assert np.array_equal(first, second)
    assert encoder.training is training
    assert all(module.training is training for module in encoder.modules())


def test_the_mode_comes_back_after_an_error() -> None:
    encoder = tiny_encoder().train()
    with pytest.raises(ValueError, match="tokens_per_chunk must be at least 1"):
        embed_texts(encoder, TEXTS, side="query", tokens_per_batch=0)
    assert encoder.training


def test_the_side_chooses_the_prompt() -> None:
    encoder = tiny_encoder(query_prompt="sort ", passage_prompt="file ")
    bare = Encoder(encoder.backbone, encoder.tokenizer, type(encoder.settings)(max_tokens=16))
    queries = embed_texts(encoder, ["a list"], side="query")
    assert np.array_equal(queries, embed_texts(bare, ["sort a list"], side="passage"))
    assert not np.array_equal(queries, embed_texts(encoder, ["a list"], side="passage"))


def test_bfloat16_is_near_float32_and_comes_as_float32(encoder: Encoder) -> None:
    wide, narrow = (embed_texts(encoder, TEXTS, side="query", precision=p) for p in ("float32", "bfloat16"))
    assert narrow.dtype == np.float32
    assert 0 < np.abs(wide - narrow).max() < 0.05


def test_progress_counts_up_to_all_texts(encoder: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    embed_texts(encoder, MANY, side="query", tokens_per_batch=64, progress=lambda *counts: calls.append(counts))
    assert calls[-1] == (len(MANY), len(MANY))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert len(calls) > 3


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert embed_texts(encoder, [], side="query").shape == (0, encoder.dim)
