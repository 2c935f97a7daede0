"""The head that guesses hidden tokens is the architecture's own, sees the hidden tokens alone, and is tied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from data_shards.errors import UserError
from encoder.masked_lm import MaskedLM, load_head, new_head, save_head
from encoder.model import Encoder, EncoderSettings
from encoder.snapshot import load_encoder
from tests.unit.tiny import tiny_encoder
from tests.unit.tiny_backbones import ENCODERS, tiny_backbone, tiny_tokenizer
from train.adapt_batches import IGNORED

IDS = torch.tensor([[2, 10, 4, 12, 3], [2, 4, 11, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
PLACES, LABELS = torch.tensor([2, 6]), torch.tensor([13, 10])


def with_mask(kind: str, **settings: object) -> Encoder:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return Encoder(tiny_backbone(kind), tokenizer, EncoderSettings(max_tokens=16, **settings)).eval()


def whole_of(encoder: Encoder, head: nn.Module) -> nn.Module:
    """Return transformers' own model with this encoder's weights and this head's."""
    whole = AutoModelForMaskedLM.from_config(encoder.backbone.config).eval()
    base = {f"{whole.base_model_prefix}.{name}": value for name, value in encoder.backbone.state_dict().items()}
    missing, odd = whole.load_state_dict({**head.state_dict(), **base}, strict=False)
    assert not odd
    assert all("pooler" in name for name in missing)
    return whole


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_says_what_transformers_own_model_says(kind: str) -> None:
    """Loss and gradients too, of the backbone's weights and the head's: the tied ones get both of their parts."""
    encoder = with_mask(kind)
    head = new_head(encoder, seed=3)
    model = MaskedLM(encoder, head).eval()
    loss, hits = model(IDS, MASK, PLACES, LABELS)
    loss.backward()

    whole = whole_of(encoder, head)
    logits = whole(input_ids=IDS, attention_mask=MASK).logits.flatten(0, 1)[PLACES]
    wanted = nn.functional.cross_entropy(logits, LABELS, reduction="sum")
    wanted.backward()

    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert float(hits) == float((logits.argmax(-1) == LABELS).sum())
    gradients = {
        name: value.grad for name, value in whole.named_parameters(remove_duplicate=False) if "pooler" not in name
    }
    found = {name: value.grad for name, value in head.named_parameters(remove_duplicate=False)}
    for name, value in encoder.backbone.named_parameters():
        found[f"{whole.base_model_prefix}.{name}"] = value.grad
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_output_embeddings_are_the_input_embeddings(encoder: Encoder) -> None:
    head = new_head(encoder, seed=0)
    assert head.cls.predictions.decoder.weight is encoder.backbone.embeddings.word_embeddings.weight
    assert head.cls.predictions.decoder.bias is head.cls.predictions.bias


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_head_that_was_saved_is_loaded_tied_and_equal(kind: str, tmp_path: Path) -> None:
    encoder = with_mask(kind)
    head = new_head(encoder, seed=3)
    save_head(head, encoder, tmp_path / "head.safetensors")
    again = load_head(encoder, tmp_path / "head.safetensors").eval()
    found, wanted = (MaskedLM(encoder, one).eval()(IDS, MASK, PLACES, LABELS) for one in (again, head))
    assert torch.equal(found[0], wanted[0])
    names = {name for name, _ in MaskedLM(encoder, head).named_parameters()}
    assert {name for name, _ in MaskedLM(encoder, again).named_parameters()} == names, "tied as it was"


def test_the_file_holds_no_copy_of_the_embeddings(encoder: Encoder, tmp_path: Path) -> None:
    save_head(new_head(encoder, seed=0), encoder, tmp_path / "head.safetensors")
    embeddings = encoder.backbone.embeddings.word_embeddings.weight
    assert (tmp_path / "head.safetensors").stat().st_size < embeddings.numel() * embeddings.element_size()


def test_a_head_of_another_encoder_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    save_head(new_head(with_mask("mpnet"), seed=0), with_mask("mpnet"), tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=r"head\.safetensors is no head of this encoder \("):
        load_head(encoder, tmp_path / "head.safetensors")


def test_a_new_head_is_a_function_of_the_seed(encoder: Encoder) -> None:
    dense = [new_head(encoder, seed=seed).cls.predictions.transform.dense.weight for seed in (1, 1, 2)]
    assert torch.equal(dense[0], dense[1])
    assert not torch.equal(dense[0], dense[2])


def test_a_model_that_was_pretrained_with_a_head_keeps_it(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    torch.manual_seed(5)
    whole = AutoModelForMaskedLM.from_config(backbone.config)
    whole.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    head = new_head(encoder, seed=0)
    loss, _ = MaskedLM(encoder, head).eval()(IDS, MASK, PLACES, LABELS)
    logits = whole.eval()(input_ids=IDS, attention_mask=MASK).logits.flatten(0, 1)[PLACES]
    assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(logits, LABELS, reduction="sum")), rel=1e-5)
    assert head.cls.predictions.decoder.weight is encoder.backbone.embeddings.word_embeddings.weight


def test_a_chunk_without_hidden_tokens_gives_zero_and_gradients_of_zero(encoder: Encoder) -> None:
    """A rank whose texts hold nothing to guess still takes part in the collectives of the backward pass."""
    model = MaskedLM(encoder, new_head(encoder, seed=0))
    nothing = torch.tensor([], dtype=torch.int64)
    loss, hits = model(IDS, MASK, nothing, nothing)
    loss.backward()
    assert (float(loss), float(hits)) == (0.0, 0.0)
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


def test_what_only_fills_up_is_not_counted(encoder: Encoder) -> None:
    model = MaskedLM(encoder, new_head(encoder, seed=0)).eval()
    gradients, results = [], []
    for places, labels in (
        (PLACES, LABELS),
        (torch.cat([PLACES, torch.zeros(3, dtype=torch.int64)]), torch.cat([LABELS, torch.full((3,), IGNORED)])),
    ):
        model.zero_grad()
        loss, hits = model(IDS, MASK, places, labels)
        loss.backward()
        results.append((loss.item(), hits.item()))
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    assert results[1] == pytest.approx(results[0], rel=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_the_projection_is_left_alone() -> None:
    encoder = tiny_encoder(projection_dim=6)
    model = MaskedLM(encoder, new_head(encoder, seed=0))
    loss, _ = model(IDS, MASK, PLACES, LABELS)
    loss.backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == ["encoder.projection.weight"]
    assert not encoder.projection.weight.requires_grad


def test_packed_attention_says_the_same(encoder: Encoder) -> None:
    head = new_head(encoder, seed=0)
    padded, _ = MaskedLM(encoder, head).eval()(IDS, MASK, PLACES, LABELS)
    encoder.set_attention("packed")
    packed, _ = MaskedLM(encoder, head).eval()(IDS, MASK, PLACES, LABELS)
    assert float(packed) == pytest.approx(float(padded), rel=1e-5)


def refuse(encoder: Encoder, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        new_head(encoder, seed=0)
    assert "\n" not in str(caught.value)


def test_a_decoder_is_refused() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    tokenizer.pad_token = "[SEP]"
    encoder = Encoder(tiny_backbone("qwen3"), tokenizer, EncoderSettings(max_tokens=16, pooling="last"))
    refuse(encoder, "transformers has no masked-language-model head for qwen3")


def test_two_towers_are_refused() -> None:
    refuse(tiny_encoder(towers="two"), 'this encoder has two; set encoder.towers = "one"')


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    encoder = Encoder(tiny_backbone("bert"), tiny_tokenizer("bert"), EncoderSettings(max_tokens=16))
    refuse(encoder, "the tokenizer of this bert has no mask token")


def test_a_head_that_needs_more_than_the_tokens_vectors_is_refused(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that looks at the input ids beside them: said at the start, not learnt from a strange loss."""
    make = AutoModelForMaskedLM.from_config

    def odd(config: object) -> nn.Module:
        whole = make(config)
        forward = whole.forward

        def shifted(input_ids: torch.Tensor | None = None, **rest: object) -> object:
            outputs = forward(input_ids=input_ids, **rest)
            outputs.logits = outputs.logits + (0 if input_ids is None else 1)
            return outputs

        whole.forward = shifted
        return whole

    monkeypatch.setattr(AutoModelForMaskedLM, "from_config", odd)
    refuse(encoder, "the masked-language-model head of bert needs more than its tokens' vectors")
