"""Damage to an index, its embedding set or its corpus is found by `check`, and refused by search in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.atomic import sha256_file
from data_shards.errors import UserError
from data_shards.writer import ShardWriter
from index_build.embedding_part import part_files
from index_build.index import build_index
from index_build.index_check import check_index
from index_build.index_config import IndexConfig
from index_build.index_manifest import checksum_of
from index_build.index_update import delete_ids
from index_build.index_version import open_index, version_dir
from tests.unit.index_sets import clustered, embedding_set, numbered

ROWS = 400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An index with its lists on disk and dead rows in its second version; its corpus and its set are there."""
    with ShardWriter(tmp_path / "corpus", "corpus", samples_per_shard=150) as writer:
        for passage in numbered(ROWS):
            writer.add(passage)
    corpus = {"path": str(tmp_path / "corpus"), "dataset_id": corpus_id(tmp_path / "corpus")}
    vectors = embedding_set(tmp_path / "set", clustered(ROWS, 16, 0), corpus=corpus)
    config = IndexConfig(factory="IVF4,SQfp16", on_disk="always", recall_queries=50)
    build_index(vectors, tmp_path / "index", config, clustered(20, 16, 3))
    delete_ids(tmp_path / "index", ["p3"], config)
    return tmp_path / "index"


def corpus_id(folder: Path) -> str:
    from data_shards.reader import CorpusDataset

    return CorpusDataset(folder).dataset_id


def resigned(folder: Path, name: str) -> None:
    """Let a manifest agree with a file that was changed on purpose."""
    path = folder / "manifest.json"
    row = json.loads(path.read_text())
    del row["checksum"]
    row["files"][name] = sha256_file(folder / name)
    path.write_text(json.dumps({**row, "checksum": checksum_of(row)}))


def test_a_sound_index_is_compared_with_all_it_came_from(root: Path) -> None:
    report = check_index(root)
    assert report["current"] == 2
    assert report["versions"][1]["compared"] == report["versions"][2]["compared"] == ["embedding set", "corpus"]
    assert report["versions"][2]["ntotal"] == ROWS - 1


@pytest.mark.parametrize(
    "name", ["index.faiss", "lists.ivfdata", "lists.npy", "ids.parquet", "slots.npy", "queries.npy", "manifest.json"]
)
def test_a_flipped_bit_in_any_file_is_refused(root: Path, name: str) -> None:
    path = version_dir(root, 2) / name
    content = bytearray(path.read_bytes())
    place = content.index(b'"value"') + 12 if name == "manifest.json" else len(content) // 2
    content[place] ^= 1
    path.write_bytes(content)
    for use in (open_index, check_index):
        with pytest.raises(
            UserError, match=f"{name} (is damaged|is no index manifest|is not valid JSON).*"
        ) as caught:
            use(root)
        assert "\n" not in str(caught.value)
    assert open_index(root, 1).manifest.version == 1


def test_a_missing_file_is_refused(root: Path) -> None:
    (version_dir(root, 2) / "slots.npy").unlink()
    with pytest.raises(UserError, match=r"slots.npy is damaged: sha256 missing, its manifest says"):
        open_index(root)


def test_a_manifest_that_was_edited_is_refused(root: Path) -> None:
    path = version_dir(root, 2) / "manifest.json"
    row = json.loads(path.read_text())
    row["recall@10"]["value"] = 0.999
    path.write_text(json.dumps(row))
    with pytest.raises(
        UserError, match=r"manifest.json is damaged: its content has checksum sha256:\w+, and it says"
    ):
        open_index(root)
    row["schema_version"] = 1
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match="schema version 1, this dipole reads 2.*build the index again"):
        open_index(root)


def test_a_damaged_embedding_set_is_found(root: Path, tmp_path: Path) -> None:
    path = part_files(tmp_path / "set", 1).vectors
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-000001.npy has sha256 .*run `dipole embed` again to mend it"):
        check_index(root)
    assert open_index(root).manifest.version == 2  # the index itself is whole


def test_ids_of_another_set_or_corpus_are_found(root: Path, tmp_path: Path) -> None:
    other = embedding_set(tmp_path / "other", clustered(50, 16, 1))
    with pytest.raises(UserError, match=r"other is sha256:\w+, and .*v000002 was made of"):
        check_index(root, embeddings=other.folder)
    folder = version_dir(root, 2)
    table = pq.read_table(folder / "ids.parquet")
    swapped = table.take(pa.array([1, 0, *range(2, ROWS)]))
    pq.write_table(swapped, folder / "ids.parquet")
    resigned(folder, "ids.parquet")
    with pytest.raises(UserError, match=r"the ids of .*v000002 are not those of .*set; build the index again"):
        check_index(root)
    wrong = table.set_column(0, "id", pa.array(["stranger", *table.column("id").to_pylist()[1:]]))
    pq.write_table(wrong, folder / "ids.parquet")
    resigned(folder, "ids.parquet")
    with pytest.raises(UserError, match="row 0 has not the hash of its id"):
        check_index(root)


def test_a_passage_that_the_corpus_has_not_is_found(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "corpus", "corpus") as writer:
        for passage in numbered(ROWS)[:-1]:
            writer.add(passage)
    corpus = {"path": str(tmp_path / "corpus"), "dataset_id": corpus_id(tmp_path / "corpus")}
    vectors = embedding_set(tmp_path / "set", clustered(ROWS, 16, 0), corpus=corpus)
    build_index(vectors, tmp_path / "index", IndexConfig(recall_queries=20))
    with pytest.raises(UserError, match=r"holds passage 'p399' \(row 399\), which is not in .*corpus"):
        check_index(tmp_path / "index")


def test_slots_that_name_a_row_twice_are_found(root: Path) -> None:
    folder = version_dir(root, 2)
    slots = np.load(folder / "slots.npy")
    slots[1] = slots[0]
    np.save(folder / "slots.npy", slots)
    resigned(folder, "slots.npy")
    with pytest.raises(UserError, match=r"v000002 should hold 399 of 400 passages, came .*'living': 398"):
        check_index(root)


def test_what_has_gone_is_not_compared_with(root: Path, tmp_path: Path) -> None:
    (tmp_path / "set").rename(tmp_path / "moved")
    (tmp_path / "corpus").rename(tmp_path / "gone")
    assert check_index(root)["versions"][2]["compared"] == []
    report = check_index(root, embeddings=tmp_path / "moved", corpus=tmp_path / "gone")
    assert report["versions"][2]["compared"] == ["embedding set", "corpus"]
