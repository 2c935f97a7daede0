"""A padded batch as one row of tokens without padding, and the attention that keeps its texts apart.

Positions and segment borders travel through the backbone as keyword arguments of the names that transformers' own
flash attention takes, so that one forward pass serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from data_shards.errors import UserError
from encoder.backbone import positions

PACKED = "dipole_packed"
"""The name under which transformers knows this attention."""

# Axes: B texts, T tokens of the longest, P tokens of all texts together, H heads, K heads of keys and values,
# D hidden size, E dimensions of a head.


def packed_forward(backbone: PreTrainedModel, input_ids: Tensor, mask_BT: Tensor) -> Tensor:
    """Run the backbone over the tokens alone.

    Args:
        backbone: with its attention set to `packed`.
        input_ids: int64 [B, T].
        mask_BT: 1 for a token, 0 for padding, on either side.

    Returns:
        [B, T, D] in the backbone's dtype, zero at padding. Padded again, so that one pooling serves all: this is one
        tensor of that size, where the backbone makes dozens a layer.
    """
    keep_BT = mask_BT.bool()
    length_B = keep_BT.sum(1)
    borders = nn.functional.pad(length_B.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(length_B.max())
    token_PD: Tensor = backbone(
        input_ids=input_ids[keep_BT][None],
        position_ids=positions(backbone, input_ids, mask_BT)[keep_BT][None],
        cu_seq_lens_q=borders,
        cu_seq_lens_k=borders,
        max_length_q=longest,
        max_length_k=longest,
    ).last_hidden_state[0]
    token_BTD = token_PD.new_zeros((*mask_BT.shape, token_PD.shape[-1]))
    token_BTD[keep_BT] = token_PD
    return token_BTD


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within segments: what transformers calls in place of its own attention.

    Args:
        module: the attention layer.
        query: [1, H, P, E].
        key: [1, K, P, E], K dividing H.
        value: [1, K, P, E].
        attention_mask: None, since borders say all.
        dropout: of attention weights.
        scaling: of scores.
        sliding_window: tokens nearer than this are seen; None is all.
        is_causal: whether later tokens are hidden; by default as the layer was built.
        cu_seq_lens_q: int32 [B + 1], where segments begin and end.
        max_length_q: the longest segment.

    Returns:
        [1, P, H, E], and no weights.
    """
    assert attention_mask is None
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("this backbone runs on packed tokens: call it through its Encoder, or set another attention")
    rule = _Rule(
        borders=cu_seq_lens_q,
        longest=max_length_q,
        causal=getattr(module, "is_causal", True) if is_causal is None else is_causal,
        window=sliding_window,
        scaling=scaling,
        dropout=dropout,
    )
    dtype = _half(query) if query.is_cuda else None
    mixed = _plain(query, key, value, rule) if dtype is None else _flash(query, key, value, rule, dtype)
    return mixed, None


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Which token sees which, and how."""

    borders: Tensor
    longest: int
    causal: bool
    window: int | None
    scaling: float | None
    dropout: float


def _half(query: Tensor) -> torch.dtype | None:
    """Return the dtype for the flash kernel, which knows no float32; None sends that to the plain products."""
    if query.dtype in (torch.bfloat16, torch.float16):
        return query.dtype
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _flash(query: Tensor, key: Tensor, value: Tensor, rule: _Rule, dtype: torch.dtype) -> Tensor:
    """Call torch's own variable-length kernel."""
    from torch.nn.attention.varlen import varlen_attn  # from torch 2.10 on, and only ever called on a GPU

    if rule.dropout:
        raise UserError(
            "packed attention without flash-attn knows no attention dropout; install flash-attn, "
            "set the model's attention dropout to 0, or use attention auto"
        )
    query_PHE, key_PKE, value_PKE = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    reach = -1 if rule.window is None else rule.window - 1
    mixed_PHE = varlen_attn(
        query_PHE,
        key_PKE,
        value_PKE,
        rule.borders,
        rule.borders,
        rule.longest,
        rule.longest,
        scale=rule.scaling,
        window_size=(reach, 0 if rule.causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(mixed_PHE, Tensor)
    return mixed_PHE.to(query.dtype)[None]


def _plain(query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
    """Take one segment after the other: the reference that every kernel has to equal, on any device."""
    mixed_1HPE = [
        nn.functional.scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            attn_mask=_seen(end - begin, rule, query.device),
            dropout_p=rule.dropout,
            is_causal=rule.causal and rule.window is None,
            scale=rule.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for begin, end in pairwise(rule.borders.tolist())
    ]
    return torch.cat(mixed_1HPE, dim=2).transpose(1, 2).contiguous()


def _seen(length: int, rule: _Rule, device: torch.device) -> Tensor | None:
    if rule.window is None:
        return None
    place_T = torch.arange(length, device=device)
    ahead_TT = place_T[None, :] - place_T[:, None]
    return (ahead_TT.abs() < rule.window) & ((ahead_TT <= 0) | (not rule.causal))


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
