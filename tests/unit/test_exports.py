"""Exports: every row comes out once, with its own vector and text, in stores that are really there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.errors import UserError
from data_shards.reader import CorpusDataset
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from index_build.embedding_part import Provenance, write_part
from index_build.embedding_set import EmbeddingSet, publish_set
from index_build.exports import stores, tables
from index_build.exports.rows import ExportRows
from index_build.exports.stores import key_of, to_store
from index_build.exports.tables import to_lance, to_parquet
from launch.export_verb import Export

ROWS, DIM = 50, 8


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two parts over a corpus; ids are longer than 64 bits and not all ASCII."""
    folder = tmp_path_factory.mktemp("export")
    passages = [
        Passage(id=f"{2**64 + row}-é", title=f"title {row}", text=f"text {row} " + "ü" * row) for row in range(ROWS)
    ]
    with ShardWriter(folder / "corpus", "corpus", samples_per_shard=30) as writer:
        for passage in passages:
            writer.add(passage)
    corpus = CorpusDataset(folder / "corpus")
    values = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    by = Provenance(snapshot_hash="sha256:aa", precision="float32", shard="", shard_sha256="")
    parts = []
    for number, (begin, end) in enumerate(((0, 30), (30, ROWS))):
        shard = corpus.manifest.shards[number]
        mine = replace(by, shard=shard.path, shard_sha256=shard.sha256)
        parts.append(write_part(folder / "set", number, values[begin:end], passages[begin:end], mine))
    publish_set(
        folder / "set",
        parts,
        snapshot={"path": "s", "hash": "sha256:aa"},
        corpus={"path": str(folder / "corpus"), "dataset_id": corpus.dataset_id},
    )
    return folder / "set"


def check_table(table: pa.Table, embedded: Path) -> None:
    vectors = EmbeddingSet.open(embedded)
    assert table.column("id").to_pylist() == vectors.ids
    found = np.array(table.column("vector").to_pylist(), dtype=np.float32)
    assert (found == vectors.gather(np.arange(ROWS))).all()
    assert table.column("text").to_pylist()[7] == "text 7 " + "ü" * 7


def test_parquet_holds_every_row(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(tables, "_ROWS_PER_FILE", 16)
    to_parquet(ExportRows(embedded, texts=True), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 3
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    check_table(table, embedded)
    with pytest.raises(UserError, match="is there already"):
        to_parquet(ExportRows(embedded), tmp_path / "out")


def test_an_export_that_fails_leaves_nothing(embedded: Path, tmp_path: Path) -> None:
    rows = ExportRows(embedded, progress=lambda done, total: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        to_parquet(rows, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_lance_holds_every_row(embedded: Path, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="needs pylance")
    to_lance(ExportRows(embedded, texts=True), tmp_path / "out.lance")
    check_table(lance.dataset(str(tmp_path / "out.lance")).to_table(), embedded)


def test_milvus_lite_holds_every_row_once(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    from pymilvus import MilvusClient

    monkeypatch.setattr(stores, "_ROWS_AT_ONCE", 16)
    place = str(tmp_path / "milvus.db")
    for _ in range(2):  # a second time changes nothing
        assert to_store("milvus", ExportRows(embedded, texts=True), place, "c", replace=False) == ROWS
    vectors = EmbeddingSet.open(embedded)
    client = MilvusClient(place)
    try:
        (found,) = client.search("c", data=vectors.gather(np.array([7])).tolist(), limit=1, output_fields=["text"])
    finally:
        client.close()
    assert found[0]["id"] == vectors.ids[7]
    assert found[0]["entity"]["text"] == "text 7 " + "ü" * 7


def test_qdrant_holds_every_row_once(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    from qdrant_client import QdrantClient

    monkeypatch.setattr(stores, "_ROWS_AT_ONCE", 16)
    place = str(tmp_path / "qdrant")
    for _ in range(2):
        assert to_store("qdrant", ExportRows(embedded, texts=True), place, "c", replace=False) == ROWS
    vectors = EmbeddingSet.open(embedded)
    client = QdrantClient(path=place)
    try:
        found = client.query_points("c", query=vectors.gather(np.array([7]))[0].tolist(), limit=1).points[0]
    finally:
        client.close()
    assert found.id == key_of(vectors.ids[7])
    assert found.payload == {"id": vectors.ids[7], "title": "title 7", "text": "text 7 " + "ü" * 7}


def test_a_collection_of_other_vectors_is_refused_unless_it_is_replaced(
    embedded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    from qdrant_client import QdrantClient, models

    place = str(tmp_path / "qdrant")
    client = QdrantClient(path=place)
    client.create_collection("c", models.VectorParams(size=3, distance=models.Distance.DOT))
    client.create_collection("d", models.VectorParams(size=DIM, distance=models.Distance.DOT))
    client.upsert("d", [models.PointStruct(id=key_of("other"), vector=[0.0] * DIM)])
    client.close()
    with pytest.raises(UserError, match=f"collection c holds vectors of 3, the embedding set of {DIM}"):
        to_store("qdrant", ExportRows(embedded), place, "c", replace=False)
    assert to_store("qdrant", ExportRows(embedded), place, "c", replace=True) == ROWS
    assert to_store("qdrant", ExportRows(embedded), place, "d", replace=False) == ROWS + 1
    assert "collection d holds 1 rows beside those exported" in caplog.text


def test_a_server_that_is_not_there_is_one_line_without_its_password(embedded: Path) -> None:
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    with pytest.raises(UserError, match=r"^qdrant at http://127\.0\.0\.1:9 refuses: .+$") as caught:
        to_store("qdrant", ExportRows(embedded), "http://me:planted@127.0.0.1:9", "c", replace=False)
    assert "planted" not in str(caught.value)


def test_another_corpus_or_a_damaged_set_is_refused(embedded: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "other", "corpus") as writer:
        writer.add(Passage(id="x", title="", text="y"))
    with pytest.raises(UserError, match="is not the corpus that"):
        ExportRows(embedded, texts=True, corpus=str(tmp_path / "other"))
    broken = Path(shutil.copytree(embedded, tmp_path / "broken"))
    data = bytearray((broken / "part-000001.npy").read_bytes())
    data[-1] ^= 1
    (broken / "part-000001.npy").write_bytes(data)
    with pytest.raises(UserError, match="run `dipole embed` again to mend it"):
        ExportRows(broken)


def test_the_verb_says_what_it_wrote(embedded: Path, tmp_path: Path) -> None:
    answer = Export(embeddings=embedded, to="parquet", out=str(tmp_path / "out")).run()
    assert answer == {"to": "parquet", "out": str(tmp_path / "out"), "rows": ROWS}
    with pytest.raises(UserError, match="tables are written to a folder of this machine"):
        Export(embeddings=embedded, to="lance", out="s3://bucket/x").run()
