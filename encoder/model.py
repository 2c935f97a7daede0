"""The bi-encoder: a transformers backbone, or two, pooling, projection, and the tokenizer that belongs to them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from data_shards.errors import UserError
from encoder.attention import Attention, set_attention
from encoder.backbone import position_limit, prepare_backbone, set_gradient_checkpointing
from encoder.lora import LoraConfig
from encoder.packed import packed_forward
from encoder.pooling import Pooling, pool
from encoder.tokenizer import train_wordpiece
from encoder.towers import Side as Side  # handed on: whoever calls an encoder names a side

TOKENIZING = threading.Lock()
"""A tokenizer keeps the length of its last call, so two threads that cut at different lengths would mix them up:
one reads ahead for training while another evaluates, or writes a snapshot. One lock for all encoders, so that they
can be copied."""


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
    source_prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Prompts of single sources, by `SOURCE:query` or `SOURCE:passage`, in place of the side's own."""
    towers: Literal["one", "two"] = "one"
    """`two` gives passages a backbone and a projection of their own, which start as copies of the queries'."""
    bidirectional: bool = False
    """Lets a decoder look at later tokens too."""
    projection_dim: int | None = None
    """Length of the vectors, by a linear layer behind pooling; None keeps the backbone's."""
    matryoshka_dims: tuple[int, ...] = ()
    """Shorter lengths to which vectors may be cut."""

    def __post_init__(self) -> None:
        """Check what needs no backbone."""
        if self.max_tokens < 3:
            raise UserError(f"encoder max_tokens must be at least 3, came {self.max_tokens}")
        if self.projection_dim is not None and self.projection_dim < 1:
            raise UserError(f"encoder projection_dim must be at least 1, came {self.projection_dim}")
        for name in self.source_prompts:
            source, _, side = name.rpartition(":")
            if not source or side not in ("query", "passage"):
                raise UserError(f"encoder source_prompts are named SOURCE:query or SOURCE:passage, came {name!r}")
        if self.matryoshka_dims and min(self.matryoshka_dims) < 1:
            raise UserError(f"encoder matryoshka_dims must be at least 1, came {min(self.matryoshka_dims)}")

    def prompt(self, side: Side, source: str = "") -> str:
        """Return what is put before a text."""
        own = self.query_prompt if side == "query" else self.passage_prompt
        return self.source_prompts.get(f"{source}:{side}", own)


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

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EncoderSettings,
        *,
        projection: nn.Linear | None = None,
        passage_backbone: PreTrainedModel | None = None,
        passage_projection: nn.Linear | None = None,
    ):
        """Put the parts together.

        Args:
            backbone: of queries, or of both sides. Its pooler is dropped, and its attention turned as `settings` say.
            tokenizer: of both sides.
            settings: what else belongs to a snapshot.
            projection: by default a new one where `settings` name a `projection_dim`.
            passage_backbone: by default a copy of `backbone` where `settings` ask for two towers.
            passage_projection: by default a copy of `projection`.
        """
        super().__init__()
        assert passage_backbone is None or settings.towers == "two"
        prepare_backbone(backbone, bidirectional=settings.bidirectional)
        if settings.max_tokens > (limit := position_limit(backbone)):
            raise UserError(
                f"encoder max_tokens {settings.max_tokens} is more than this backbone's {limit}; lower it"
            )
        self.backbone = backbone
        self.projection = projection
        if projection is None and settings.projection_dim:
            self.projection = _new_projection(
                int(backbone.config.hidden_size), settings.projection_dim, next(backbone.parameters()).device
            )
        self.passage_backbone, self.passage_projection = passage_backbone, passage_projection
        if settings.towers == "two":
            if passage_backbone is None:
                self.passage_backbone = copy.deepcopy(backbone)
            else:
                prepare_backbone(passage_backbone, bidirectional=settings.bidirectional)
            if passage_projection is None:
                self.passage_projection = copy.deepcopy(self.projection)
        self.tokenizer = tokenizer
        self.settings = settings
        self.lora: LoraConfig | None = None
        self._packed = False
        if settings.matryoshka_dims and (longest := max(settings.matryoshka_dims)) > self.dim:
            raise UserError(
                f"encoder matryoshka_dims asks for {longest} dimensions and this encoder has {self.dim}; drop it"
            )

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.projection.out_features if self.projection else self.backbone.config.hidden_size)

    @property
    def backbones(self) -> list[PreTrainedModel]:
        """One, or those of both towers."""
        return [self.backbone] if self.passage_backbone is None else [self.backbone, self.passage_backbone]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "query") -> Tensor:
        """Encode padded tokens.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 for a token.
            side: chooses the tower, where there are two.

        Returns:
            float32 [B, D], of length 1 where the settings say so.
        """
        token_BTD = self.tokens(input_ids, attention_mask, side)
        own = side == "passage" and self.passage_backbone is not None
        projection = self.passage_projection if own else self.projection
        vector_BD = pool(token_BTD, attention_mask, self.settings.pooling)
        if projection is not None:
            # Sharded engines narrow the weights, and autocast the product; pooling and what follows are in float32.
            projected_BD = projection(vector_BD.to(projection.weight.dtype))
            vector_BD = projected_BD.to(vector_BD.dtype)
        return nn.functional.normalize(vector_BD, dim=-1) if self.settings.normalize else vector_BD

    def tokens(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "query") -> Tensor:
        """Return each token's vector [B, T, D], in the backbone's precision; what stands at padding means nothing."""
        backbone = self.backbones[-1 if side == "passage" else 0]
        if self._packed:
            return packed_forward(backbone, input_ids, attention_mask)
        token_BTD: Tensor = backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return token_BTD

    def set_attention(self, kind: Attention, device: torch.device | None = None) -> None:
        """Choose the attention of all towers, for this process alone: snapshots know nothing of it.

        Args:
            kind: of attention.
            device: where the encoder will run; by default where its weights are.

        Raises:
            UserError: this backbone, or this machine, cannot.
        """
        for backbone in self.backbones:
            set_attention(backbone, kind, device)
        self._packed = kind == "packed"

    def set_gradient_checkpointing(self, on: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them: the same gradients, dropout too.

        Raises:
            UserError: the backbone has no such switch.
        """
        for backbone in self.backbones:
            set_gradient_checkpointing(backbone, on)

    def tokenize(
        self, texts: Sequence[str], side: Side, max_tokens: int | None = None, sources: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Put prompts before texts and return token ids with special tokens.

        Args:
            texts: without prompts.
            side: chooses the prompt.
            max_tokens: texts are cut to this; by default, and at most, the settings' own.
            sources: of each text, for the prompts of single sources.
        """
        longest = min(max_tokens or self.settings.max_tokens, self.settings.max_tokens)
        if sources is None:
            prompt = self.settings.prompt(side)
            prompted = [prompt + text for text in texts] if prompt else list(texts)
        else:
            pairs = zip(texts, sources, strict=True)
            prompted = [self.settings.prompt(side, source) + text for text, source in pairs]
        with TOKENIZING:
            encoded = self.tokenizer(prompted, truncation=True, max_length=longest, return_attention_mask=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def with_settings(encoder: Encoder, settings: EncoderSettings) -> Encoder:
    """Return an encoder of the same parts under other settings; what these add, like a projection, is new.

    Raises:
        UserError: the settings ask for another projection than there is, or for one tower of two.
    """
    old = encoder.settings
    if old.towers == "two" and settings.towers == "one":
        raise UserError("this model has two towers; set encoder.towers to two, or leave it out")
    if old.projection_dim and settings.projection_dim != old.projection_dim:
        raise UserError(
            f"this model projects to {old.projection_dim} dimensions; set encoder.projection_dim to that, "
            "or leave it out"
        )
    made = Encoder(
        encoder.backbone,
        encoder.tokenizer,
        settings,
        projection=encoder.projection,
        passage_backbone=encoder.passage_backbone,
        passage_projection=encoder.passage_projection,
    ).train(encoder.training)
    made.lora, made._packed = encoder.lora, encoder._packed
    return made


def _new_projection(width: int, dim: int, device: torch.device) -> nn.Linear:
    """Return a linear layer that keeps the angles between vectors as well as one can before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = nn.Linear(width, dim, bias=False)
        nn.init.orthogonal_(projection.weight)
    return projection.to(device)


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
        # Built for padded rows: packed ones need an encoder that knows of them.
        config = copy.deepcopy(encoder.backbone.config)
        backbone = AutoModel.from_config(config, attn_implementation="eager" if encoder._packed else None)
    return Encoder(backbone, encoder.tokenizer, encoder.settings).eval()
