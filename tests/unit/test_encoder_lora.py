"""Adapters: they start at nothing, train alone, and are gone from a snapshot without changing a vector."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import GPT2Config, GPT2Model

from data_shards.errors import UserError
from encoder.embed import embed_texts
from encoder.lora import LoraConfig, add_lora, merged
from encoder.model import Encoder
from encoder.snapshot import load_encoder, save_snapshot
from tests.unit.tiny import TEXTS, tiny_encoder
from tests.unit.tiny_backbones import ALL, padded, tiny_kind


def train_adapters(encoder: Encoder) -> None:
    """Move what is trained, as an optimiser would."""
    with torch.no_grad():
        for value in encoder.parameters():
            if value.requires_grad:
                value += 0.2 * torch.randn_like(value)


def vectors(encoder: Encoder, side: Any = "query") -> np.ndarray:
    return embed_texts(encoder, TEXTS, side=side)


def test_adapters_start_at_nothing_and_train_alone() -> None:
    encoder = tiny_encoder(projection_dim=6)
    before = vectors(encoder)
    add_lora(encoder, LoraConfig(rank=2))
    assert np.array_equal(vectors(encoder), before)
    trained = [name for name, value in encoder.named_parameters() if value.requires_grad]
    assert all("lora_" in name or name.startswith("projection.") for name in trained)
    # Six linear layers in each of two BERT layers, two halves each, and the projection.
    assert len(trained) == 2 * 6 * 2 + 1
    encoder.train()(*padded(encoder, TEXTS)).sum().backward()
    assert [n for n, value in encoder.named_parameters() if (value.grad is not None) != value.requires_grad] == []


def test_targets_choose_the_layers() -> None:
    encoder = tiny_encoder()
    add_lora(encoder, LoraConfig(rank=2, targets=("query", "attention.output.dense")))
    adapted = {name.split(".lora_")[0] for name in encoder.state_dict() if "lora_" in name}
    stems = ("attention.self.query", "attention.output.dense")
    assert adapted == {f"backbone.encoder.layer.{k}.{stem}" for k in (0, 1) for stem in stems}


def test_the_random_half_follows_from_the_seed() -> None:
    encoders = [tiny_encoder() for _ in range(3)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    for encoder, seed in zip(encoders, (3, 3, 4), strict=True):
        add_lora(encoder, LoraConfig(rank=2), seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "backbone.encoder.layer.0.attention.self.query.lora_A.default.weight"
    one, same, other = (encoder.state_dict()[name] for encoder in encoders)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_merge_by_hand() -> None:
    """W + alpha / rank · B · A, and plain names."""
    config = LoraConfig(rank=2, alpha=6.0)
    base, down, up, bias = torch.ones(2, 3), torch.tensor([[1.0, 0, 2], [0, 1, 0]]), torch.eye(2), torch.zeros(2)
    found = merged(
        {
            "a.query.base_layer.weight": base,
            "a.query.base_layer.bias": bias,
            "a.query.lora_A.default.weight": down,
            "a.query.lora_B.default.weight": up,
            "b.weight": base,
        },
        config,
    )
    assert sorted(found) == ["a.query.bias", "a.query.weight", "b.weight"]
    assert found["a.query.weight"].tolist() == [[4.0, 1.0, 7.0], [1.0, 4.0, 1.0]]
    assert found["b.weight"] is base


def test_a_merge_adds_in_float32_and_keeps_the_precision() -> None:
    """The adapter is a trace more than half a step of bfloat16 at 1: rounded itself, it would round away."""
    weights = {
        "q.base_layer.weight": torch.ones(1, 1, dtype=torch.bfloat16),
        "q.lora_A.default.weight": torch.tensor([[1 + 2.0**-9]]),
        "q.lora_B.default.weight": torch.tensor([[2.0**-8]]),
    }
    (found,) = merged(weights, LoraConfig(rank=1, alpha=1)).values()
    assert found.dtype == torch.bfloat16
    assert found.item() == 1 + 2.0**-7


@pytest.mark.parametrize("kind", ALL)
def test_a_snapshot_is_merged_and_needs_no_peft(kind: str, tmp_path: Path) -> None:
    encoder = tiny_kind(tmp_path / "plain", kind)
    names, before = list(encoder.state_dict()), vectors(encoder)
    add_lora(encoder, LoraConfig(rank=3, alpha=5, dropout=0.3))
    train_adapters(encoder)
    assert np.abs(vectors(encoder) - before).max() > 0.01
    save_snapshot(encoder, tmp_path / "merged")
    found = load_encoder(tmp_path / "merged")
    assert list(found.state_dict()) == names
    assert not [name for name in load_file(tmp_path / "merged/model.safetensors") if "lora" in name or "base" in name]
    peer = SentenceTransformer(str(tmp_path / "merged"), device="cpu", local_files_only=True)
    for given in (vectors(found), peer.encode_query(TEXTS)):
        assert np.abs(given - vectors(encoder)).max() < 1e-5


def test_both_towers_are_adapted_and_merged(tmp_path: Path) -> None:
    encoder = tiny_encoder(towers="two", projection_dim=6)
    add_lora(encoder, LoraConfig(rank=2))
    train_adapters(encoder)
    weights = encoder.state_dict()
    save_snapshot(encoder.to("meta"), tmp_path / "merged", weights=weights)
    found = load_encoder(tmp_path / "merged")
    encoder.to_empty(device="cpu").load_state_dict(weights)
    # Buffers, which no state dict holds, are lost on the way over: only weights can be compared.
    for name, value in merged(weights, encoder.lora).items():
        assert torch.equal(found.state_dict()[name], value), name


def test_rank_0_is_no_adapter() -> None:
    encoder = tiny_encoder()
    add_lora(encoder, LoraConfig())
    assert encoder.lora is None
    assert all(value.requires_grad for value in encoder.parameters())


def test_adapters_are_not_added_twice() -> None:
    encoder = tiny_encoder()
    add_lora(encoder, LoraConfig(rank=1))
    with pytest.raises(ValueError, match="this encoder has adapters already"):
        add_lora(encoder, LoraConfig(rank=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "lora.rank must be at least 0, came -1"),
        ({"alpha": 0.0}, r"lora.alpha must be above 0, came 0\.0"),
        ({"dropout": 1.0}, r"lora.dropout must be at least 0 and below 1, came 1\.0"),
    ],
)
def test_numbers_that_make_no_adapter_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoraConfig(**settings)


@pytest.mark.parametrize("target", ["q_proj", "word_embeddings", "uery"])
def test_targets_that_are_no_linear_layer_are_refused(target: str) -> None:
    with pytest.raises(
        UserError, match=f"lora.targets '{target}' is no linear layer .*it has dense, key, query, value"
    ):
        add_lora(tiny_encoder(), LoraConfig(rank=1, targets=("query", target)))


def test_without_peft_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'lora.rank needs peft: pip install "dipole\[lora\]"'):
        add_lora(tiny_encoder(), LoraConfig(rank=1))


@pytest.mark.parametrize("targets", [("c_attn",), ()])
def test_a_linear_layer_of_another_kind_is_refused(targets: tuple[str, ...]) -> None:
    """GPT-2's are stored the other way round, which a merge from weights alone cannot know."""
    encoder = tiny_encoder()
    encoder.backbone = GPT2Model(GPT2Config(vocab_size=160, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(UserError, match="this backbone has no linear layer to adapt; set it to 0"):
        add_lora(encoder, LoraConfig(rank=1, targets=targets))
