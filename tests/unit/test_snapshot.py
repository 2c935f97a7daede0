"""Snapshots: what sentence-transformers loads gives our vectors; the hash changes with them and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from encoder.embed import embed_texts
from encoder.model import Encoder, EncoderSettings
from encoder.snapshot import load_encoder, save_snapshot, snapshot_hash, snapshot_step
from tests.unit.tiny import TEXTS, tiny_encoder

VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "last": {"pooling": "last"},
    "weighted mean": {"pooling": "weighted_mean"},
    "prompts": {"query_prompt": "find: ", "passage_prompt": "code "},
    "not normalised": {"normalize": False},
    "short": {"max_tokens": 5},
    "source prompts": {"query_prompt": "find: ", "source_prompts": {"tldr:query": "sort ", "a:b:passage": "file "}},
    "projection": {"projection_dim": 6},
    "projection, not normalised": {"projection_dim": 6, "normalize": False},
    "two towers": {"towers": "two"},
    "two towers in full": {
        "towers": "two",
        "projection_dim": 6,
        "pooling": "cls",
        "query_prompt": "find: ",
        "source_prompts": {"tldr:passage": "code "},
    },
}


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tell_towers_apart(encoder: Encoder) -> None:
    """Change the passages' tower, a copy until now."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name.startswith("passage_"):
                value += 0.1 * torch.randn_like(value)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_sentence_transformers_gives_the_same_vectors(settings: dict[str, Any], tmp_path: Path) -> None:
    """Ours against theirs of our snapshot, and ours of what they save again."""
    encoder = tiny_encoder(**settings)
    tell_towers_apart(encoder)
    save_snapshot(encoder, tmp_path / "ours")
    peer = SentenceTransformer(str(tmp_path / "ours"), device="cpu", local_files_only=True)
    peer.save_pretrained(str(tmp_path / "theirs"), create_model_card=False)
    returned = load_encoder(tmp_path / "theirs")
    assert returned.settings == encoder.settings
    for side, encode in (("query", peer.encode_query), ("passage", peer.encode_document)):
        wanted = encode(TEXTS, show_progress_bar=False)
        for found in (encoder, load_encoder(tmp_path / "ours"), returned):
            assert np.abs(embed_texts(found, TEXTS, side=side) - wanted).max() < 1e-5
    for name, prompt in encoder.settings.source_prompts.items():
        route, sources = name.replace("passage", "document"), [name.rpartition(":")[0]] * len(TEXTS)
        assert peer.prompts[route] == prompt
        side = "query" if route.endswith("query") else "passage"
        wanted = peer.encode(TEXTS, prompt_name=route, task=route.rpartition(":")[2])
        rows = encoder.tokenize(TEXTS, side, sources=sources)
        with torch.no_grad():
            found = torch.cat([encoder(torch.tensor([ids]), torch.ones(1, len(ids)), side) for ids in rows])
        assert np.abs(found.numpy() - wanted).max() < 1e-5


def test_without_a_length_the_tokenizer_and_the_backbone_decide(snapshot: Path, tmp_path: Path) -> None:
    save_snapshot(load_encoder(snapshot), tmp_path / "model")
    (tmp_path / "model/sentence_bert_config.json").write_text("{}")
    assert load_encoder(tmp_path / "model").settings.max_tokens == 16
    edit(tmp_path / "model/tokenizer_config.json", model_max_length=10**30)
    assert load_encoder(tmp_path / "model").settings.max_tokens == 128


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    encoder = tiny_encoder(query_prompt="q: ", pooling="last")
    digest = save_snapshot(encoder, tmp_path / "a", step=40)
    found = load_encoder(tmp_path / "a")
    assert found.settings == encoder.settings
    assert not found.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert snapshot_step(tmp_path / "a") == 40
    assert json.loads((tmp_path / "a/dipole.json").read_text()) == {"step": 40, "hash": digest}
    assert digest.startswith("sha256:")


def test_a_plain_transformers_folder_loads_with_the_default_settings(snapshot: Path, tmp_path: Path) -> None:
    encoder = load_encoder(snapshot)
    encoder.backbone.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    found = load_encoder(tmp_path)
    assert found.settings == EncoderSettings()
    assert snapshot_step(tmp_path) == 0
    longer = Encoder(encoder.backbone, encoder.tokenizer, EncoderSettings())
    wanted = embed_texts(longer, TEXTS, side="query")
    assert np.array_equal(embed_texts(found, TEXTS, side="query"), wanted)


def test_given_settings_take_the_place_of_the_folder_s_own(snapshot: Path) -> None:
    settings = EncoderSettings(pooling="cls", max_tokens=9)
    assert load_encoder(snapshot, settings=settings).settings == settings


def test_the_hash_survives_loading_using_and_saving_again(snapshot: Path, tmp_path: Path) -> None:
    """A tokenizer's last call leaves truncation and padding in it, which must not reach the hash."""
    digest = snapshot_hash(snapshot)
    encoder = load_encoder(snapshot)
    encoder.tokenize(TEXTS, "query", 5)
    encoder.tokenizer(TEXTS, padding=True, truncation=True, max_length=7)
    assert save_snapshot(encoder, tmp_path / "used", step=123) == digest
    assert snapshot_hash(tmp_path / "used") == digest
    assert save_snapshot(load_encoder(tmp_path / "used"), tmp_path / "again") == digest
    assert len(encoder.tokenize(TEXTS[-1:], "query")[0]) == 16


def test_the_hash_changes_with_all_that_decides_a_vector(snapshot: Path, tmp_path: Path) -> None:
    base = load_encoder(snapshot)
    variants = {"same": base}
    for name, settings in VARIANTS.items():
        if name != "mean":
            variants[name] = Encoder(base.backbone, base.tokenizer, EncoderSettings(**{"max_tokens": 16, **settings}))
    one_prompt = EncoderSettings(max_tokens=16, passage_prompt="find: ")
    variants["one prompt"] = Encoder(base.backbone, base.tokenizer, one_prompt)
    hashes = {name: save_snapshot(encoder, tmp_path / name) for name, encoder in variants.items()}
    nudged = load_encoder(snapshot)
    with torch.no_grad():
        next(nudged.parameters())[0, 0] += 1e-6
    hashes["weights"] = save_snapshot(nudged, tmp_path / "weights")
    other = load_encoder(snapshot)
    other.tokenizer.add_tokens(["dipole"])
    hashes["tokenizer"] = save_snapshot(other, tmp_path / "tokenizer")
    assert hashes["same"] == snapshot_hash(snapshot)
    assert len(set(hashes.values())) == len(hashes), hashes


def test_the_hash_does_not_change_with_what_decides_nothing(snapshot: Path, tmp_path: Path) -> None:
    digest = save_snapshot(load_encoder(snapshot), tmp_path / "a")
    (tmp_path / "a/README.md").write_text("about")
    edit(tmp_path / "a/dipole.json", step=9)
    assert snapshot_hash(tmp_path / "a") == digest


def test_an_interrupted_save_leaves_nothing(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up after the weights, while the tokenizer is written."""
    encoder = load_encoder(snapshot)
    seen = []

    def fail(folder: Path, *_: object, **__: object) -> None:
        seen.extend(path.name for path in Path(folder).iterdir())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoder.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(encoder, tmp_path / "a")
    assert "model.safetensors" in seen
    assert list(tmp_path.iterdir()) == []


def test_a_hub_name_brings_the_model_s_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pooling and prompts too: fetched once, it is a folder like any other."""
    encoder = tiny_encoder(pooling="cls", query_prompt="find: ", towers="two")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--model"
    save_snapshot(encoder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    found = load_encoder("owner/model")
    assert found.settings == encoder.settings
    wanted = embed_texts(encoder, TEXTS, side="query")
    assert np.abs(embed_texts(found, TEXTS, side="query") - wanted).max() < 1e-6


def test_a_snapshot_is_never_overwritten(snapshot: Path, tmp_path: Path) -> None:
    digest = save_snapshot(load_encoder(snapshot), tmp_path / "a")
    with pytest.raises(FileExistsError, match="a is there already"):
        save_snapshot(tiny_encoder(seed=9), tmp_path / "a")
    assert snapshot_hash(tmp_path / "a") == digest
