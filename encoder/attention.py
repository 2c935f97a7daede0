"""Which attention runs: transformers' own kernels on padded rows, or variable-length ones on packed tokens."""

from __future__ import annotations

import inspect
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from data_shards.errors import UserError
from encoder.backbone import is_bidirectional
from encoder.packed import PACKED

Attention = Literal["auto", "eager", "sdpa", "packed"]
"""`packed` computes no padding: flash attention on a GPU, a plain reference on a CPU."""


def set_attention(backbone: PreTrainedModel, kind: Attention, device: torch.device | None = None) -> None:
    """Choose the attention of one backbone; `auto` goes by the device.

    Args:
        backbone: whose weights stay where they are.
        kind: of attention.
        device: where the backbone will run; by default where its weights are.

    Raises:
        UserError: this backbone, or this machine, cannot.
    """
    at = next(backbone.parameters()).device
    device = device or at
    if kind == "packed":
        _check_packable(backbone, device)
        flash = at.type == "cuda" and is_flash_attn_2_available()
        backbone.set_attn_implementation("flash_attention_2" if flash else PACKED)
        return
    if kind == "auto":
        # PyTorch's fused attention multiplies head by head on a CPU: in bfloat16 a step took 1.5 times as long.
        kind = "sdpa" if device.type == "cuda" and backbone._supports_sdpa else "eager"
    if kind == "sdpa" and not backbone._supports_sdpa:
        raise UserError(f"{backbone.config.model_type} has no sdpa attention; use auto or eager")
    backbone.set_attn_implementation(kind)


def _check_packable(backbone: PreTrainedModel, device: torch.device) -> None:
    """Refuse where packed tokens would silently give other vectors than padded rows."""
    name = backbone.config.model_type
    signature = inspect.signature(backbone.forward).parameters
    passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    if not (backbone.is_backend_compatible() and "position_ids" in signature and passes_on):
        raise UserError(f"{name} cannot run on packed tokens: its attention is its own; use attention auto")
    if getattr(backbone.config, "attn_logit_softcapping", None):
        raise UserError(f"{name} caps its attention scores, which packed attention does not; use attention auto")
    if is_bidirectional(backbone) and getattr(backbone.config, "sliding_window", None):
        # transformers draws this window one token wider for padded rows than for packed ones.
        raise UserError(
            f"a bidirectional {name} with a sliding window cannot run on packed tokens; use attention auto"
        )
    if device.type == "cuda" and not (is_flash_attn_2_available() or _has_varlen_kernel()):
        raise UserError("packed attention on a GPU needs flash-attn or torch 2.11; use attention auto")


def _has_varlen_kernel() -> bool:
    """Say whether torch has flash attention over segments, in its form with windows and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
