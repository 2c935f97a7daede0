"""Invariant 7, *nothing executes*, and one clear line for what is no model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_shards.errors import UserError
from encoder.snapshot import load_encoder


@pytest.fixture
def copy(snapshot: Path, tmp_path: Path) -> Path:
    """A snapshot that may be broken."""
    shutil.copytree(snapshot, tmp_path / "model")
    return tmp_path / "model"


def refuse(path: Path, message: str) -> None:
    """Expect one line that says so."""
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(path)
    assert "\n" not in str(caught.value)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_nothing_executes_a_pickled_model_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    refuse(copy, "model is not a model that can be loaded here: .*model.safetensors")
    assert not (tmp_path / "executed").exists()
    pickle.loads((copy / name).read_bytes())
    assert (tmp_path / "executed").exists(), "the bomb is a dud"


def test_nothing_executes_a_real_pytorch_file_is_refused_too(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(load_encoder_weights(copy), copy / "pytorch_model.bin")
    refuse(copy, "can be loaded here: .*model.safetensors")


def load_encoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return weights of the right shapes."""
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    return {"embeddings.LayerNorm.weight": torch.ones(width)}


def test_nothing_executes_code_in_a_model_folder_is_not_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    refuse(copy, "is not a model that can be loaded here")
    assert not (tmp_path / "executed").exists()


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    refuse(tmp_path, "is not a model: it holds no config.json; give a snapshot or a transformers folder")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    refuse(tmp_path / "model", "is a file, not a model folder")


def test_a_name_that_cannot_be_found_is_no_model() -> None:
    refuse(Path("no-such-owner/no-such-model"), "^no-such-owner/no-such-model is not a model that can be loaded here")


def test_a_config_of_no_known_model_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "resistor"}')
    refuse(copy, "is not a model that can be loaded here")


def test_a_damaged_weights_file_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refuse(copy, "is not a model that can be loaded here")


def test_weights_with_a_gap_are_refused(copy: Path) -> None:
    """Transformers would fill it with random numbers and say so in a warning that nobody sees."""
    weights = load_file(copy / "model.safetensors")
    for name in ("encoder.layer.1.output.dense.weight", "encoder.layer.1.output.dense.bias"):
        del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refuse(copy, "is not a whole model: its weights lack encoder.layer.1.output.dense.bias and 1 more")


@pytest.mark.parametrize("kind", ["LayerNorm", "Dense"])
def test_other_modules_and_another_order_are_refused(copy: Path, kind: str) -> None:
    """Left out, they would give other vectors than sentence-transformers does, without a word."""
    modules = json.loads((copy / "modules.json").read_text())
    added = {"idx": 3, "name": "3", "path": "3", "type": f"sentence_transformers.models.{kind}"}
    (copy / "modules.json").write_text(json.dumps([*modules, added]))
    refuse(copy, f"Pooling, Normalize, {kind}; Dipole reads Transformer, Pooling, Dense and Normalize, in this order")


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False, "pooling_mode_cls_token": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "max"},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
    ids=["two at once", "max", "max, new spelling", "prompt left out"],
)
def test_a_pooling_that_is_not_ours_is_refused(copy: Path, pooling: dict[str, object]) -> None:
    (copy / "1_Pooling/config.json").write_text(json.dumps(pooling))
    refuse(copy, "asks for a pooling that Dipole does not read: {")


def test_damaged_settings_are_named(copy: Path) -> None:
    (copy / "modules.json").write_text("[")
    refuse(copy, "modules.json is not valid JSON")
