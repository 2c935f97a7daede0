"""The encoder: limits, precision, prompts, and what must not depend on what."""

from __future__ import annotations

import copy
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from data_shards.collate import pad_chunks
from data_shards.errors import UserError
from encoder.model import Encoder, EncoderSettings, ScratchConfig, reinitialised, scratch_encoder
from encoder.snapshot import save_snapshot
from tests.unit.tiny import TEXTS, tiny_encoder


def encode(encoder: Encoder, texts: list[str]) -> torch.Tensor:
    """Encode in one padded batch."""
    (chunk,) = pad_chunks(encoder.tokenize(texts, "passage"), pad_id=0, tokens_per_chunk=10_000)
    return encoder(chunk.input_ids, chunk.attention_mask)[chunk.rows.argsort()]


def test_vectors_have_length_one_unless_the_settings_say_no(encoder: Encoder) -> None:
    vectors = encode(encoder, TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dim)
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * len(TEXTS), abs=1e-6)
    bare = Encoder(encoder.backbone, encoder.tokenizer, EncoderSettings(max_tokens=16, normalize=False))
    lengths = encode(bare, TEXTS).norm(dim=1)
    assert (lengths - 1).abs().min() > 0.1
    assert torch.allclose(encode(bare, TEXTS) / lengths[:, None], vectors, atol=1e-6)


def test_padding_does_not_change_a_vector(encoder: Encoder) -> None:
    alone = torch.cat([encode(encoder, [text]) for text in TEXTS])
    assert torch.allclose(alone, encode(encoder, TEXTS), atol=1e-6)


def test_float64_stays_float64(encoder: Encoder) -> None:
    narrow, wide = encode(encoder, TEXTS), encode(copy.deepcopy(encoder).double(), TEXTS)
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert torch.allclose(narrow.double(), wide, atol=1e-5)
    assert not torch.equal(wide, wide.float().double())


def test_texts_are_cut_to_max_tokens_and_shorter_where_asked(encoder: Encoder) -> None:
    assert [len(ids) for ids in encoder.tokenize(TEXTS[-1:] * 2, "query", 5)] == [5, 5]
    assert [len(ids) for ids in encoder.tokenize(TEXTS[-1:], "query")] == [16]
    assert [len(ids) for ids in encoder.tokenize(TEXTS[-1:], "query", 99)] == [16]


def test_prompts_stand_before_their_side_alone() -> None:
    encoder = tiny_encoder(query_prompt="sort ", passage_prompt="file ")
    bare = Encoder(encoder.backbone, encoder.tokenizer, EncoderSettings(max_tokens=16))
    assert encoder.tokenize(["a list"], "query") == bare.tokenize(["sort a list"], "query")
    assert encoder.tokenize(["a list"], "passage") == bare.tokenize(["file a list"], "passage")


def test_two_threads_that_cut_at_different_lengths_do_not_mix_them_up(encoder: Encoder) -> None:
    """A tokenizer keeps the length of its last call: without a lock this fails within a few rounds."""
    texts, wrong, ready = TEXTS[-1:] * 20, [], threading.Barrier(2)

    def tokenize(wanted: int) -> None:
        ready.wait()
        for _ in range(100):
            wrong.extend(ids for ids in encoder.tokenize(texts, "query", wanted) if len(ids) != wanted)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=tokenize, args=[wanted]) for wanted in (5, 16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_snapshot_written_while_texts_are_tokenised_changes_none_of_them(encoder: Encoder, tmp_path: Path) -> None:
    """The one is written without truncation, the other wants it: a refresh meets the batches that are read ahead."""
    texts, wrong, over = TEXTS[-1:] * 20, [], threading.Event()

    def tokenize() -> None:
        while not over.is_set():
            wrong.extend(ids for ids in encoder.tokenize(texts, "query", 5) if len(ids) != 5)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    reader = threading.Thread(target=tokenize)
    reader.start()
    try:
        hashes = {save_snapshot(encoder, tmp_path / str(number)) for number in range(20)}
    finally:
        over.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert (wrong, len(hashes)) == ([], 1)


def test_more_tokens_than_the_backbone_has_places_for_are_refused(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="encoder max_tokens 129 is more than this backbone's 128; lower it"):
        Encoder(encoder.backbone, encoder.tokenizer, EncoderSettings(max_tokens=129))


def test_roberta_counts_its_places_from_behind_the_padding(encoder: Encoder) -> None:
    roberta = RobertaModel(
        RobertaConfig(
            vocab_size=200,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=34,
        )
    )
    with pytest.raises(UserError, match="33 is more than this backbone's 32"):
        Encoder(roberta, encoder.tokenizer, EncoderSettings(max_tokens=33))
    longest = Encoder(roberta, encoder.tokenizer, EncoderSettings(max_tokens=32))
    ids = torch.full((1, 32), 5)
    assert longest(ids, torch.ones_like(ids)).isfinite().all()


def test_no_parameter_is_unused(encoder: Encoder) -> None:
    """DDP fails on a parameter without a gradient: a pooler, for one."""
    encode(encoder.train(), TEXTS).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_the_weights_follow_from_the_seed_alone(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is held: trained twice, it is not always the same."""
    monkeypatch.setattr("encoder.model.train_wordpiece", lambda *_, **__: encoder.tokenizer)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (tiny_encoder(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(
        one["backbone.embeddings.word_embeddings.weight"], other["backbone.embeddings.word_embeddings.weight"]
    )


def test_the_untrained_baseline_is_the_same_encoder_with_other_weights(encoder: Encoder) -> None:
    fresh, again = (reinitialised(encoder, seed=5) for _ in range(2))
    assert not fresh.training
    assert fresh.settings == encoder.settings
    assert {name: value.shape for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in encoder.state_dict().items()
    }
    assert torch.equal(encode(fresh, TEXTS), encode(again, TEXTS))
    assert (encode(fresh, TEXTS) - encode(encoder, TEXTS)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10, "heads": 3}, "encoder width 10 does not divide over 3 heads"),
        ({"heads": 0}, r"scratch\.heads must be at least 1, came 0"),
        ({"layers": 0}, r"scratch\.layers must be at least 1, came 0"),
        ({"vocab_size": 5}, r"scratch\.vocab_size must be at least 100, came 5"),
        ({"dropout": 1.0}, r"scratch\.dropout must be at least 0 and below 1, came 1\.0"),
    ],
)
def test_sizes_that_make_no_encoder_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScratchConfig(**settings)


def test_a_length_without_room_for_a_word_is_refused() -> None:
    with pytest.raises(UserError, match="encoder max_tokens must be at least 3, came 2"):
        EncoderSettings(max_tokens=2)


def test_long_inputs_get_a_table_of_their_own_length() -> None:
    settings = EncoderSettings(max_tokens=200)
    scratch = ScratchConfig(layers=1, width=8, heads=2, vocab_size=100)
    encoder = scratch_encoder(scratch, settings, TEXTS, seed=0)
    assert encode(encoder, ["x " * 500]).shape == (1, 8)
    assert len(encoder.tokenize(["x " * 500], "query")[0]) == 200
