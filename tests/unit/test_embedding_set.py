"""Parts are whole or redone, a set is never mixed, rows keep their passages."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.samples import Passage, id_hash, text_hash
from index_build.embedding_part import Provenance, finished_part, part_files, write_part
from index_build.embedding_set import EmbeddingSet, publish_set

BY = Provenance(snapshot_hash="sha256:aa", precision="float32", shard="corpus-000000.tar", shard_sha256="bb")


def passages(first: int, count: int) -> list[Passage]:
    return [Passage(id=f"p{k}", title="T", text=f"text {k}") for k in range(first, first + count)]


def vectors(first: int, count: int) -> np.ndarray:
    """Row k is (k, k/2, -k): exact in float16."""
    k = np.arange(first, first + count, dtype=np.float32)
    return np.stack([k, k / 2, -k], axis=1)


def two_part_set(folder: Path) -> EmbeddingSet:
    parts = [
        write_part(folder, 0, vectors(0, 3), passages(0, 3), BY),
        write_part(folder, 1, vectors(3, 2), passages(3, 2), replace(BY, shard="corpus-000001.tar")),
    ]
    publish_set(folder, parts, snapshot={"path": "s", "hash": "sha256:aa"}, corpus={"path": "c", "dataset_id": "d"})
    return EmbeddingSet.open(folder)


def test_a_written_part_is_finished(tmp_path: Path) -> None:
    record = write_part(tmp_path, 0, vectors(0, 3), passages(0, 3), BY)
    assert (record.rows, record.dim) == (3, 3)
    assert finished_part(tmp_path, 0, BY) == record


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_part(tmp_path / name, 0, vectors(0, 3), passages(0, 3), BY)
    for file in part_files(tmp_path / "a", 0):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_part_without_marker_is_not_finished(tmp_path: Path) -> None:
    write_part(tmp_path, 0, vectors(0, 3), passages(0, 3), BY)
    part_files(tmp_path, 0).done.unlink()
    assert finished_part(tmp_path, 0, BY) is None


@pytest.mark.parametrize("which", ["vectors", "ids"])
def test_a_flipped_bit_is_noticed_and_the_part_redone(
    tmp_path: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_part(tmp_path, 0, vectors(0, 3), passages(0, 3), BY)
    path = getattr(part_files(tmp_path, 0), which)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert finished_part(tmp_path, 0, BY) is None
    assert f"{path.name} has sha256" in caplog.text
    assert "the part is done again" in caplog.text


def test_a_damaged_marker_is_redone(tmp_path: Path) -> None:
    write_part(tmp_path, 0, vectors(0, 3), passages(0, 3), BY)
    part_files(tmp_path, 0).done.write_text("{}")
    assert finished_part(tmp_path, 0, BY) is None


@pytest.mark.parametrize("field", ["snapshot_hash", "precision", "shard", "shard_sha256"])
def test_a_part_of_other_provenance_is_refused(tmp_path: Path, field: str) -> None:
    write_part(tmp_path, 0, vectors(0, 3), passages(0, 3), BY)
    with pytest.raises(UserError, match=rf"{field} {getattr(BY, field)} \(now other\).*choose another --out"):
        finished_part(tmp_path, 0, replace(BY, **{field: "other"}))


def test_a_vector_that_is_not_finite_names_its_passage(tmp_path: Path) -> None:
    broken = vectors(0, 3)
    broken[1, 2] = np.nan
    with pytest.raises(UserError, match="not finite for passage 'p1'.*take an earlier snapshot"):
        write_part(tmp_path, 0, broken, passages(0, 3), BY)
    assert not part_files(tmp_path, 0).done.exists()


def test_rows_follow_the_parts(tmp_path: Path) -> None:
    found = two_part_set(tmp_path)
    assert (found.rows, found.dim) == (5, 3)
    assert found.ids == ["p0", "p1", "p2", "p3", "p4"]
    assert found.hashes.ids.tolist() == [id_hash(f"p{k}") for k in range(5)]
    assert found.hashes.contents[4] == text_hash("t TEXT  4")
    assert found.hashes.texts[4] == text_hash("text 4")
    np.testing.assert_array_equal(found.gather(np.array([4, 0, 2, 4])), vectors(0, 5)[[4, 0, 2, 4]])


def test_blocks_cover_every_row_once_and_stop_at_parts(tmp_path: Path) -> None:
    blocks = list(two_part_set(tmp_path).blocks(rows=2))
    assert [(first, len(block)) for first, block in blocks] == [(0, 2), (2, 1), (3, 2)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), vectors(0, 5))


def test_gather_refuses_a_row_beyond_the_end(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="of an embedding set of 5"):
        two_part_set(tmp_path).gather(np.array([5]))


def test_publishing_clears_what_killed_writers_left(tmp_path: Path) -> None:
    tmp_path.joinpath(".tmp-123-part-000000.npy").write_bytes(b"half")
    two_part_set(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, k, vectors(0, 2), passages(0, 2), BY) for k in range(2)]
    with pytest.raises(UserError, match="passage id 'p[01]' occurs twice in corpus c"):
        publish_set(tmp_path, parts, snapshot={}, corpus={"path": "c"})
    with pytest.raises(UserError, match="no finished embedding set"):
        EmbeddingSet.open(tmp_path)


def test_opening_notices_a_truncated_part_and_verify_a_changed_one(tmp_path: Path) -> None:
    found = two_part_set(tmp_path)
    path = part_files(tmp_path, 1).vectors
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"part-000001.npy has sha256 .* run `dipole embed` again"):
        found.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"part-000001.npy is missing or not of \d+ bytes"):
        EmbeddingSet.open(tmp_path)


def test_the_marker_goes_last_and_an_old_one_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut off between two files, also while a damaged part is done again, counts as not done."""
    write_part(tmp_path, 0, vectors(0, 3), passages(0, 3), BY)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("index_build.embedding_part.pq.write_table", disk_full)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            write_part(folder, 0, vectors(0, 3), passages(0, 3), BY)
        assert not part_files(folder, 0).done.exists()


def test_a_span_is_what_gathering_its_rows_gives(tmp_path: Path) -> None:
    found = two_part_set(tmp_path)
    for first in range(6):
        for stop in range(first, 6):
            np.testing.assert_array_equal(found.span(first, stop), found.gather(np.arange(first, stop)))
    for first, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(IndexError, match=f"rows {first} to {stop} of an embedding set of 5"):
            found.span(first, stop)
