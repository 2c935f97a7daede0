"""Reads and writes encoders in the layout that sentence-transformers, and the servers that follow it, load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, logging as transformers_logging

from data_shards.atomic import atomic_dir, read_json, sha256_file, write_json
from data_shards.errors import UserError
from encoder.model import Encoder, EncoderSettings, position_limit
from encoder.pooling import Pooling

_POOLING_KEYS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
_MODULE = "sentence_transformers.models."
# What decides a vector: anything else in the folder (a README, our own stamp) may change freely.
_HASHED = ("*.safetensors", "config.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json")
_HASHED_MODULES = ("modules.json", "config_sentence_transformers.json")


def save_snapshot(encoder: Encoder, path: Path, *, step: int = 0) -> str:
    """Write the encoder alone, whole or not at all; a snapshot of the same name that is there already stays.

    Args:
        encoder: its weights are written in their own precision, as safetensors.
        path: the new folder.
        step: the training step that it is from, kept in `dipole.json`.

    Returns:
        The snapshot's hash.
    """
    settings = encoder.settings
    with atomic_dir(path) as folder:
        transformers_logging.disable_progress_bar()
        encoder.backbone.save_pretrained(folder)
        _save_tokenizer(encoder, folder)
        modules = ["Transformer", "Pooling"] + ["Normalize"] * settings.normalize
        paths = ["", "1_Pooling", "2_Normalize"]
        rows = [
            {"idx": k, "name": str(k), "path": paths[k], "type": _MODULE + name} for k, name in enumerate(modules)
        ]
        write_json(folder / "modules.json", rows)
        write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": settings.max_tokens, "do_lower_case": False}
        )
        pooling = {key: mode == settings.pooling for mode, key in _POOLING_KEYS.items()}
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": encoder.dim, **pooling})
        if settings.normalize:
            (folder / "2_Normalize").mkdir()
        prompts = {"query": settings.query_prompt, "document": settings.passage_prompt}
        write_json(
            folder / "config_sentence_transformers.json",
            {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        )
        digest = snapshot_hash(folder)
        write_json(folder / "dipole.json", {"step": step, "hash": digest})
    return digest


def _save_tokenizer(encoder: Encoder, folder: Path) -> None:
    """Write the tokenizer without the truncation and padding of its last call, which would change the hash."""
    tokenizer = encoder.tokenizer
    tokenizer.model_max_length = encoder.settings.max_tokens
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)


def snapshot_hash(path: Path) -> str:
    """Return "sha256:…" over all that decides the vectors: weights, tokenizer, pooling, prompts, lengths."""
    digest = hashlib.sha256()
    files = sorted({file for pattern in (*_HASHED, *_HASHED_MODULES) for file in path.glob(pattern)})
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
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(f"{path} is not a model: it holds no config.json; give a snapshot or a transformers folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a model folder; give a snapshot or a transformers folder")


def load_encoder(name_or_path: str | Path, *, settings: EncoderSettings | None = None) -> Encoder:
    """Load a sentence-transformers folder, a plain transformers folder, or a hub name.

    Args:
        name_or_path: what to load. Weights are read from safetensors only; nothing is unpickled and no remote
            code runs.
        settings: overrides what a sentence-transformers folder says; needed for nothing else.

    Raises:
        UserError: it is no model, or has modules that Dipole does not read.
    """
    path = Path(name_or_path)
    check_is_model(path)
    previous = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
        backbone, loading = AutoModel.from_pretrained(
            str(name_or_path), trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name_or_path} is not a model that can be loaded here: {first_line}") from error
    finally:
        transformers_logging.set_verbosity(previous)
    # transformers fills gaps with random numbers. The pooler is the one part that may be missing: it is not used.
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"{name_or_path} is not a whole model: its weights lack {missing[0]} and {len(missing) - 1} more"
        )
    if settings is None:
        settings = _read_settings(path, position_limit(backbone)) if path.is_dir() else EncoderSettings()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Encoder(backbone.float(), tokenizer, settings).eval()


def _read_settings(path: Path, longest: int) -> EncoderSettings:
    """Read pooling, prompts and length from a sentence-transformers folder; a plain folder gets the defaults."""
    if not (path / "modules.json").exists():
        return EncoderSettings()
    modules = read_json(path / "modules.json")
    names = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0]["path"]:
        raise UserError(f"{path} has modules {', '.join(names)}; Dipole reads Transformer, Pooling and Normalize")
    lengths = _read_optional(path / "sentence_bert_config.json")
    prompts = _read_optional(path / "config_sentence_transformers.json").get("prompts", {})
    tokenizer = _read_optional(path / "tokenizer_config.json")
    return EncoderSettings(
        pooling=_read_pooling(path / modules[1]["path"] / "config.json"),
        normalize="Normalize" in names,
        max_tokens=int(lengths.get("max_seq_length") or min(tokenizer.get("model_max_length") or longest, longest)),
        query_prompt=prompts.get("query", ""),
        passage_prompt=prompts.get("document", ""),
    )


def _read_pooling(path: Path) -> Pooling:
    """Understand both spellings: one flag a mode, or `pooling_mode`."""
    config = read_json(path)
    named = {"mean": "mean", "cls": "cls", "lasttoken": "last"}.get(str(config.get("pooling_mode")))
    chosen = [mode for mode, key in _POOLING_KEYS.items() if config.get(key) or mode == named]
    if len(chosen) != 1 or config.get("include_prompt") is False:
        raise UserError(f"{path} asks for a pooling that Dipole does not read: {json.dumps(config)}")
    return chosen[0]


def _read_optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
