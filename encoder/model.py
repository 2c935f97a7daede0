"""The bi-encoder: a transformers backbone, pooling, normalisation, and the tokenizer that belongs to it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from data_shards.errors import UserError
from encoder.pooling import Pooling, pool
from encoder.tokenizer import train_wordpiece

Side = Literal["query", "passage"]

_TOKENIZING = threading.Lock()
"""A tokenizer keeps the length of its last call, so two threads that cut at different lengths would mix them up:
one reads ahead for training while another evaluates. One lock for all encoders, so that they can be copied."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """What belongs to a snapshot beside its weights and tokenizer."""

    pooling: Pooling = "mean"
    """How token vectors become one."""
    normalize: bool = True
    """Scale each vector to length 1, so that the inner product is the cosine."""
    max_tokens: int = 128
    """Longer texts are cut, special tokens counted."""
    query_prompt: str = ""
    """Put before each query."""
    passage_prompt: str = ""
    """Put before each passage."""

    def __post_init__(self) -> None:
        """Check the length."""
        if self.max_tokens < 3:
            raise UserError(f"encoder max_tokens must be at least 3, came {self.max_tokens}")


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """A BERT-style encoder that starts from nothing, with a tokenizer trained on the corpus."""

    layers: int = 2
    """Transformer layers."""
    width: int = 128
    """Hidden size, and the embeddings' dimension."""
    heads: int = 2
    """Attention heads."""
    feedforward_factor: int = 4
    """Width of the feed-forward layers, in widths."""
    vocab_size: int = 8192
    """Tokens in the WordPiece vocabulary."""
    dropout: float = 0.0
    """Dropout in the hidden layers; attention has none, since its fused kernels know none on a CPU."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, least in (
            ("layers", 1),
            ("width", 1),
            ("heads", 1),
            ("feedforward_factor", 1),
            ("vocab_size", 100),
        ):
            if getattr(self, name) < least:
                raise UserError(f"scratch.{name} must be at least {least}, came {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"scratch.dropout must be at least 0 and below 1, came {self.dropout}")
        if self.width % self.heads:
            raise UserError(f"encoder width {self.width} does not divide over {self.heads} heads")


class Encoder(nn.Module):
    """Text to vectors. `forward` takes tokens; `tokenize` makes them."""

    def __init__(self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: EncoderSettings):
        """Put the parts together; the backbone's unused pooler is dropped (DDP rejects unused parameters)."""
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None
        if settings.max_tokens > (limit := position_limit(backbone)):
            raise UserError(
                f"encoder max_tokens {settings.max_tokens} is more than this backbone's {limit}; lower it"
            )
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.settings = settings

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.backbone.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode padded tokens.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 for a token.

        Returns:
            float32 [B, D], of length 1 where the settings say so.
        """
        token_BTD = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vector_BD = pool(token_BTD, attention_mask, self.settings.pooling)
        return nn.functional.normalize(vector_BD, dim=-1) if self.settings.normalize else vector_BD

    def tokenize(self, texts: Sequence[str], side: Side, max_tokens: int | None = None) -> list[list[int]]:
        """Return token ids with special tokens, cut to `max_tokens` (by default the settings' own)."""
        prompt = self.settings.query_prompt if side == "query" else self.settings.passage_prompt
        longest = min(max_tokens or self.settings.max_tokens, self.settings.max_tokens)
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        with _TOKENIZING:
            encoded = self.tokenizer(prompted, truncation=True, max_length=longest, return_attention_mask=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def scratch_encoder(config: ScratchConfig, settings: EncoderSettings, texts: Iterable[str], *, seed: int) -> Encoder:
    """Train a tokenizer on `texts` and build a randomly initialised encoder around it."""
    tokenizer = train_wordpiece(texts, vocab_size=config.vocab_size, max_tokens=settings.max_tokens)
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feedforward_factor * config.width,
        max_position_embeddings=max(128, settings.max_tokens),
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = BertModel(bert, add_pooling_layer=False)
    return Encoder(backbone, tokenizer, settings)


def reinitialised(encoder: Encoder, *, seed: int) -> Encoder:
    """Return an encoder of the same architecture and tokenizer with fresh random weights: the untrained baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = AutoModel.from_config(encoder.backbone.config)
    return Encoder(backbone, encoder.tokenizer, encoder.settings).eval()


def position_limit(backbone: PreTrainedModel) -> int:
    """Return the longest input that the backbone's position table holds; without a table, a very large number."""
    limit = getattr(backbone.config, "max_position_embeddings", None) or 1 << 30
    # RoBERTa and its kin start counting positions behind the padding id.
    offset = 2 if backbone.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return int(limit) - offset
