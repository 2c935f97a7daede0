"""Packed tokens give what padded rows give: values and gradients, for every backbone that can, and only for those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from data_shards.errors import UserError
from encoder import attention, packed
from encoder.embed import embed_texts
from encoder.model import Encoder, EncoderSettings, reinitialised, with_settings
from encoder.packed import PACKED
from encoder.pooling import Pooling
from encoder.snapshot import load_encoder, save_snapshot, snapshot_hash
from tests.unit.tiny import TEXTS, tiny_encoder
from tests.unit.tiny_backbones import ALL, DECODERS, padded, tiny_kind

PACKABLE = [kind for kind in ALL if kind != "mpnet"]


def run(encoder: Encoder, *, left: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Return vectors, and gradients of a sum in which each counts differently."""
    encoder.zero_grad()
    vector_BD = encoder(*padded(encoder, TEXTS, left=left))
    weight_BD = torch.linspace(-1, 1, vector_BD.numel(), dtype=vector_BD.dtype).view_as(vector_BD)
    (vector_BD * weight_BD).sum().backward()
    return vector_BD.detach(), {name: value.grad.clone() for name, value in encoder.named_parameters()}


def check_equal(encoder: Encoder, *, left: bool = False) -> None:
    encoder.set_attention("eager")
    wanted, wanted_gradients = run(encoder)
    encoder.set_attention("packed")
    found, gradients = run(encoder, left=left)
    assert torch.allclose(found, wanted, atol=1e-6)
    # To the largest of all: some, like those of key biases, are zero but for rounding.
    largest = max(float(value.abs().max()) for value in wanted_gradients.values())
    for name, value in wanted_gradients.items():
        assert float((gradients[name] - value).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_packed_tokens_give_the_vectors_and_gradients_of_padded_rows(kind: str, left: bool, tmp_path: Path) -> None:
    check_equal(tiny_kind(tmp_path, kind), left=left)


def test_positions_behind_another_padding_id_are_counted_from_there(tmp_path: Path) -> None:
    """As the published XLM-R has it: its first token stands at 2."""
    check_equal(tiny_kind(tmp_path, "xlm-roberta", pad_token_id=1))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted_mean"])
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_every_pooling_finds_its_tokens(kind: str, pooling: Pooling, tmp_path: Path) -> None:
    plain = tiny_kind(tmp_path, kind)
    check_equal(with_settings(plain, EncoderSettings(max_tokens=16, pooling=pooling)))


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_bidirectional_decoder_packs_too(kind: str, tmp_path: Path) -> None:
    plain = tiny_kind(tmp_path, kind)
    check_equal(with_settings(plain, EncoderSettings(max_tokens=16, pooling="mean", bidirectional=True)))


def test_the_texts_of_a_row_do_not_see_each_other(tmp_path: Path) -> None:
    """A kernel that ignored the borders would still give vectors."""
    encoder = tiny_kind(tmp_path, "bert")
    encoder.set_attention("packed")
    alone = torch.cat([encoder(*padded(encoder, [text])) for text in TEXTS])
    assert torch.allclose(encoder(*padded(encoder, TEXTS)), alone, atol=1e-6)
    others = encoder(*padded(encoder, [*TEXTS[:3], *["sort sort sort"] * 3]))
    assert torch.allclose(others[:3], alone[:3], atol=1e-6)


def test_no_padding_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_kind(tmp_path, "bert")
    encoder.set_attention("packed")
    shapes: list[tuple[int, ...]] = []
    encoder.backbone.encoder.layer[0].register_forward_hook(lambda *call: shapes.append(tuple(call[1][0].shape)))
    encoder(*padded(encoder, TEXTS))
    assert shapes == [(1, sum(map(len, encoder.tokenize(TEXTS, "query"))), 32)]


def test_attention_dropout_is_kept() -> None:
    encoder = tiny_encoder()
    for layer in encoder.backbone.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    encoder.train().set_attention("packed")
    batch = padded(encoder, TEXTS)
    assert (encoder(*batch) - encoder(*batch)).abs().max() > 1e-3
    assert torch.equal(encoder.eval()(*batch), encoder(*batch))


def test_both_towers_pack_and_unpack() -> None:
    encoder = tiny_encoder(towers="two", projection_dim=6)
    wanted = [embed_texts(encoder, TEXTS, side=side) for side in ("query", "passage")]
    for kind in ("packed", "sdpa", "packed", "auto"):
        encoder.set_attention(kind)
        names = {backbone.config._attn_implementation for backbone in encoder.backbones}
        assert names == {{"packed": PACKED, "auto": "eager"}.get(kind, kind)}
        for side, vectors in zip(("query", "passage"), wanted, strict=True):
            assert np.abs(embed_texts(encoder, TEXTS, side=side) - vectors).max() < 1e-6


def test_a_snapshot_knows_nothing_of_attention(snapshot: Path, tmp_path: Path) -> None:
    encoder = load_encoder(snapshot)
    encoder.set_attention("packed")
    assert save_snapshot(encoder, tmp_path / "a") == snapshot_hash(snapshot)
    fresh = reinitialised(encoder, seed=1)
    wanted = reinitialised(load_encoder(snapshot), seed=1)
    found = [embed_texts(one, TEXTS, side="query") for one in (fresh, wanted)]
    assert np.abs(found[0] - found[1]).max() < 1e-6


def test_a_packed_backbone_called_without_its_encoder_says_so(encoder: Encoder) -> None:
    encoder.set_attention("packed")
    with pytest.raises(ValueError, match="this backbone runs on packed tokens: call it through its Encoder"):
        encoder.backbone(input_ids=torch.tensor([[2, 5, 3]]))


@pytest.mark.parametrize(
    ("kind", "attention_kind", "message"),
    [
        ("mpnet", "packed", "mpnet cannot run on packed tokens: its attention is its own; use attention auto"),
        ("mpnet", "sdpa", "mpnet has no sdpa attention; use auto or eager"),
    ],
)
def test_attention_that_a_backbone_lacks_is_refused(
    kind: str, attention_kind: Any, message: str, tmp_path: Path
) -> None:
    encoder = tiny_kind(tmp_path, kind)
    with pytest.raises(UserError, match=message):
        encoder.set_attention(attention_kind)
    encoder.set_attention("auto")
    assert np.isfinite(embed_texts(encoder, TEXTS, side="query")).all()


def test_auto_goes_by_the_device_that_training_will_run_on(tmp_path: Path) -> None:
    """Its weights are still on the host then; MPNet has the plain products alone, and is not refused on a GPU."""
    gpu = torch.device("cuda")
    for kind, wanted in (("bert", "sdpa"), ("mpnet", "eager")):
        encoder = tiny_kind(tmp_path / kind, kind)
        encoder.set_attention("auto", gpu)
        assert encoder.backbone.config._attn_implementation == wanted
        encoder.set_attention("auto")
        assert encoder.backbone.config._attn_implementation == "eager"


def test_a_bidirectional_sliding_window_is_refused(tmp_path: Path) -> None:
    """Transformers draws it one token wider for padded rows than for packed ones."""
    encoder = tiny_kind(tmp_path, "mistral")
    encoder = with_settings(encoder, EncoderSettings(max_tokens=16, bidirectional=True))
    with pytest.raises(UserError, match="a bidirectional mistral with a sliding window cannot run on packed tokens"):
        encoder.set_attention("packed")


def test_a_gpu_without_a_kernel_is_refused(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr(attention, "_has_varlen_kernel", lambda: False)
    with pytest.raises(
        UserError, match="packed attention on a GPU needs flash-attn or torch 2.11; use attention auto"
    ):
        attention._check_packable(encoder.backbone, torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_itself(dtype: torch.dtype) -> None:
    """On a GPU this decides whether the flash kernel may run."""
    assert packed._half(torch.ones(1, dtype=dtype)) == dtype
    assert packed._half(torch.ones(1)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", PACKABLE)
def test_the_kernel_gives_what_the_plain_products_give(kind: str, tmp_path: Path) -> None:
    """In bfloat16, whose rounding alone moves a vector by as much as the tolerance."""
    encoder = tiny_kind(tmp_path, kind).cuda()
    batch = [part.cuda() for part in padded(encoder, TEXTS)]
    found = {}
    for kernel in ("eager", "packed"):
        encoder.set_attention(kernel)
        encoder.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            vector_BD = encoder(*batch)
        vector_BD[:, : encoder.dim // 2].sum().backward()
        gradient = torch.cat([value.grad.flatten() for value in encoder.parameters()])
        found[kernel] = vector_BD.detach(), gradient
    for wanted, given in zip(*found.values(), strict=True):
        assert torch.nn.functional.cosine_similarity(given.flatten(), wanted.flatten(), dim=0) > 0.999


def test_transformers_knows_the_attention_by_its_name() -> None:
    assert AttentionInterface()[PACKED] is packed.packed_attention
    assert set(DECODERS) < set(PACKABLE)
