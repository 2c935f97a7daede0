"""Two towers, a projection, shorter vectors and prompts by source: what each adds, keeps and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from data_shards.errors import UserError
from encoder.embed import embed_texts
from encoder.lora import LoraConfig, add_lora
from encoder.model import Encoder, EncoderSettings, reinitialised, with_settings
from encoder.snapshot import load_encoder, save_snapshot, snapshot_hash
from encoder.tokenizer import load_counter
from tests.unit.tiny import TEXTS, tiny_encoder
from tests.unit.tiny_backbones import padded


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def both(encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of the same texts as queries and as passages."""
    return embed_texts(encoder, TEXTS, side="query"), embed_texts(encoder, TEXTS, side="passage")


def test_two_towers_start_as_one_and_share_nothing() -> None:
    encoder = tiny_encoder(towers="two", projection_dim=6)
    one = tiny_encoder(projection_dim=6)
    assert len(list(encoder.parameters())) == 2 * len(list(one.parameters()))
    query, passage = both(encoder)
    assert np.array_equal(query, passage)
    encoder.train()(*padded(encoder, TEXTS), "passage").sum().backward()
    touched = {name for name, value in encoder.named_parameters() if value.grad is not None}
    assert touched == {name for name, _ in encoder.named_parameters() if name.startswith("passage_")}
    with torch.no_grad():
        for value in encoder.passage_backbone.parameters():
            value += 0.1 * torch.randn_like(value)
    moved_query, moved_passage = both(encoder)
    assert np.array_equal(moved_query, query)
    assert np.abs(moved_passage - passage).max() > 0.01


def test_one_tower_ignores_the_side(encoder: Encoder) -> None:
    ids, mask = padded(encoder, TEXTS)
    assert torch.equal(encoder(ids, mask, "passage"), encoder(ids, mask))


def test_every_part_of_two_towers_is_in_the_hash(tmp_path: Path) -> None:
    hashes = set()
    for part in (None, "backbone", "projection", "passage_backbone", "passage_projection"):
        encoder = tiny_encoder(towers="two", projection_dim=6)
        encoder.tokenizer = load_encoder(tmp_path / "None").tokenizer if part else encoder.tokenizer
        if part:
            with torch.no_grad():
                next(getattr(encoder, part).parameters())[0, 0] += 1e-6
        hashes.add(save_snapshot(encoder, tmp_path / str(part)))
    assert len(hashes) == 5
    digest = snapshot_hash(tmp_path / "None")
    assert save_snapshot(load_encoder(tmp_path / "None"), tmp_path / "again") == digest
    edit(tmp_path / "again/router_config.json", parameters={"default_route": "query"})
    assert snapshot_hash(tmp_path / "again") != digest


def test_a_counter_reads_two_towers(tmp_path: Path) -> None:
    encoder = tiny_encoder(towers="two")
    save_snapshot(encoder, tmp_path / "two")
    count, longest = load_counter(tmp_path / "two")
    assert longest == 16
    assert count(TEXTS[:1]) == [len(encoder.tokenize(TEXTS[:1], "query")[0])]


def test_the_untrained_baseline_has_two_towers_too() -> None:
    fresh = reinitialised(tiny_encoder(towers="two", projection_dim=6), seed=5)
    assert fresh.passage_backbone is not None
    assert fresh.dim == 6


def test_a_projection_changes_length_and_keeps_angles_as_well_as_it_can() -> None:
    encoder = tiny_encoder(projection_dim=16, normalize=False)
    assert encoder.projection is not None
    assert torch.allclose(encoder.projection.weight @ encoder.projection.weight.T, torch.eye(16), atol=1e-5)
    narrow, bare = tiny_encoder(projection_dim=6), tiny_encoder(normalize=False)
    ids, mask = padded(bare, TEXTS)
    assert narrow.projection is not None
    wanted = nn.functional.normalize(bare(ids, mask) @ narrow.projection.weight.T, dim=1)
    assert narrow.dim == 6
    assert torch.allclose(narrow(ids, mask), wanted, atol=1e-6)


def test_a_projection_computes_in_float32_around_autocast() -> None:
    encoder = tiny_encoder(projection_dim=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vector_BD = encoder(*padded(encoder, TEXTS))
    assert vector_BD.dtype == torch.float32
    assert (vector_BD.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("settings", [{}, {"projection_dim": 12}], ids=["plain", "projection"])
def test_shorter_vectors_equal_those_of_sentence_transformers(
    settings: dict[str, Any], normalize: bool, tmp_path: Path
) -> None:
    encoder = tiny_encoder(normalize=normalize, matryoshka_dims=(4, 8), **settings)
    save_snapshot(encoder, tmp_path / "model")
    assert load_encoder(tmp_path / "model").settings.matryoshka_dims == (4, 8)
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    wanted = peer.encode_query(TEXTS, truncate_dim=4, normalize_embeddings=normalize)
    found = embed_texts(encoder, TEXTS, side="query", dim=4)
    assert found.shape == (len(TEXTS), 4)
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("dim", [0, 17])
def test_more_dimensions_than_there_are_cannot_be_asked_for(dim: int, encoder: Encoder) -> None:
    with pytest.raises(UserError, match=f"this encoder has 16 dimensions; ask for 1 to 16 of them, not {dim}"):
        embed_texts(encoder, TEXTS, side="query", dim=dim)


def test_a_source_s_prompt_takes_the_place_of_its_side_s() -> None:
    encoder = tiny_encoder(query_prompt="sort ", source_prompts={"tldr:query": "file ", "x:passage": "list "})
    bare = Encoder(encoder.backbone, encoder.tokenizer, EncoderSettings(max_tokens=16))
    found = encoder.tokenize(["a", "b", "c"], "query", sources=["tldr", "x", ""])
    assert found == bare.tokenize(["file a", "sort b", "sort c"], "query")
    assert encoder.tokenize(["a", "b"], "passage", sources=["tldr", "x"]) == bare.tokenize(["a", "list b"], "query")
    assert (
        encoder.tokenize(["a b c"], "query", 4, sources=["tldr"])[0] == bare.tokenize(["file a b c"], "query", 4)[0]
    )
    with pytest.raises(ValueError, match="shorter"):
        encoder.tokenize(["a", "b"], "query", sources=["x"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection_dim": 0}, "encoder projection_dim must be at least 1, came 0"),
        ({"matryoshka_dims": (8, 0)}, "encoder matryoshka_dims must be at least 1, came 0"),
        ({"source_prompts": {"tldr": "x"}}, "are named SOURCE:query or SOURCE:passage, came 'tldr'"),
        ({"source_prompts": {":query": "x"}}, "are named SOURCE:query or SOURCE:passage, came ':query'"),
        ({"source_prompts": {"a:document": "x"}}, "are named SOURCE:query or SOURCE:passage, came 'a:document'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EncoderSettings(**settings)


def test_a_size_that_the_encoder_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="matryoshka_dims asks for 32 dimensions and this encoder has 16; drop it"):
        tiny_encoder(matryoshka_dims=(8, 32))
    with pytest.raises(UserError, match="asks for 8 dimensions and this encoder has 6"):
        tiny_encoder(matryoshka_dims=(8,), projection_dim=6)


def test_settings_can_be_hashed_and_compared() -> None:
    one, same, other = (EncoderSettings(source_prompts={"a:query": text}) for text in ("x", "x", "y"))
    assert one == same != other
    assert hash(one) == hash(same)


def test_other_settings_keep_the_parts() -> None:
    encoder = tiny_encoder(towers="two", projection_dim=6)
    with torch.no_grad():
        next(encoder.passage_backbone.parameters())[:] += 0.5
    other = with_settings(encoder, EncoderSettings(towers="two", projection_dim=6, max_tokens=16, query_prompt="q "))
    for name, value in encoder.state_dict().items():
        assert other.state_dict()[name] is value or torch.equal(other.state_dict()[name], value)
    assert other.tokenize(["a"], "query") == encoder.tokenize(["q a"], "query")


def test_a_projection_that_two_towers_are_given_is_one_for_each() -> None:
    bare = tiny_encoder(towers="two")
    encoder = with_settings(bare, EncoderSettings(towers="two", projection_dim=6, max_tokens=16))
    assert [vectors.shape for vectors in both(encoder)] == [(len(TEXTS), 6)] * 2
    assert encoder.projection is not None
    assert encoder.passage_projection is not None
    assert encoder.passage_projection.weight is not encoder.projection.weight


def test_other_settings_keep_adapters_and_attention(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    add_lora(encoder, LoraConfig(rank=1))
    encoder.set_attention("packed")
    other = with_settings(encoder, EncoderSettings(max_tokens=16, pooling="cls"))
    save_snapshot(other, tmp_path / "merged")
    wanted = embed_texts(load_encoder(tmp_path / "merged"), TEXTS, side="query")
    assert np.abs(embed_texts(other, TEXTS, side="query") - wanted).max() < 1e-6


def test_other_settings_cannot_take_a_part_away() -> None:
    encoder = tiny_encoder(towers="two", projection_dim=6)
    with pytest.raises(UserError, match="this model has two towers; set encoder.towers to two, or leave it out"):
        with_settings(encoder, EncoderSettings(max_tokens=16, projection_dim=6))
    for dim in (7, None):
        with pytest.raises(UserError, match="projects to 6 dimensions; set encoder.projection_dim to that, or leave"):
            with_settings(encoder, EncoderSettings(max_tokens=16, towers="two", projection_dim=dim))


def test_given_settings_cannot_take_a_tower_away_either(two: Path) -> None:
    """Else the passages' tower would be written over the queries' in the next snapshot."""
    with pytest.raises(UserError, match="this model has two towers"):
        load_encoder(two, settings=EncoderSettings(max_tokens=16))
    settings = EncoderSettings(max_tokens=16, towers="two", projection_dim=6, pooling="cls")
    assert load_encoder(two, settings=settings).settings == settings


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A snapshot of two towers with a projection, that may be broken."""
    save_snapshot(tiny_encoder(towers="two", projection_dim=6), tmp_path / "model")
    return tmp_path / "model"


def refuse(path: Path, message: str) -> None:
    """Expect one line that says so."""
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(path)
    assert "\n" not in str(caught.value)


def test_routes_that_are_no_sides_are_refused(two: Path) -> None:
    router = json.loads((two / "router_config.json").read_text())
    structure = {"text": router["structure"]["query"], "image": router["structure"]["document"]}
    edit(two / "router_config.json", structure=structure)
    refuse(two, "model routes text, image; Dipole reads query and document alone")


@pytest.mark.parametrize("name", ["../model", "/etc"])
def test_a_part_outside_of_the_model_is_refused(two: Path, name: str) -> None:
    shutil.copytree(two / "query_0_Transformer", two.parent / "elsewhere")
    router = json.loads((two / "router_config.json").read_text())
    name = "../elsewhere" if name == "../model" else name
    router["types"][name] = "sentence_transformers.models.Transformer"
    router["structure"]["query"][0] = name
    (two / "router_config.json").write_text(json.dumps(router))
    refuse(two, f"names a part outside of itself: {name}")


def test_towers_that_differ_in_more_than_weights_are_refused(two: Path) -> None:
    edit(two / "query_0_Transformer/sentence_bert_config.json", max_seq_length=9)
    refuse(two, "has towers of different length, pooling or normalisation")


def test_lengths_by_side_are_refused(two: Path) -> None:
    edit(two / "query_0_Transformer/sentence_bert_config.json", query_length=9)
    refuse(two, "cuts queries and documents at different lengths, which Dipole does not keep")


def test_towers_with_different_tokenizers_are_refused(two: Path) -> None:
    encoder = load_encoder(two)
    encoder.tokenizer.add_tokens(["dipole"])
    encoder.tokenizer.save_pretrained(two / "document_0_Transformer")
    refuse(two, "has towers with different tokenizers; Dipole keeps one for both")


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "torch.nn.modules.activation.Tanh"},
        {"activation_function": None},
        {"use_residual": True},
        {"module_input_name": "token_embeddings"},
    ],
)
def test_a_dense_layer_that_is_more_than_linear_is_refused(two: Path, change: dict[str, Any]) -> None:
    edit(two / "query_2_Dense/config.json", **change)
    refuse(two, "query_2_Dense is a Dense layer that Dipole does not read: {")


def test_a_dense_layer_without_safe_weights_is_refused(two: Path) -> None:
    weights = load_file(two / "query_2_Dense/model.safetensors")
    (two / "query_2_Dense/model.safetensors").unlink()
    torch.save(weights, two / "query_2_Dense/pytorch_model.bin")
    refuse(two, "query_2_Dense is not a Dense layer that can be loaded here")


def test_a_dense_layer_with_a_bias_is_read(tmp_path: Path) -> None:
    """Ours has none; models made elsewhere do."""
    save_snapshot(tiny_encoder(projection_dim=6), tmp_path / "model")
    dense = tmp_path / "model/2_Dense"
    weights = load_file(dense / "model.safetensors") | {"linear.bias": torch.arange(6.0)}
    save_file(weights, dense / "model.safetensors")
    edit(dense / "config.json", bias=True)
    encoder = load_encoder(tmp_path / "model")
    save_snapshot(encoder, tmp_path / "again")
    for name in ("model", "again"):
        peer = SentenceTransformer(str(tmp_path / name), device="cpu", local_files_only=True)
        assert np.abs(embed_texts(encoder, TEXTS, side="query") - peer.encode_query(TEXTS)).max() < 1e-5
