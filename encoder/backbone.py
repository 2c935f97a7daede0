"""What transformers backbones differ in: the way that attention looks, how positions are counted, and how many."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_shards.errors import UserError

# Axes: B texts, T tokens.


def prepare_backbone(backbone: PreTrainedModel, *, bidirectional: bool) -> None:
    """Drop what an encoder does not use, and turn a decoder's attention as wanted.

    A pooler would be a parameter without a gradient, which DDP rejects; a decoder's cache of keys and values would
    be filled in every forward pass for nothing.

    Raises:
        UserError: the backbone is an encoder with a decoder; or `bidirectional`, and it is no decoder, or one that
            cannot.
    """
    if backbone.config.is_encoder_decoder:
        raise UserError(
            f"{backbone.config.model_type} is an encoder with a decoder behind it, which Dipole cannot train; choose "
            "an encoder or a decoder for encoder.model"
        )
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    if not is_decoder(backbone):
        if bidirectional:
            raise UserError(
                f"encoder.bidirectional is for decoders, and {backbone.config.model_type} looks both ways already; "
                "leave it off"
            )
        return
    backbone.config.use_cache = False
    # The switch is the config's, so config.json carries it to whoever loads the snapshot.
    backbone.config.is_causal = not bidirectional
    if bidirectional and not _looks_ahead(backbone):
        raise UserError(
            f"transformers cannot run {backbone.config.model_type} with bidirectional attention; "
            "set encoder.bidirectional to false"
        )


def is_decoder(backbone: PreTrainedModel) -> bool:
    """Say whether the backbone was built to look at earlier tokens alone."""
    return any(getattr(module, "is_causal", False) for module in backbone.modules())


def is_bidirectional(backbone: PreTrainedModel) -> bool:
    """Say whether a decoder's config turns it into an encoder."""
    return is_decoder(backbone) and getattr(backbone.config, "is_causal", True) is False


def _looks_ahead(backbone: PreTrainedModel) -> bool:
    """Change the last of three tokens and see whether the first notices: not every architecture heeds the config."""
    parameter = next(backbone.parameters())
    if parameter.is_meta or parameter.numel() == 0:
        return True  # nothing to run yet: the weights come later, or lie with an engine
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            ids_BT = torch.tensor([[3, 4, 5], [3, 4, 6]], device=parameter.device)
            first_BD = backbone(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state[:, 0]
    finally:
        backbone.train(was_training)
    return not torch.equal(first_BD[0], first_BD[1])


def position_limit(backbone: PreTrainedModel) -> int:
    """Return the longest input that the backbone's position table holds; without a table, a very large number."""
    limit = getattr(backbone.config, "max_position_embeddings", None) or 1 << 30
    padding_id = _position_padding_id(backbone)
    return int(limit) - (0 if padding_id is None else padding_id + 1)


def positions(backbone: PreTrainedModel, input_ids: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the position of each token as the backbone itself would count it in right-padded rows.

    Args:
        backbone: whose way of counting it is.
        input_ids: int64 [B, T].
        mask_BT: 1 for a token, 0 for padding, on either side.

    Returns:
        int64 [B, T]; what stands at padding means nothing.
    """
    padding_id = _position_padding_id(backbone)
    if padding_id is None:
        return (mask_BT.long().cumsum(1) - 1).clamp(min=0)
    real_BT = (input_ids != padding_id).long() * mask_BT.long()
    return real_BT.cumsum(1) * real_BT + padding_id


def _position_padding_id(backbone: PreTrainedModel) -> int | None:
    """Return the padding id behind which RoBERTa and its kin start counting; None for all others."""
    for module in backbone.modules():
        padding_id = getattr(module, "padding_idx", None)
        if isinstance(padding_id, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding_id
    return None


def set_gradient_checkpointing(backbone: PreTrainedModel, on: bool) -> None:
    """Compute activations again in the backward pass instead of keeping them; dropout is replayed.

    Raises:
        UserError: the backbone has no such switch.
    """
    # transformers renamed the two within its fifth major, and warns of the old names.
    kind = "activation" if hasattr(backbone, "activation_checkpointing_enable") else "gradient"
    if not on:
        getattr(backbone, f"{kind}_checkpointing_disable")()
        return
    if not backbone.supports_gradient_checkpointing:
        raise UserError(
            f"transformers has no gradient checkpointing for {backbone.config.model_type}; switch it off, "
            "or lower batch.tokens_per_chunk to save memory"
        )
    # The re-entrant kind gives no gradient where the inputs need none, as with LoRA, and breaks DDP and FSDP.
    getattr(backbone, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
