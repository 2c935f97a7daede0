"""Reads and writes encoders in the layout that sentence-transformers, and the servers that follow it, load."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging as transformers_logging,
)

from data_shards.atomic import atomic_dir, read_json, sha256_file, write_json
from data_shards.errors import UserError
from encoder.backbone import is_bidirectional, is_decoder, position_limit
from encoder.layout import (
    read_dense,
    read_optional,
    read_settings,
    write_dense,
    write_modules,
    write_pooling,
    write_prompts,
)
from encoder.lora import merged
from encoder.model import TOKENIZING, Encoder, EncoderSettings, with_settings
from encoder.tokenizer import append_end_token, ensure_pad_token, lower_case
from encoder.towers import Tower, read_towers

# What decides a vector: anything else in the folder (a README, our own stamp) may change freely. The parts lie in
# folders like 1_Pooling, or query_1_Pooling where there are two towers.
_PARTS = ("", "[0-9]_*/", "query_*/", "document_*/")
_HASHED = (
    *(part + name for part in _PARTS for name in ("*.safetensors", "config.json", "tokenizer.json")),
    *(part + "sentence_bert_config.json" for part in _PARTS),
    "modules.json",
    "router_config.json",
    "config_sentence_transformers.json",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched by a hub name: nothing that could be a pickle."""


def save_snapshot(encoder: Encoder, path: Path, *, step: int = 0, weights: Mapping[str, Tensor] | None = None) -> str:
    """Write the encoder alone, whole or not at all; a snapshot of the same name that is there already stays.

    Adapters are merged: what is written needs no peft.

    Args:
        encoder: its weights are written in their own precision, as safetensors.
        path: the new folder.
        step: the training step that it is from, kept in `dipole.json`.
        weights: whole tensors by the names of `encoder.state_dict()`, in place of the encoder's own, which are then
            not read: an engine may keep them in shards.

    Returns:
        The snapshot's hash.
    """
    names = encoder.state_dict()
    weights = names if weights is None else weights
    if missing := sorted(names.keys() - weights.keys()):
        raise ValueError(f"weights lack {missing[0]} and {len(missing) - 1} more of encoder.state_dict()")
    plain = merged(weights, encoder.lora) if encoder.lora else dict(weights)
    settings = encoder.settings
    with atomic_dir(path) as folder:
        towers = write_modules(folder, settings)
        _write_tower(encoder, encoder.backbone, towers["query"], plain, "")
        if encoder.passage_backbone is not None:
            _write_tower(encoder, encoder.passage_backbone, towers["passage"], plain, "passage_")
        write_prompts(folder, settings)
        digest = snapshot_hash(folder)
        # Of no use to sentence-transformers, and no part of the hash: lengths to cut to change no vector.
        sizes = {"matryoshka_dims": settings.matryoshka_dims} if settings.matryoshka_dims else {}
        write_json(folder / "dipole.json", {"step": step, "hash": digest, **sizes})
    return digest


def _write_tower(
    encoder: Encoder, backbone: PreTrainedModel, tower: Tower, weights: Mapping[str, Tensor], prefix: str
) -> None:
    """Write one side's parts from the weights under `PREFIXbackbone.` and `PREFIXprojection.`."""
    assert tower.pooling is not None
    transformers_logging.disable_progress_bar()
    own = _under(weights, f"{prefix}backbone.")
    backbone.save_pretrained(tower.transformer, state_dict=dict(own))
    # transformers writes the module's precision into config.json, and loads in it: it has to be the weights'.
    backbone.config.dtype = str(next(value for value in own.values() if value.is_floating_point()).dtype)[6:]
    backbone.config.save_pretrained(tower.transformer)
    _save_tokenizer(encoder, tower.transformer)
    lengths = {"max_seq_length": encoder.settings.max_tokens, "do_lower_case": False}
    write_json(tower.transformer / "sentence_bert_config.json", lengths)
    write_pooling(tower.pooling, encoder.settings, int(backbone.config.hidden_size))
    if tower.dense is not None:
        write_dense(tower.dense, _under(weights, f"{prefix}projection."))


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _save_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Write the tokenizer without the truncation and padding of its last call, which would change the hash."""
    tokenizer = encoder.tokenizer
    tokenizer.model_max_length = encoder.settings.max_tokens
    # Positions are counted from the row's begin, padding included, so vectors are the same with padding behind alone.
    tokenizer.padding_side = "right"
    with TOKENIZING:
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_truncation()
            backend.no_padding()
        tokenizer.save_pretrained(folder)


def snapshot_hash(path: Path) -> str:
    """Return "sha256:…" over all that decides the vectors: weights, tokenizer, pooling, prompts, lengths."""
    digest = hashlib.sha256()
    files = sorted({file for pattern in _HASHED for file in path.glob(pattern)})
    for file in files:
        digest.update(f"{file.relative_to(path)} {sha256_file(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def snapshot_step(path: Path) -> int:
    """Return the training step that a snapshot is from; 0 for a model that Dipole did not write."""
    stamp = path / "dipole.json"
    return int(read_json(stamp)["step"]) if stamp.exists() else 0


def check_is_model(path: Path) -> None:
    """Refuse at a glance what is there and no model; a path that is not there may be a hub name.

    Raises:
        UserError: it is a file, or a folder without a model.
    """
    if path.is_dir() and not any((path / name).exists() for name in ("config.json", "modules.json")):
        raise UserError(f"{path} is not a model: it holds no config.json; give a snapshot or a transformers folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a model folder; give a snapshot or a transformers folder")


def load_encoder(name_or_path: str | Path, *, settings: EncoderSettings | None = None) -> Encoder:
    """Load a sentence-transformers folder, a plain transformers folder, or a hub name.

    A plain decoder pools the last token, and ends each text with its end token, since nothing says otherwise.

    Args:
        name_or_path: what to load. Weights are read from safetensors only; nothing is unpickled and no remote
            code runs.
        settings: overrides what a sentence-transformers folder says; needed for nothing else.

    Raises:
        UserError: it is no model, has modules that Dipole does not read, or cannot take these settings.
    """
    path = _local(name_or_path)
    towers = read_towers(path)
    query, passage = towers["query"], towers["passage"]
    backbone, tokenizer = _load_backbone(name_or_path, query.transformer), _load_tokenizer(name_or_path, query)
    own = read_settings(path, towers, position_limit(backbone))
    own = dataclasses.replace(own, bidirectional=is_bidirectional(backbone))
    if query.pooling is None and is_decoder(backbone) and not own.bidirectional:
        own = dataclasses.replace(own, pooling="last")
    if query.pooling is None and (settings or own).pooling == "last":
        append_end_token(tokenizer)
    ensure_pad_token(tokenizer, str(name_or_path))
    two = query != passage
    if two and _tokenizer_hashes(query) != _tokenizer_hashes(passage):
        raise UserError(f"{name_or_path} has towers with different tokenizers; Dipole keeps one for both")
    encoder = Encoder(
        backbone,
        tokenizer,
        own,
        projection=read_dense(query.dense) if query.dense else None,
        passage_backbone=_load_backbone(name_or_path, passage.transformer) if two else None,
        passage_projection=read_dense(passage.dense) if two and passage.dense else None,
    ).eval()
    return with_settings(encoder, settings) if settings else encoder


def _local(name_or_path: str | Path) -> Path:
    """Return the folder of a model, fetching what has a hub name."""
    path = Path(name_or_path)
    check_is_model(path)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        raise _no_model(name_or_path, error) from error


def _load_tokenizer(name: str | Path, tower: Tower) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(tower.transformer), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(name, error) from error
    if read_optional(tower.transformer / "sentence_bert_config.json").get("do_lower_case"):
        lower_case(tokenizer)
    return tokenizer


def _load_backbone(name: str | Path, folder: Path) -> PreTrainedModel:
    """Load the weights, all of them, in float32."""
    previous = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        backbone, loading = AutoModel.from_pretrained(
            str(folder), trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _no_model(name, error) from error
    finally:
        transformers_logging.set_verbosity(previous)
    # transformers fills gaps with random numbers. The pooler is the one part that may be missing: it is not used.
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")):
        raise UserError(f"{name} is not a whole model: its weights lack {missing[0]} and {len(missing) - 1} more")
    return backbone.float()


def _no_model(name: str | Path, error: Exception) -> UserError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{name} is not a model that can be loaded here: {first_line}")


def _tokenizer_hashes(tower: Tower) -> list[str]:
    names = ("tokenizer.json", "tokenizer.model", "vocab.txt")
    return [sha256_file(tower.transformer / name) for name in names if (tower.transformer / name).exists()]
