"""Checking, describing and sampling a dataset, by function and by verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_shards.atomic import sha256_file
from data_shards.check import check_dataset, sample, stats
from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import ShardEntry, dataset_id_of
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter
from launch.shards_verbs import ShardsCheck, ShardsCorpus, ShardsPairs, ShardsSample, ShardsStats

TEXTS = ["one two three", "four five", "One  two THREE", "six"]


def write_corpus(folder: Path, ids: list[str]) -> Path:
    with ShardWriter(folder, "corpus", samples_per_shard=2) as writer:
        for passage_id, text in zip(ids, TEXTS, strict=True):
            writer.add(Passage(id=passage_id, text=text))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", ["a", "b", "c", "d"])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    passages = [Passage(id=str(at), text=text) for at, text in enumerate(TEXTS)]
    with ShardWriter(tmp_path / "pairs", "pairs") as writer:
        writer.add(Pair(query_id="1", query="a b", positives=(passages[0],), negatives=(passages[3],)))
        writer.add(Pair(query_id="2", query="c", positives=(passages[1], passages[2])))
    return tmp_path / "pairs"


def test_a_whole_dataset_passes(corpus: Path, pairs: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = check_dataset(corpus, lambda done, total: seen.append((done, total)))
    assert found["whole"] is True
    assert (found["kind"], found["samples"], found["shards"]) == ("corpus", 4, 2)
    assert found["bytes"] == sum(path.stat().st_size for path in corpus.glob("*.tar"))
    assert seen == [(4, 4)]
    assert check_dataset(pairs)["samples"] == 2


def test_a_dataset_without_sidecars_passes_and_gets_them(corpus: Path) -> None:
    sidecar = corpus / "corpus-000001.tar.idx"
    before = sidecar.read_bytes()
    sidecar.unlink()
    assert check_dataset(corpus)["whole"] is True
    assert sidecar.read_bytes() == before


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (520, b"z", "corpus-000001.tar at byte 0: its sha256 is"),
        (3, b"z", "corpus-000001.tar at byte 0: corrupt header"),
        (1024, bytes(512), "corpus-000001.tar at byte 1024: a zeroed header"),
    ],
)
def test_damage_is_found(corpus: Path, offset: int, data: bytes, message: str) -> None:
    with open(corpus / "corpus-000001.tar", "r+b") as file:
        file.seek(offset)
        file.write(data)
    with pytest.raises(ShardCorruptError, match=message):
        check_dataset(corpus)


def test_a_sidecar_of_another_shard_is_found(corpus: Path) -> None:
    """One that a reader would take: it is in order, and ends where it should."""
    (corpus / "corpus-000001.tar.idx").write_bytes(b"".join(at.to_bytes(8, "little") for at in (0, 512, 2048)))
    with pytest.raises(
        ShardCorruptError, match=r"corpus-000001\.tar\.idx at byte 9: it does not match corpus-000001"
    ):
        check_dataset(corpus)


def test_an_id_that_comes_twice_is_found(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", ["a", "b", "a", "d"])
    with pytest.raises(UserError, match="passage id 'a' comes twice in"):
        check_dataset(folder)


def test_an_edited_manifest_is_found(corpus: Path) -> None:
    path = corpus / "manifest.json"
    row = json.loads(path.read_text())
    row["shards"].pop()
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match="does not match its own dataset_id; it was edited"):
        check_dataset(corpus)


def test_a_payload_that_is_no_sample_is_found(corpus: Path) -> None:
    """Checksums say what was written, not that it makes sense."""
    shard, manifest = corpus / "corpus-000000.tar", json.loads((corpus / "manifest.json").read_text())
    shard.write_bytes(shard.read_bytes().replace(b'"text":"four', b'"tixt":"four'))
    manifest["shards"][0]["sha256"] = sha256_file(shard)
    manifest["dataset_id"] = dataset_id_of("corpus", [ShardEntry(**entry) for entry in manifest["shards"]])
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardCorruptError, match=r"at byte 1024: row 1 holds no passage \(KeyError: 'text'\)"):
        check_dataset(corpus)


def test_a_corpus_is_described(corpus: Path) -> None:
    found = stats(corpus)["passage"]
    assert found["words"] == {"mean": 2.2, "p5": 1.15, "p50": 2.5, "p95": 3.0, "max": 3}
    assert found["chars"]["max"] == 14
    assert found["repeated"] == 1  # but for case and white space


def test_pairs_are_described(pairs: Path) -> None:
    found = stats(pairs)
    assert found["query"]["words"]["mean"] == 1.5
    assert found["positives_per_query"] == {"1": 1, "2": 1}
    assert found["negatives_per_query"] == {"0": 1, "1": 1}
    assert found["positive"]["repeated"] == 1
    assert found["negative"]["words"]["max"] == 1


def test_samples_are_drawn_by_seed(corpus: Path, pairs: Path) -> None:
    drawn = sample(corpus, 3, seed=1)
    assert drawn == sample(corpus, 3, seed=1)
    assert len({row["id"] for row in drawn}) == 3
    assert {row["text"] for row in sample(corpus, 99)} == set(TEXTS)
    assert sample(pairs, 2)[0].keys() == {"query_id", "query", "positives", "negatives", "source", "weight"}
    with pytest.raises(UserError, match="-1 samples were asked for"):
        sample(pairs, -1)


def test_the_verbs_do_the_whole_way(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "pos": f"text {n}", "id": n} for n in range(5)]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    written = ShardsPairs(input=(source,), out=tmp_path / "p", samples_per_shard=2, licence="CC0").run()
    assert (written["samples"], written["shards"], written["kind"]) == (5, 3, "pairs")
    source.write_text('{"id": "1", "text": "x"}')
    assert ShardsCorpus(input=(source,), out=tmp_path / "c").run()["samples"] == 1
    assert ShardsCheck(dir=tmp_path / "p").run()["whole"] is True
    assert ShardsStats(dir=tmp_path / "p").run()["positives_per_query"] == {"1": 5}
    (row,) = ShardsSample(dir=tmp_path / "c", n=1).run()["samples"]
    assert row == {"id": "1", "title": "", "text": "x"}
    json.dumps([written, ShardsStats(dir=tmp_path / "p").run()])
