"""The layout of sentence-transformers: what the parts of a model say, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from encoder.model import EncoderSettings
from encoder.pooling import Pooling
from encoder.towers import ROUTES, Side, Tower, make_tower, module_kind

_POOLING_KEYS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
_POOLING_NAMES: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "weightedmean": "weighted_mean",
}
_MODULE = "sentence_transformers.models."


def read_settings(path: Path, towers: Mapping[Side, Tower], longest: int) -> EncoderSettings:
    """Read pooling, prompts and lengths.

    Args:
        path: the model.
        towers: of `read_towers`.
        longest: input that the backbone can take.

    Raises:
        UserError: the towers differ in more than weights, or a part asks for what Dipole does not do.
    """
    query, passage = towers["query"], towers["passage"]
    if query.pooling is None or passage.pooling is None:
        return EncoderSettings(max_tokens=min(EncoderSettings.max_tokens, longest))
    lengths = [_read_length(tower.transformer, longest) for tower in (query, passage)]
    poolings = [_read_pooling(pooling) for pooling in (query.pooling, passage.pooling)]
    if len(set(lengths)) > 1 or len(set(poolings)) > 1 or query.normalize != passage.normalize:
        raise UserError(f"{path} has towers of different length, pooling or normalisation, which Dipole cannot keep")
    prompts = read_optional(path / "config_sentence_transformers.json").get("prompts", {})
    return EncoderSettings(
        pooling=poolings[0],
        normalize=query.normalize,
        max_tokens=lengths[0],
        query_prompt=prompts.get("query", ""),
        passage_prompt=prompts.get("document", ""),
        source_prompts=_read_source_prompts(prompts),
        towers="one" if query == passage else "two",
        projection_dim=read_json(query.dense / "config.json")["out_features"] if query.dense else None,
        matryoshka_dims=tuple(read_optional(path / "dipole.json").get("matryoshka_dims", ())),
    )


def _read_length(folder: Path, longest: int) -> int:
    tokenizer = read_optional(folder / "tokenizer_config.json")
    config = read_optional(folder / "sentence_bert_config.json")
    if config.get("query_length") or config.get("document_length"):
        raise UserError(f"{folder} cuts queries and documents at different lengths, which Dipole does not keep")
    # Some name more than there are places for: such texts would fail there, and are cut here.
    return int(min(config.get("max_seq_length") or tokenizer.get("model_max_length") or longest, longest))


def _read_pooling(folder: Path) -> Pooling:
    """Understand both spellings: one flag a mode, or `pooling_mode`."""
    config = read_json(folder / "config.json")
    named = _POOLING_NAMES.get(str(config.get("pooling_mode")))
    chosen = [mode for mode, key in _POOLING_KEYS.items() if config.get(key) or mode == named]
    if len(chosen) != 1 or config.get("include_prompt") is False:
        raise UserError(
            f"{folder / 'config.json'} asks for a pooling that Dipole does not read: {json.dumps(config)}"
        )
    return chosen[0]


def _read_source_prompts(prompts: Mapping[str, str]) -> dict[str, str]:
    sides = {route: side for side, route in ROUTES.items()}
    found = {}
    for name, prompt in prompts.items():
        source, _, route = name.rpartition(":")
        if source and route in sides:
            found[f"{source}:{sides[route]}"] = prompt
    return found


def write_prompts(path: Path, settings: EncoderSettings) -> None:
    """Write prompts under the names that `encode_query` and `encode_document` look for."""
    prompts = {"query": settings.query_prompt, "document": settings.passage_prompt}
    for name, prompt in settings.source_prompts.items():
        source, _, side = name.rpartition(":")
        prompts[f"{source}:{ROUTES['query' if side == 'query' else 'passage']}"] = prompt
    write_json(
        path / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def write_modules(path: Path, settings: EncoderSettings) -> dict[Side, Tower]:
    """Name the parts in `modules.json` and make their folders.

    Returns:
        Where each part belongs, both sides together where there is one tower.
    """
    names = [
        "Transformer",
        "Pooling",
        *["Dense"] * bool(settings.projection_dim),
        *["Normalize"] * settings.normalize,
    ]
    if settings.towers == "one":
        folders = ["", *(f"{number}_{name}" for number, name in enumerate(names) if number)]
        rows = [
            {"idx": number, "name": str(number), "path": folder, "type": _MODULE + name}
            for number, (name, folder) in enumerate(zip(names, folders, strict=True))
        ]
        sides: dict[Side, list[str]] = dict.fromkeys(ROUTES, folders)
    else:
        rows = [{"idx": 0, "name": "0", "path": "", "type": _MODULE + "Router"}]
        sides = {side: [f"{route}_{k}_{name}" for k, name in enumerate(names)] for side, route in ROUTES.items()}
        types = {
            folder: _MODULE + name for folders in sides.values() for folder, name in zip(folders, names, strict=True)
        }
        structure = {ROUTES[side]: folders for side, folders in sides.items()}
        parameters = {"default_route": "document", "allow_empty_key": True}
        router = {"types": types, "structure": structure, "parameters": parameters}
        write_json(path / "router_config.json", router)
    write_json(path / "modules.json", rows)
    for folder in {folder for folders in sides.values() for folder in folders if folder}:
        (path / folder).mkdir()
    return {
        side: make_tower(path, [(name, path / folder) for name, folder in zip(names, folders, strict=True)])
        for side, folders in sides.items()
    }


def write_pooling(folder: Path, settings: EncoderSettings, width: int) -> None:
    """Write one flag a mode, which old and new releases read."""
    flags = {key: mode == settings.pooling for mode, key in _POOLING_KEYS.items()}
    write_json(folder / "config.json", {"word_embedding_dimension": width, **flags})


def write_dense(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a projection: `weight`, and `bias` if it has one."""
    out_features, in_features = weights["weight"].shape
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": "bias" in weights,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / "config.json", config)
    named = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def read_dense(folder: Path) -> nn.Linear:
    """Read a projection.

    Raises:
        UserError: it does more than a linear layer, or its weights are missing or pickled.
    """
    config = read_json(folder / "config.json")
    activation = module_kind(config.get("activation_function") or "torch.nn.Tanh")
    keys = [config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")]
    if activation != "Identity" or config.get("use_residual") or keys != ["sentence_embedding"] * 2:
        raise UserError(f"{folder} is a Dense layer that Dipole does not read: {json.dumps(config)}")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    try:
        weights = load_file(folder / "model.safetensors")
        linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"{folder} is not a Dense layer that can be loaded here: {first_line}") from error
    return linear


def read_optional(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is none."""
    return dict(read_json(path)) if path.exists() else {}
