"""Invariant 4, *negatives are negative*, over a whole refresh with real workers, index and published version."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.atomic import read_json
from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Pair, Passage, text_hash
from data_shards.writer import ShardWriter
from encoder.embed import embed_texts
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from index_build.index_config import IndexConfig
from index_build.mine import KnownPositives, MiningConfig, MiningReport, mine
from index_build.ray_pool import EmbedPool

pytestmark = pytest.mark.ray

TOPICS, ALL = 60, 1_000
SHARE = 1.0  # of an untrained encoder the similarities lie close together: at 0.95 next to nothing is left
TOLERANCE = 2e-3  # corpus vectors are float16


def words(seed: str, count: int) -> str:
    drawn = random.Random(seed)
    return " ".join(f"word{drawn.randrange(120)}" for _ in range(count))


def corpus_passages() -> list[Passage]:
    """For each topic a first and a second passage, and a copy of each under another id, in another case."""
    passages = []
    for topic in range(TOPICS):
        first = Passage(id=f"first{topic}", title=f"topic {topic}", text=words(f"a{topic}", 12))
        second = Passage(id=f"second{topic}", title=f"topic {topic}", text=words(f"b{topic}", 12))
        passages += [first, second]
        passages.append(Passage(id=f"first-copy{topic}", title=first.title.upper(), text=f" {first.text.upper()}"))
        passages.append(Passage(id=f"second-copy{topic}", title="", text=second.text))
    return passages


def training_pairs() -> list[Pair]:
    """Each topic is asked twice, in other case and spacing: each pair names but one of the topic's passages.

    Every tenth topic's second pair has a positive that the corpus does not hold.
    """
    of = {passage.id: passage for passage in corpus_passages()}
    pairs = []
    for topic in range(TOPICS):
        query = f"about {of[f'first{topic}'].text[:40]}"
        foreign = Passage(id=f"foreign{topic}", text=words(f"c{topic}", 10))
        second = foreign if topic % 10 == 0 else of[f"second{topic}"]
        pairs.append(Pair(query_id=f"{topic}a", query=query, positives=(of[f"first{topic}"],)))
        pairs.append(Pair(query_id=f"{topic}b", query=f"  {query.upper()}", positives=(second,)))
    return pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mining")
    with ShardWriter(place / "corpus", "corpus", samples_per_shard=70) as writer:
        for passage in corpus_passages():
            writer.add(passage)
    with ShardWriter(place / "train", "pairs", samples_per_shard=50) as writer:
        for pair in training_pairs():
            writer.add(pair)
    config = ScratchConfig(layers=1, width=32, heads=2, vocab_size=400)
    texts = [passage.content for passage in corpus_passages()]
    save_snapshot(scratch_encoder(config, EncoderSettings(max_tokens=48), texts, seed=0), place / "snapshot")
    return place


@pytest.fixture(scope="module")
def pool() -> Iterator[EmbedPool]:
    with EmbedPool(workers=2) as pool:
        yield pool


def mined(place: Path, pool: EmbedPool, root: str, version: int = 1, **settings: Any) -> MiningReport:
    train = PairDataset(place / "train")
    return mine(
        snapshot=place / "snapshot",
        snapshot_step=40,
        pool=pool,
        train=train,
        known=KnownPositives(train),
        ordinals=np.arange(3, len(train)),
        corpus=place / "corpus",
        work_dir=place / "work",
        negatives_root=place / root,
        version=version,
        from_step=45,
        to_step=60,
        config=MiningConfig(**({"candidates": "corpus"} | settings)),
        index_config=IndexConfig(),
    )


def published(place: Path, root: str, version: int = 1) -> dict[int, list[tuple[Passage, float]]]:
    train = PairDataset(place / "train")
    found = NegativesVersion.open(place / root, version, dataset_id=train.dataset_id)
    shards, rows = train.locate(np.arange(len(train)))
    return {
        ordinal: [(negative.passage, negative.score) for negative in found.mined(train.shard_stems[shard], row)]
        for ordinal, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True))
    }


def test_negatives_are_negative(place: Path, pool: EmbedPool) -> None:
    """All that the filters keep, for every query: exactly what is no known positive, no copy, and not too near.

    Known is also what the same question's other pair names; copies go by title and text, and by text alone.
    """
    report = mined(place, pool, "all", per_query=ALL, depth=ALL, max_relative_score=SHARE)
    pairs, corpus = training_pairs(), list(CorpusDataset(place / "corpus"))
    encoder = load_encoder(place / "snapshot")
    passage_vectors = embed_texts(encoder, [passage.content for passage in corpus], side="passage")
    queries = embed_texts(encoder, [pair.query for pair in pairs], side="query")
    positive_vectors = embed_texts(encoder, [pair.positives[0].content for pair in pairs], side="passage")
    known: dict[int, list[Passage]] = {}
    for pair in pairs:
        known.setdefault(text_hash(pair.query), []).extend(pair.positives)
    for ordinal, negatives in published(place, "all").items():
        if ordinal < 3:
            assert negatives == []  # outside of the stretch
            continue
        pair = pairs[ordinal]
        positives = known[text_hash(pair.query)]
        ids, texts = {p.id for p in positives}, {text_hash(p.text) for p in positives}
        for negative, _ in negatives:
            assert negative.id not in ids
            assert text_hash(negative.text) not in texts
        limit = SHARE * (queries[ordinal] @ positive_vectors[ordinal])
        by_id = dict(zip([p.id for p in corpus], passage_vectors @ queries[ordinal], strict=True))
        allowed = {p.id for p in corpus if p.id not in ids and text_hash(p.text) not in texts}
        found = {negative.id for negative, _ in negatives}
        assert found <= {name for name in allowed if by_id[name] < limit + TOLERANCE}
        assert found >= {name for name in allowed if by_id[name] < limit - TOLERANCE}
        for negative, score in negatives:
            assert score == pytest.approx(by_id[negative.id], abs=TOLERANCE)
        listed = [score for _, score in negatives]
        assert listed == sorted(listed, reverse=True)
    assert report.queries == len(pairs) - 3
    assert sum(report.filters.values()) == report.queries * len(corpus)
    assert report.filters["known_positive"] > report.queries
    assert report.filters["duplicate"] > report.queries
    assert report.filters["kept"] == report.negatives > 20 * report.queries
    assert report.positive_score > report.negative_score


def test_by_default_only_what_is_a_positive_somewhere_is_a_negative(place: Path, pool: EmbedPool) -> None:
    """What no pair names would be pushed away from everything; copies under another id are such passages."""
    report = mined(place, pool, "positives", candidates="positives", per_query=ALL, max_relative_score=SHARE)
    named = {positive.id for pair in training_pairs() for positive in pair.positives}
    found = {negative.id for negatives in published(place, "positives").values() for negative, _ in negatives}
    assert found
    assert found <= named
    assert report.index["ntotal"] == len({name for name in named if not name.startswith("foreign")})


def test_the_manifest_says_where_the_negatives_come_from(place: Path, pool: EmbedPool) -> None:
    report = mined(place, pool, "said", per_query=2, depth=20)
    manifest = read_json(Path(report.folder) / "manifest.json")
    assert (manifest["from_step"], manifest["to_step"], manifest["snapshot_step"]) == (45, 60, 40)
    assert manifest["snapshot_hash"].startswith("sha256:")
    assert manifest["index"] == {"factory": "Flat", "ntotal": 4 * TOPICS, "recall@10": 1.0}
    assert manifest["filters"] == report.filters
    steps = ["embed_corpus", "embed_queries", "index", "search", "filter", "publish"]
    assert list(report.seconds) == steps
    assert list(manifest["seconds"]) == steps
    assert not (place / "work").exists()


def test_the_same_inputs_give_the_same_bytes(place: Path, pool: EmbedPool) -> None:
    for root in ("once", "again"):
        mined(place, pool, root, per_query=1, depth=100, max_relative_score=SHARE)
    files = sorted((place / "once/v000001").iterdir())
    assert any(file.name.endswith(".tar") for file in files)
    for file in files:
        twin = place / "again/v000001" / file.name
        if file.name == "manifest.json":
            assert read_json(file) | {"seconds": 0} == read_json(twin) | {"seconds": 0}
        else:
            assert file.read_bytes() == twin.read_bytes(), file.name


def test_each_version_draws_anew(place: Path, pool: EmbedPool) -> None:
    for version in (1, 2):
        mined(place, pool, "drawn", version, per_query=1, depth=100, max_relative_score=SHARE)
    first, second = published(place, "drawn", 1), published(place, "drawn", 2)
    drawn = [ordinal for ordinal in first if first[ordinal]]
    assert len(drawn) > 60
    assert sum(first[ordinal] != second[ordinal] for ordinal in drawn) > len(drawn) / 2


def test_a_version_is_never_mined_over(place: Path, pool: EmbedPool) -> None:
    mined(place, pool, "kept")
    with pytest.raises(UserError, match=r"negatives version 1 is in .*kept already; take the next number"):
        mined(place, pool, "kept")


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(UserError, match="mining.per_query is 0"):
        MiningConfig(per_query=0)
    with pytest.raises(UserError, match="mining.skip_ranks is 100 and depth 100"):
        MiningConfig(skip_ranks=100)
    with pytest.raises(UserError, match=r"mining.max_relative_score is 1.2, wanted at most 1"):
        MiningConfig(max_relative_score=1.2)
