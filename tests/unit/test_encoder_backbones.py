"""Any transformers backbone: the same vectors here, after loading back, and in sentence-transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, LlamaTokenizer, T5Config, T5Model

from data_shards.errors import UserError
from encoder.backbone import is_bidirectional, is_decoder, position_limit
from encoder.embed import embed_texts
from encoder.model import Encoder, EncoderSettings, with_settings
from encoder.snapshot import load_encoder, save_snapshot
from encoder.tokenizer import append_end_token, ensure_pad_token
from tests.unit.tiny import TEXTS
from tests.unit.tiny_backbones import (
    ALL,
    DECODERS,
    ENCODERS,
    padded,
    tiny_backbone,
    tiny_kind,
    tiny_tokenizer,
    write_backbone,
)

SIDES = ("query", "passage")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check_peer(encoder: Encoder, path: Path) -> None:
    """Save, and compare with sentence-transformers, with what it saves again, and with what loads back here."""
    save_snapshot(encoder, path / "ours")
    peer = SentenceTransformer(str(path / "ours"), device="cpu", local_files_only=True)
    peer.save_pretrained(str(path / "theirs"), create_model_card=False)
    for side, encode in zip(SIDES, (peer.encode_query, peer.encode_document), strict=True):
        wanted = encode(TEXTS, show_progress_bar=False)
        assert np.isfinite(wanted).all()
        for name, found in {
            "ours": encoder,
            "back": load_encoder(path / "ours"),
            "returned": load_encoder(path / "theirs"),
        }.items():
            assert np.abs(embed_texts(found, TEXTS, side=side) - wanted).max() < 1e-5, (name, side)


def vectors(encoder: Encoder, texts: list[str] = TEXTS) -> np.ndarray:
    return embed_texts(encoder, texts, side="query")


@pytest.mark.parametrize("kind", ALL)
def test_sentence_transformers_gives_the_same_vectors(kind: str, tmp_path: Path) -> None:
    encoder = tiny_kind(tmp_path / "plain", kind)
    assert encoder.settings.pooling == ("last" if kind in DECODERS else "mean")
    spread = vectors(encoder)
    assert np.abs(spread - spread[0]).max(axis=1)[1:].min() > 0.05, "vectors that do not differ prove nothing"
    check_peer(encoder, tmp_path)


@pytest.mark.parametrize("kind", ALL)
def test_every_parameter_gets_a_gradient(kind: str, tmp_path: Path) -> None:
    """DDP rejects unused parameters: a pooler, for one."""
    encoder = tiny_kind(tmp_path / "plain", kind).train()
    (encoder(*padded(encoder, TEXTS)) * torch.randn(len(TEXTS), encoder.dim)).sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("kind", DECODERS)
def test_a_plain_decoder_ends_each_text_with_its_end_token(kind: str, tmp_path: Path) -> None:
    encoder = tiny_kind(tmp_path / "plain", kind)
    end = encoder.tokenizer.eos_token_id
    for longest in (5, None):
        for ids in encoder.tokenize(TEXTS, "query", longest):
            assert ids[-1] == end
            assert end not in ids[:-1]
            assert len(ids) <= (longest or 128)
    assert encoder.tokenizer.pad_token_id == end
    save_snapshot(encoder, tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").tokenize(TEXTS, "query") == encoder.tokenize(TEXTS, "query")


@pytest.mark.parametrize(("pooling", "ended"), [("last", True), ("mean", False)])
def test_the_end_token_comes_with_pooling_of_the_last(pooling: Any, ended: bool, tmp_path: Path) -> None:
    """And not into a model that sentence-transformers knows: its vectors would be others there."""
    write_backbone(tmp_path / "plain", "llama")
    encoder = load_encoder(tmp_path / "plain", settings=EncoderSettings(max_tokens=16, pooling=pooling))
    assert {ids[-1] == encoder.tokenizer.eos_token_id for ids in encoder.tokenize(TEXTS[:-1], "query")} == {ended}
    if not ended:
        save_snapshot(encoder, tmp_path / "saved")
        edit(tmp_path / "saved/1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)
        found = load_encoder(tmp_path / "saved")
        assert found.settings.pooling == "last"
        assert found.tokenize(TEXTS, "query") == encoder.tokenize(TEXTS, "query")


def test_a_model_that_asks_for_lower_case_gets_it(tmp_path: Path) -> None:
    """The switch is an old one, for tokenizers that keep the case."""
    encoder = tiny_kind(tmp_path / "plain", "bert")
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    save_snapshot(encoder, tmp_path / "saved")
    edit(tmp_path / "saved/sentence_bert_config.json", do_lower_case=True)
    found = load_encoder(tmp_path / "saved")
    assert found.tokenize(["Sort A List"], "query") != encoder.tokenize(["Sort A List"], "query")
    peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    assert np.abs(vectors(found, ["Sort A List"]) - peer.encode_query(["Sort A List"])).max() < 1e-5
    check_peer(found, tmp_path)


def test_a_tokenizer_that_ends_texts_already_gets_no_second_end() -> None:
    tokenizer = tiny_tokenizer("bert")
    before = tokenizer(TEXTS)["input_ids"]
    append_end_token(tokenizer)
    assert tokenizer(TEXTS)["input_ids"] == before


def test_a_template_with_a_begin_keeps_it(tmp_path: Path) -> None:
    """As Llama 3 has it: a template that begins texts and does not end them."""
    tokenizer = tiny_tokenizer("bert")
    tokenizer.sep_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B:1", special_tokens=[("[CLS]", 2)]
    )
    begun = tokenizer("sort a list")["input_ids"]
    append_end_token(tokenizer)
    assert tokenizer("sort a list")["input_ids"] == [*begun, 3]
    assert len(tokenizer("sort a list", truncation=True, max_length=3)["input_ids"]) == 3
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("sort a list")["input_ids"] == [*begun, 3]


@pytest.mark.parametrize("switches", [{}, {"add_bos_token": True, "add_eos_token": False}], ids=["none", "Llama 2"])
def test_the_end_survives_a_tokenizer_with_switches_of_its_own(switches: dict[str, bool], tmp_path: Path) -> None:
    """Transformers may build the template anew from them, without a begin or without the end."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
    LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=True).save_pretrained(tmp_path / "plain")
    edit(tmp_path / "plain/tokenizer_config.json", **switches)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer("a a")["input_ids"] == [1, 5, 5]
    append_end_token(tokenizer)
    assert tokenizer("a a")["input_ids"] == [1, 5, 5, 2]
    tokenizer.save_pretrained(tmp_path / "saved")
    found = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert found("a a")["input_ids"] == [1, 5, 5, 2]
    assert found("a a a a", truncation=True, max_length=4)["input_ids"] == [1, 5, 5, 2]


def test_a_tokenizer_with_nothing_to_pad_with_is_refused() -> None:
    tokenizer = tiny_tokenizer("llama")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="the tokenizer of m has neither a padding nor an end token; set pad_token"):
        ensure_pad_token(tokenizer, "m")


@pytest.mark.parametrize("kind", DECODERS)
def test_a_bidirectional_decoder_looks_ahead_here_and_in_sentence_transformers(kind: str, tmp_path: Path) -> None:
    causal = tiny_kind(tmp_path / "plain", kind)
    # The first token's vector tells whether it saw the others.
    first = with_settings(causal, EncoderSettings(pooling="cls", max_tokens=16))
    one, other = vectors(first, ["sort a list", "sort a file"])
    assert np.abs(one - other).max() < 1e-6
    ahead = with_settings(causal, dataclasses.replace(first.settings, bidirectional=True))
    one, other = vectors(ahead, ["sort a list", "sort a file"])
    assert np.abs(one - other).max() > 0.01
    check_peer(ahead, tmp_path)
    found = load_encoder(tmp_path / "ours")
    assert found.settings.bidirectional
    assert is_bidirectional(found.backbone)
    # And a batch without padding, for which no mask is built that could show the way.
    peer = SentenceTransformer(str(tmp_path / "ours"), device="cpu", local_files_only=True)
    assert np.abs(peer.encode_query(["sort a list"]) - one).max() < 1e-5


@pytest.mark.parametrize("kind", ENCODERS)
def test_bidirectional_is_for_decoders(kind: str) -> None:
    backbone = tiny_backbone(kind)
    assert not is_decoder(backbone)
    with pytest.raises(UserError, match=f"encoder.bidirectional is for decoders, and {kind} looks both ways already"):
        Encoder(backbone, tiny_tokenizer(kind), EncoderSettings(max_tokens=16, bidirectional=True))


def test_a_decoder_that_does_not_heed_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that builds its own causal mask would silently stay as it is."""
    backbone = tiny_backbone("llama")
    plain = type(backbone).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.config.is_causal = True
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(backbone), "forward", forward)
    with pytest.raises(UserError, match="transformers cannot run llama with bidirectional attention"):
        Encoder(backbone, tiny_tokenizer("llama"), EncoderSettings(max_tokens=16, bidirectional=True))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted_mean"])
def test_a_tokenizer_that_pads_on_the_left_gives_the_same_vectors(kind: str, pooling: Any, tmp_path: Path) -> None:
    """Where positions are counted from the row's begin, sentence-transformers' own padding would shift them."""
    edit(write_backbone(tmp_path / "plain", kind) / "tokenizer_config.json", padding_side="left")
    encoder = load_encoder(tmp_path / "plain", settings=EncoderSettings(max_tokens=16, pooling=pooling))
    assert encoder.tokenizer.padding_side == "left"
    check_peer(encoder, tmp_path)


def test_positions_behind_the_padding_id_leave_less_room() -> None:
    limits = {kind: position_limit(tiny_backbone(kind)) for kind in ALL}
    assert limits == {kind: {"xlm-roberta": 63, "mpnet": 62}.get(kind, 64) for kind in ALL}


def test_a_length_beyond_the_positions_is_cut_to_them(tmp_path: Path) -> None:
    """Some published models name their position table's size, which is more than it holds."""
    made = Encoder(tiny_backbone("mpnet"), tiny_tokenizer("mpnet"), EncoderSettings(max_tokens=16))
    save_snapshot(made, tmp_path / "a")
    edit(tmp_path / "a" / "sentence_bert_config.json", max_seq_length=64)
    encoder = load_encoder(tmp_path / "a")
    assert encoder.settings.max_tokens == 62
    assert np.isfinite(embed_texts(encoder, ["sort " * 99], side="query")).all()


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=200, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    T5Model(config).save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="^t5 is an encoder with a decoder behind it, which Dipole cannot"):
        load_encoder(tmp_path)
