"""Guessing hidden tokens: an encoder's backbone under the masked-language-model head of its architecture.

The head is transformers' own, whatever it looks like inside. Its model is built around the backbone, so that output
and input embeddings are tied as the architecture has them; then a stand-in takes the backbone's place, which hands on
vectors that are there already. So the head runs on the hidden tokens alone, a seventh of all, where the product with
the vocabulary is most of what a small encoder computes; and the backbone may run on padded or on packed tokens.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, logging as transformers_logging
from transformers.modeling_outputs import BaseModelOutput

from data_shards.errors import UserError
from encoder.model import Encoder

_log = logging.getLogger(__name__)

# Axes: B texts, T tokens, m hidden tokens of a chunk, D hidden size, V vocabulary.


class MaskedLM(nn.Module):
    """An encoder that guesses hidden tokens; nothing but backbone and head is trained."""

    def __init__(self, encoder: Encoder, head: PreTrainedModel) -> None:
        """Put the two together.

        Args:
            encoder: of one tower. What stands behind the backbone gets no gradient, so it is frozen.
            head: of this encoder, by `new_head` or `load_head`.
        """
        super().__init__()
        self.encoder, self.head = encoder, head
        if encoder.projection is not None:
            encoder.projection.requires_grad_(False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, place_m: Tensor, label_m: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Guess.

        Args:
            input_ids: int64 [B, T], some of them hidden.
            attention_mask: [B, T], 1 for a token.
            place_m: int64, where the hidden tokens stand in the flattened chunk; there may be none.
            label_m: int64, which tokens they are; -100 is not counted.

        Returns:
            The sum of their cross-entropies, and how many were guessed right, in float32 at least.
        """
        token_BTD = self.encoder.tokens(input_ids, attention_mask)
        # FSDP2 hands float32 from layer to layer, and keeps weights narrow; elsewhere this changes nothing.
        hidden_mD = token_BTD.flatten(0, 1)[place_m].to(next(self.head.parameters()).dtype)
        logit_mV = self.head(inputs_embeds=hidden_mD[None]).logits[0]
        logit_mV = logit_mV.to(torch.promote_types(logit_mV.dtype, torch.float32))
        loss = nn.functional.cross_entropy(logit_mV, label_m, reduction="sum")
        return loss, (logit_mV.argmax(-1) == label_m).sum().to(loss.dtype)


def new_head(encoder: Encoder, *, seed: int) -> PreTrainedModel:
    """Return a head for an encoder: the one that its model was pretrained with, where its folder has it.

    Args:
        encoder: as it was loaded or made.
        seed: of a head that is new.

    Raises:
        UserError: this encoder cannot guess hidden tokens; the message says why and what to change.
    """
    _check_encoder(encoder)
    backbone = encoder.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = _pretrained(backbone)
        if whole is None:
            whole = AutoModelForMaskedLM.from_config(backbone.config)
    return _checked(whole, encoder)


def save_head(head: PreTrainedModel, encoder: Encoder, path: Path) -> None:
    """Write what the head does not share with the backbone."""
    save_file({name: value.detach().clone() for name, value in _own(head, encoder)}, path)


def load_head(encoder: Encoder, path: Path) -> PreTrainedModel:
    """Return the head that `save_head` wrote, tied to this encoder's backbone."""
    with torch.device("meta"):  # its backbone is thrown away, so it is not even made
        head = AutoModelForMaskedLM.from_config(encoder.backbone.config)
    setattr(head, head.base_model_prefix, _Given())
    head.to_empty(device="cpu")
    weights = load_file(path)
    head.load_state_dict(weights, strict=False)
    _tie(head, encoder.backbone)
    if (names := {name for name, _ in _own(head, encoder)}) != weights.keys():
        odd = sorted(names ^ weights.keys())[0]
        raise UserError(f"{path} is no head of this encoder ({odd}); was it made by another version of transformers?")
    return head


class _Given(nn.Module):
    """Stands where a model looks for its backbone, and hands on the vectors that are there already."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def _check_encoder(encoder: Encoder) -> None:
    name = encoder.backbone.config.model_type
    if len(encoder.backbones) > 1:
        raise UserError(
            'adapt trains one backbone and this encoder has two; set encoder.towers = "one", or adapt off'
        )
    if type(encoder.backbone.config) not in AutoModelForMaskedLM._model_mapping:
        raise UserError(
            f"transformers has no masked-language-model head for {name}, so adapt cannot train it; turn it off"
        )
    if encoder.tokenizer.mask_token_id is None:
        raise UserError(
            f"the tokenizer of this {name} has no mask token to hide words behind; choose another encoder.model, or "
            "turn adapt off"
        )


def _pretrained(backbone: PreTrainedModel) -> PreTrainedModel | None:
    """Return the whole model with its head, where the folder that the backbone came from has one."""
    named = getattr(backbone.config, "architectures", None) or [""]
    if not (named[0].endswith("ForMaskedLM") and Path(backbone.name_or_path).is_dir()):
        return None
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        whole, loading = AutoModelForMaskedLM.from_pretrained(
            backbone.name_or_path, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(before)
    if missing := sorted(loading["missing_keys"]):
        _log.warning(
            "%s lacks parts of its masked-language-model head, such as %s: they are new", named[0], missing[0]
        )
    assert isinstance(whole, PreTrainedModel)
    return whole.float()


def _checked(whole: PreTrainedModel, encoder: Encoder) -> PreTrainedModel:
    """Turn a whole model into a head, and make sure that it says the same as the whole did."""
    backbone, name = encoder.backbone, encoder.backbone.config.model_type
    ids_BT = torch.tensor(encoder.tokenize(["probe"], "passage"))
    mask_BT = torch.ones_like(ids_BT)
    was_training = backbone.training
    _tie(whole.eval(), backbone.eval())
    try:
        with torch.no_grad():
            setattr(whole, whole.base_model_prefix, backbone)
            wanted = whole(input_ids=ids_BT, attention_mask=mask_BT).logits
            setattr(whole, whole.base_model_prefix, _Given())
            found = whole(inputs_embeds=encoder.tokens(ids_BT, mask_BT)).logits
        fits = torch.allclose(found, wanted, atol=1e-4) and not any(True for _ in whole.buffers())
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        _log.debug("the head of %s wants more than the tokens' vectors: %s", name, error)
        fits = False
    finally:
        backbone.train(was_training)
    if not fits:
        raise UserError(
            f"the masked-language-model head of {name} needs more than its tokens' vectors; turn adapt off"
        )
    return whole


def _tie(head: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """Tie output embeddings to the backbone's input embeddings, where the architecture does."""
    setattr(head, head.base_model_prefix, backbone)
    head.tie_weights()
    setattr(head, head.base_model_prefix, _Given())


def _own(head: PreTrainedModel, encoder: Encoder) -> list[tuple[str, nn.Parameter]]:
    """Return the head's parameters under all of their names, but those that it shares with the backbone."""
    shared = {id(parameter) for parameter in encoder.backbone.parameters()}
    return [row for row in head.named_parameters(remove_duplicate=False) if id(row[1]) not in shared]
