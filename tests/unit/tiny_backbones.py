"""One random layer of each kind of backbone, with a tokenizer such as it would have."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from encoder.model import Encoder, Side
from encoder.snapshot import load_encoder
from encoder.tokenizer import train_wordpiece
from tests.unit.tiny import TEXTS

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _NO_DROPOUT,
    "mpnet": _NO_DROPOUT,
    "xlm-roberta": _NO_DROPOUT,
    # A full layer and one with a window of two tokens to each side.
    "modernbert": {"num_hidden_layers": 2, "local_attention": 4, "global_attn_every_n_layers": 2},
}
DECODERS: dict[str, dict[str, Any]] = {
    "qwen3": _GROUPED,
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 3},
}
ALL = ENCODERS | DECODERS


@functools.cache
def _wordpiece() -> PreTrainedTokenizerFast:
    return train_wordpiece(TEXTS, vocab_size=160, max_tokens=16)


def tiny_backbone(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a random backbone; its embeddings are wide enough for vectors to differ."""
    tokenizer = _wordpiece()
    special = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": tokenizer.sep_token_id}
    if kind in DECODERS:
        special["pad_token_id"] = None
    if kind == "modernbert":
        special |= {"bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = AutoConfig.for_model(kind, **{**_SIZES, **ALL[kind], "initializer_range": 0.5, **special, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
    assert isinstance(model, PreTrainedModel)
    return model


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer: with [CLS] and [SEP] for encoders; for decoders with an end token that it never sets."""
    backend = type(_wordpiece().backend_tokenizer).from_str(_wordpiece().backend_tokenizer.to_str())
    if kind in ENCODERS:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]")


def write_backbone(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a plain transformers folder."""
    tiny_backbone(kind, **changes).save_pretrained(folder)
    tiny_tokenizer(kind).save_pretrained(folder)
    return folder


def padded(encoder: Encoder, texts: list[str], side: Side = "query", *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return input ids and mask of one batch."""
    rows = encoder.tokenize(texts, side)
    longest = max(map(len, rows))
    fill = [[encoder.tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    empty, full = [[0] * len(part) for part in fill], [[1] * len(row) for row in rows]
    ids = [part + row if left else row + part for part, row in zip(fill, rows, strict=True)]
    mask = [part + row if left else row + part for part, row in zip(empty, full, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def tiny_kind(folder: Path, kind: str, **changes: Any) -> Encoder:
    """Return an encoder as it is loaded from a plain transformers folder."""
    return load_encoder(write_backbone(folder, kind, **changes))
