"""A set made from an older one: what is the same is found by id and letter, and its rows are copied as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_shards.errors import UserError
from data_shards.samples import Passage
from index_build.embedding_part import Provenance, part_files, write_part
from index_build.embedding_set import EmbeddingSet, publish_set
from index_build.kept_vectors import KEPT, Kept, pack
from index_build.since import REMOVED_NAME, OldRows, changes, join_rows, open_old, prepared
from tests.unit.tiny import passage

BY = Provenance(snapshot_hash="sha256:aa", precision="float32", shard="corpus-000000.tar", shard_sha256="bb")
OLD = [passage("a"), passage("b"), passage("c"), passage("d")]


def old_set(folder: Path, kept: Kept = "float16") -> EmbeddingSet:
    vectors = np.arange(32, dtype=np.float32).reshape(4, 8)
    by = replace(BY, kept=kept)
    parts = [write_part(folder, k, vectors[2 * k : 2 * k + 2], OLD[2 * k : 2 * k + 2], by) for k in range(2)]
    publish_set(folder, parts, snapshot={"path": "s", "hash": "sha256:aa"}, corpus={"path": "c", "dataset_id": "d"})
    return EmbeddingSet.open(folder)


def test_rows_that_have_not_changed_are_found(tmp_path: Path) -> None:
    old = old_set(tmp_path / "old")
    asked = [
        passage("d"),
        passage("new"),
        passage("a"),
        passage("b", "PASSAGE B"),
        Passage(id="c", text="", title="c"),
    ]
    with prepared(old, tmp_path / "out"):
        found = OldRows(old.folder, tmp_path / "out").of(asked)
    assert found.tolist() == [3, -1, 0, -1, -1], "case alone is a change: an encoder may see it"
    assert not (tmp_path / "out" / ".since").exists()


@pytest.mark.parametrize("kept", KEPT)
def test_rows_are_copied_as_they_are_kept(tmp_path: Path, kept: Kept) -> None:
    old = old_set(tmp_path / "old", kept)
    fresh = pack(np.full((2, 8), 0.5, dtype=np.float32), kept)
    joined = join_rows(old, np.array([3, -1, 0, -1]), fresh)
    assert joined[[0, 2]].tobytes() == old.gather_stored(np.array([3, 0])).tobytes()
    assert joined[[1, 3]].tobytes() == fresh.tobytes()


def test_what_changed_is_counted_and_what_is_gone_is_listed(tmp_path: Path) -> None:
    old = old_set(tmp_path / "old")
    new = [passage("d"), passage("b", "another"), passage("e")]
    part = write_part(tmp_path / "new", 0, np.ones((3, 8), dtype=np.float32), new, BY)
    made = EmbeddingSet(tmp_path / "new", {"snapshot": {}, "corpus": {}, "hash": ""}, [part])
    found = changes(old, made.hashes.ids, made.exact_hashes, tmp_path / "new")
    assert (found.same, found.changed, found.new, found.removed) == (1, 1, 1, 2)
    assert found.hash == old.hash
    assert pq.read_table(tmp_path / "new" / REMOVED_NAME).column("id").to_pylist() == ["a", "c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"snapshot_hash": "sha256:cc"},
            "was made by snapshot sha256:aa, and this set is to be by snapshot sha256:cc",
        ),
        ({"precision": "bfloat16"}, "was made at float32, and this set is to be at bfloat16"),
        ({"kept": "int8"}, "was made as float16, and this set is to be as int8"),
        ({"dim": 4}, "was made cut to its full length, and this set is to be cut to 4; embed anew without --since"),
    ],
)
def test_an_older_set_of_another_kind_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    old_set(tmp_path)
    assert open_old(tmp_path, replace(BY, shard="other")).rows == 4
    with pytest.raises(UserError, match=message):
        open_old(tmp_path, replace(BY, **change))


def test_a_damaged_older_set_is_refused(tmp_path: Path) -> None:
    old = old_set(tmp_path / "old")
    path = part_files(old.folder, 1).vectors
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-000001.npy has sha256"), prepared(old, tmp_path / "out"):
        pass
