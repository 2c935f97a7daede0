"""A refresh from other sources, by a teacher, from a sample, and by a snapshot that has embedded before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, text_hash
from data_shards.writer import ShardWriter
from encoder.embed import embed_texts
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from index_build.cross_encoder import CrossEncoder
from index_build.index_config import IndexConfig
from index_build.mine import KnownPositives, MiningConfig, MiningReport, mine
from index_build.ray_pool import EmbedPool

pytestmark = pytest.mark.ray

TOPICS = 40
FREE: dict[str, Any] = {
    "candidates": "corpus",
    "max_relative_score": 1.0,
    "bm25_max_relative_score": 0,
    "per_query": 3,
    "depth": 60,
}


def corpus_passages() -> list[Passage]:
    return [
        Passage(id=f"p{k}", title=f"topic {k}", text=f"word{k} word{k + 1} about {k * k} and {k // 3}")
        for k in range(TOPICS)
    ]


def training_pairs() -> list[Pair]:
    passages = corpus_passages()
    foreign = Passage(id="foreign", text="word3 word4 that no corpus holds")
    pairs = [Pair(query_id=f"q{k}", query=f"word{k} about {k}", positives=(passages[k],)) for k in range(TOPICS)]
    return [*pairs, Pair(query_id="f", query="word3 that nobody holds", positives=(foreign,))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sources")
    with ShardWriter(place / "corpus", "corpus", samples_per_shard=15) as writer:
        for passage in corpus_passages():
            writer.add(passage)
    with ShardWriter(place / "train", "pairs", samples_per_shard=15) as writer:
        for pair in training_pairs():
            writer.add(pair)
    config = ScratchConfig(layers=1, width=32, heads=2, vocab_size=300)
    texts = [passage.content for passage in corpus_passages()]
    for seed, name in enumerate(("snapshot", "other")):
        save_snapshot(scratch_encoder(config, EncoderSettings(max_tokens=32), texts, seed=seed), place / name)
    _cross_encoder(place / "teacher", labels=1)
    return place


def _cross_encoder(folder: Path, labels: int) -> None:
    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "topic",
        "about",
        "and",
        "word",
        "##1",
        "##2",
        "1",
        "2",
        "3",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=48).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=48, num_labels=labels, **shape)
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        if value.is_floating_point() and value.dim() > 1:
            value.normal_(0, 0.5, generator=generator)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def pool() -> Iterator[EmbedPool]:
    with EmbedPool(workers=2) as pool:
        yield pool


def mined(place: Path, pool: EmbedPool, root: str, version: int = 1, **settings: Any) -> MiningReport:
    train = PairDataset(place / "train")
    snapshot, cache = settings.pop("snapshot", "snapshot"), settings.pop("cache", None)
    return mine(
        snapshot=place / snapshot,
        snapshot_step=7,
        pool=pool,
        train=train,
        known=KnownPositives(train),
        ordinals=np.arange(len(train)),
        corpus=place / "corpus",
        work_dir=place / "work",
        negatives_root=place / root,
        version=version,
        from_step=0,
        to_step=10,
        config=MiningConfig(**(FREE | settings)),
        index_config=IndexConfig(),
        cache_dir=None if cache is None else place / cache,
    )


def published(place: Path, root: str, version: int = 1) -> dict[str, list[Any]]:
    train = PairDataset(place / "train")
    found = NegativesVersion.open(place / root, version, train.dataset_id)
    shards, rows = train.locate(np.arange(len(train)))
    return {
        pair.query_id: found.mined(train.shard_stems[shard], row)
        for pair, shard, row in zip(train, shards.tolist(), rows.tolist(), strict=True)
    }


def refuse_known(found: dict[str, list[Any]]) -> None:
    for pair in training_pairs():
        texts = {text_hash(positive.text) for positive in pair.positives}
        assert not {text_hash(negative.passage.text) for negative in found[pair.query_id]} & texts


def test_before_there_is_a_snapshot_bm25_and_chance_give_negatives(place: Path, pool: EmbedPool) -> None:
    """Nothing is embedded: there is no such snapshot. The version says so."""
    report = mined(place, pool, "warm", sources=("bm25", "random"), snapshot="not there")
    assert list(report.seconds) == ["bm25", "search", "filter", "publish"]
    manifest = NegativesVersion.open(place / "warm", 1).manifest
    assert (manifest.sources, manifest.snapshot_hash, manifest.index) == (("bm25", "random"), "", {})
    found = published(place, "warm")
    refuse_known(found)
    assert report.queries_with_negatives == TOPICS + 1
    assert all(len(negatives) == 3 for negatives in found.values())
    scores = [negative.score for negative in found["q5"]]
    assert scores == sorted(scores, reverse=True)
    assert not (place / "work").exists()


def test_joined_sources_take_turns_and_are_scored_by_the_snapshot(place: Path, pool: EmbedPool) -> None:
    report = mined(place, pool, "joined", sources=("dense", "bm25", "random"))
    assert report.filters["repeated"] > 0
    found = published(place, "joined")
    refuse_known(found)
    encoder = load_encoder(place / "snapshot")
    for pair in training_pairs()[::8]:
        texts = [negative.passage.content for negative in found[pair.query_id]]
        wanted = embed_texts(encoder, texts, side="passage") @ embed_texts(encoder, [pair.query], side="query")[0]
        assert [negative.score for negative in found[pair.query_id]] == pytest.approx(wanted.tolist(), abs=2e-3)


def test_the_newest_embeddings_alone_are_kept_and_used_again(place: Path, pool: EmbedPool) -> None:
    """The same vectors: no part is written anew. Another snapshot takes their place."""
    mined(place, pool, "cached", 1, cache="cache")
    (first,) = (place / "cache").glob("embeddings-*")
    written = {path: path.stat().st_mtime_ns for path in first.glob("part-*")}
    assert len(written) == 9
    mined(place, pool, "cached", 2, cache="cache")
    assert {path: path.stat().st_mtime_ns for path in first.glob("part-*")} == written
    mined(place, pool, "cached", 3, cache="cache", snapshot="other")
    (second,) = (place / "cache").glob("embeddings-*")
    assert second != first
    assert not (place / "work").exists()


def test_what_of_the_last_version_is_still_hard_is_told(place: Path, pool: EmbedPool) -> None:
    """By the same snapshot and filters all of it; under a stricter margin a part; under none that passes nothing."""
    mined(place, pool, "worn", 1)
    assert "still_hard" not in NegativesVersion.open(place / "worn", 1).manifest.statistics
    assert mined(place, pool, "worn", 2).statistics["still_hard"] == 1.0
    assert 0 < mined(place, pool, "worn", 3, depth=20).statistics["still_hard"] < 1
    assert mined(place, pool, "worn", 4, max_score=-1.0).statistics["still_hard"] == 0.0


def test_a_sample_of_the_corpus_holds_all_positives(place: Path, pool: EmbedPool) -> None:
    report = mined(place, pool, "sampled", corpus_sample=10, per_query=60)
    assert report.index["ntotal"] == TOPICS + 1  # every passage is a positive of the stretch, and one is foreign
    refuse_known(published(place, "sampled"))
    assert not (place / "work").exists()


@pytest.mark.parametrize("settings", [{"sampling": "rank"}, {"sampling": "score"}, {"per_passage_max": 4}])
def test_the_same_inputs_give_the_same_bytes(place: Path, pool: EmbedPool, settings: dict[str, Any]) -> None:
    for root in ("once", "again"):
        shutil.rmtree(place / root, ignore_errors=True)
        mined(place, pool, root, sources=("dense", "bm25", "random"), **settings)
    for file in sorted((place / "once/v000001").glob("*.tar")):
        assert file.read_bytes() == (place / "again/v000001" / file.name).read_bytes()
    used = [negative.passage.id for negatives in published(place, "once").values() for negative in negatives]
    if "per_passage_max" in settings:
        assert max(map(used.count, used)) == 4


def test_a_cross_encoder_drops_what_it_likes_and_leaves_its_scores(place: Path, pool: EmbedPool) -> None:
    report = mined(place, pool, "taught", teacher=str(place / "teacher"), teacher_candidates=6)
    assert report.filters["teacher"] > 0
    assert report.filters["unscored"] > 0
    assert report.statistics["false_negatives_by"] == "teacher"
    assert "teacher" in report.seconds
    model = CrossEncoder(place / "teacher")
    found = published(place, "taught")
    for pair in training_pairs():
        limit = model.score([pair.query], [pair.positives[0].content], tokens_per_batch=512)[0]
        for negative in found[pair.query_id]:
            score = model.score([pair.query], [negative.passage.content], tokens_per_batch=512)[0]
            assert negative.teacher == pytest.approx(float(score), abs=1e-4)
            assert score <= limit + 1e-4
    assert sum(map(len, found.values())) == report.negatives > 20


def test_a_bi_encoder_may_be_the_teacher(place: Path, pool: EmbedPool) -> None:
    """The mining snapshot as its own teacher: its scores are the similarities."""
    mined(place, pool, "own", teacher=str(place / "snapshot"))
    negatives = [negative for some in published(place, "own").values() for negative in some]
    assert len(negatives) > 20
    assert [negative.teacher for negative in negatives] == pytest.approx([n.score for n in negatives], abs=2e-3)


def test_a_teacher_that_is_none_is_named(place: Path, pool: EmbedPool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mining.teacher .*nowhere is no model: it holds no config.json"):
        mined(place, pool, "none", teacher=str(tmp_path / "nowhere"))
    _cross_encoder(tmp_path / "two", labels=2)
    with pytest.raises(UserError, match="two has 2 labels; wanted a cross-encoder with one"):
        CrossEncoder(tmp_path / "two")
    _cross_encoder(tmp_path / "pickled", labels=1)
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled cannot be read as a cross-encoder"):
        CrossEncoder(tmp_path / "pickled")
