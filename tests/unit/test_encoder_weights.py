"""Weights from elsewhere in a snapshot, and activations that are computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_shards.errors import UserError
from encoder.embed import embed_texts
from encoder.lora import LoraConfig, add_lora
from encoder.model import Encoder
from encoder.snapshot import load_encoder, save_snapshot, snapshot_hash
from tests.unit.tiny import TEXTS, tiny_encoder
from tests.unit.tiny_backbones import ALL, padded, tiny_kind


def clone(encoder: Encoder) -> dict[str, Tensor]:
    """Return weights that share no memory with the encoder."""
    return {name: value.clone() for name, value in encoder.state_dict().items()}


@pytest.mark.parametrize("settings", [{}, {"projection_dim": 6}, {"towers": "two", "projection_dim": 6}])
def test_given_weights_are_written_and_the_encoder_s_own_are_not_read(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    encoder = tiny_encoder(**settings)
    weights = {name: value + 0.25 for name, value in clone(encoder).items()}
    with torch.no_grad():
        for value in encoder.parameters():
            value += 0.25
    digest = save_snapshot(encoder, tmp_path / "own")
    assert save_snapshot(encoder.to("meta"), tmp_path / "given", weights=weights) == digest
    for name, value in load_encoder(tmp_path / "given").state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_empty_parameters_of_an_engine_do_no_harm(snapshot: Path, tmp_path: Path) -> None:
    """As ZeRO-3 leaves them between steps: of no size at all."""
    encoder = load_encoder(snapshot)
    weights = clone(encoder)
    for value in encoder.parameters():
        value.data = torch.empty(0)
    assert save_snapshot(encoder, tmp_path / "a", weights=weights) == snapshot_hash(snapshot)


def test_given_adapters_are_merged(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    add_lora(encoder, LoraConfig(rank=2))
    with torch.no_grad():
        for value in encoder.parameters():
            value += 0.1 * value.requires_grad
    digest, weights = save_snapshot(encoder, tmp_path / "own"), clone(encoder)
    assert save_snapshot(encoder.to("meta"), tmp_path / "given", weights=weights) == digest


def test_the_config_names_the_precision_of_the_weights(snapshot: Path, tmp_path: Path) -> None:
    """Whoever loads the snapshot computes in what config.json says."""
    encoder = load_encoder(snapshot)
    weights = {name: value.bfloat16() for name, value in clone(encoder).items()}
    save_snapshot(encoder, tmp_path / "narrow", weights=weights)
    save_snapshot(encoder.bfloat16(), tmp_path / "wide", weights=clone(load_encoder(snapshot)))
    for name, dtype in {"narrow": "bfloat16", "wide": "float32"}.items():
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == dtype
        assert {str(value.dtype) for value in load_file(tmp_path / name / "model.safetensors").values()} == {
            f"torch.{dtype}"
        }
    assert snapshot_hash(tmp_path / "wide") == snapshot_hash(snapshot)


def test_weights_with_a_gap_are_not_written(encoder: Encoder, tmp_path: Path) -> None:
    weights = clone(encoder)
    del weights["backbone.encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"weights lack backbone.encoder.layer.1.output.dense.bias and 0 more"):
        save_snapshot(encoder, tmp_path / "a", weights=weights)
    assert list(tmp_path.iterdir()) == []


CHECKPOINTED = [kind for kind in ALL if kind != "mpnet"]


def run(encoder: Encoder) -> tuple[Tensor, dict[str, Tensor]]:
    """Return vectors and gradients with the same dropout each time."""
    encoder.zero_grad()
    torch.manual_seed(0)
    vector_BD = encoder(*padded(encoder, TEXTS))
    vector_BD[:, ::2].sum().backward()
    gradients = {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}
    return vector_BD.detach(), gradients


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", CHECKPOINTED)
def test_gradient_checkpointing_changes_nothing(kind: str, packed: bool, tmp_path: Path) -> None:
    encoder = tiny_kind(tmp_path, kind).train()
    drops = [module for module in encoder.modules() if isinstance(module, torch.nn.Dropout)]
    for module in drops:
        module.p = 0.3
    if packed:
        encoder.set_attention("packed")
    wanted, gradients = run(encoder)
    encoder.set_gradient_checkpointing()
    found, again = run(encoder)
    assert torch.equal(found, wanted)
    assert gradients.keys() == again.keys()
    for name, value in gradients.items():
        assert torch.allclose(again[name], value, atol=1e-6), name
    # A dev evaluation in between must not stumble over what checkpointing asks of the inputs.
    assert embed_texts(encoder, TEXTS, side="query").shape == (len(TEXTS), encoder.dim)
    encoder.set_gradient_checkpointing(False)
    assert not is_on(encoder)


def is_on(encoder: Encoder) -> bool:
    return all(
        any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())
        for backbone in encoder.backbones
    )


def test_gradient_checkpointing_is_of_the_kind_that_engines_can_use() -> None:
    """The older, re-entrant kind knows only `backward` over all parameters, and refuses to say so kindly."""
    encoder = tiny_encoder().train()
    encoder.set_gradient_checkpointing()
    weight = encoder.backbone.encoder.layer[0].output.dense.weight
    (gradient,) = torch.autograd.grad(encoder(*padded(encoder, TEXTS))[:, ::2].sum(), [weight])
    assert gradient.abs().max() > 0


def test_gradient_checkpointing_keeps_less(tmp_path: Path) -> None:
    """Else the switch could do nothing and pass the test above."""
    encoder = tiny_kind(tmp_path, "bert", num_hidden_layers=4).train()

    def kept() -> int:
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value: sizes.setdefault(value.data_ptr(), value.numel()) and value, lambda value: value
        ):
            encoder(*padded(encoder, TEXTS))
        return sum(sizes.values())

    without = kept()
    encoder.set_gradient_checkpointing()
    assert kept() < 0.7 * without


def test_gradient_checkpointing_reaches_adapters_and_both_towers() -> None:
    encoder = tiny_encoder(towers="two", dropout=0.3)
    add_lora(encoder, LoraConfig(rank=2, dropout=0.3))
    encoder.train()
    wanted, gradients = run(encoder)
    encoder.set_gradient_checkpointing()
    assert is_on(encoder)
    found, again = run(encoder)
    assert torch.equal(found, wanted)
    assert gradients.keys() == again.keys()
    assert all(torch.allclose(again[name], value, atol=1e-6) for name, value in gradients.items())
    assert any("lora_" in name for name in gradients)


def test_a_backbone_without_the_switch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers has no gradient checkpointing for mpnet; switch it off"):
        tiny_kind(tmp_path, "mpnet").set_gradient_checkpointing()
