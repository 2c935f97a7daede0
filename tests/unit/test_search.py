"""Text in, passages out, and only where index, encoder and corpus belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from encoder.embed import embed_texts
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from index_build.index import build_index
from index_build.index_config import IndexConfig
from index_build.ray_worker import EmbedWorker, Snapshot
from index_build.search import Searcher
from tests.unit.inline_crew import embed

PASSAGES = [Passage(id=f"id{k}", title=f"title {k}", text=f"the text of number {k} and {k * k}") for k in range(50)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("search")
    with ShardWriter(place / "corpus", "corpus", samples_per_shard=20) as writer:
        for passage in PASSAGES:
            writer.add(passage)
    config = ScratchConfig(layers=1, width=16, heads=2, vocab_size=300)
    texts = [passage.content for passage in PASSAGES]
    for seed, name in enumerate(("snapshot", "other")):
        save_snapshot(scratch_encoder(config, EncoderSettings(max_tokens=32), texts, seed=seed), place / name)
    build_index(embed(place / "snapshot", place / "corpus", place / "embeddings"), place / "index", IndexConfig())
    return place


def test_hits_are_the_nearest_passages_with_their_texts(place: Path) -> None:
    texts = ["number 7", PASSAGES[33].content]
    found = Searcher(place / "index", place / "snapshot").search(texts, 5)
    encoder = load_encoder(place / "snapshot")
    queries = embed_texts(encoder, texts, side="query")
    scores = queries @ embed_texts(encoder, [passage.content for passage in PASSAGES], side="passage").T
    for hits, of in zip(found, scores, strict=True):
        assert [hit.score for hit in hits] == pytest.approx(np.sort(of)[::-1][:5].tolist(), abs=2e-3)
        for hit in hits:
            passage = PASSAGES[int(hit.id.removeprefix("id"))]
            assert (hit.title, hit.text) == (passage.title, passage.text)
            assert hit.score == pytest.approx(of[int(passage.id.removeprefix("id"))], abs=2e-3)
    assert found[1][0].id == "id33"  # a passage is nearest to itself


def test_no_more_hits_than_passages(place: Path) -> None:
    searcher = Searcher(place / "index", place / "snapshot")
    assert len(searcher.search(["number"], 500)[0]) == len(PASSAGES)
    with pytest.raises(UserError, match="k is 0, wanted at least 1"):
        searcher.search(["number"], 0)


def test_a_corpus_that_has_moved_is_found_where_it_is(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "corpus", tmp_path / "moved")
    assert Searcher(place / "index", place / "snapshot", tmp_path / "moved").search(["number 7"], 1)[0]


def test_what_does_not_belong_together_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other is sha256:\w+, but .*index was made by .*snapshot .*give that model"):
        Searcher(place / "index", place / "other")
    with ShardWriter(tmp_path / "changed", "corpus") as writer:
        writer.add(PASSAGES[0])
    with pytest.raises(UserError, match=r"changed is not the corpus that .*index was made from"):
        Searcher(place / "index", place / "snapshot", tmp_path / "changed")
    with pytest.raises(UserError, match="corpus is not a model"):
        Searcher(place / "index", place / "corpus")


def test_a_worker_notices_a_snapshot_that_changes_under_it(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "snapshot", tmp_path / "snapshot")
    pinned = Snapshot.at(tmp_path / "snapshot")
    shutil.copyfile(place / "other/model.safetensors", tmp_path / "snapshot/model.safetensors")
    worker = EmbedWorker(threads=1, precision="float32", tokens_per_batch=1024)
    with pytest.raises(UserError, match=r"snapshot is sha256:\w+ here, was sha256:\w+: it has changed meanwhile"):
        worker.embed_texts(pinned, ["a"], "query")


def test_a_worker_changes_its_encoder_with_the_snapshot(place: Path) -> None:
    worker = EmbedWorker(threads=1, precision="float32", tokens_per_batch=1024)
    for name in ("snapshot", "other", "snapshot"):
        found = worker.embed_texts(Snapshot.at(place / name), ["number 7"], "query")
        expected = embed_texts(load_encoder(place / name), ["number 7"], side="query")
        np.testing.assert_allclose(found, expected, atol=1e-6)
