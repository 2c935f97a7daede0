"""In what form vectors are kept: what is lost, and that a row depends on itself alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from index_build.embedding_part import Provenance, finished_part, part_files, write_part
from index_build.embedding_set import EmbeddingSet, publish_set
from index_build.kept_vectors import KEPT, Kept, check_kept, pack, unpack
from tests.unit.tiny import passage

BY = Provenance(snapshot_hash="sha256:aa", precision="float32", shard="corpus-000000.tar", shard_sha256="bb")


def unit_rows(rows: int, dim: int) -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_int8_by_hand() -> None:
    stored = pack(np.array([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]], dtype=np.float32), "int8")
    assert stored["codes"].tolist() == [[127, -64, 32], [0, 0, 0]]
    np.testing.assert_allclose(stored["scale"], [1 / 127, 0.0])
    np.testing.assert_allclose(unpack(stored, "int8", 3)[0], [1.0, -64 / 127, 32 / 127], rtol=1e-6)


def test_binary_by_hand() -> None:
    stored = pack(np.array([[3.0, -1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0, -9.0]], dtype=np.float32), "binary")
    assert stored.tolist() == [[0b10011111, 0b00000000]]
    found = unpack(stored, "binary", 9)
    np.testing.assert_allclose(found, np.array([[1, -1, -1, 1, 1, 1, 1, 1, -1]]) / 3, rtol=1e-6)


@pytest.mark.parametrize(("kept", "error"), [("float32", 0.0), ("float16", 2.5e-4), ("int8", 3e-3)])
def test_what_is_lost(kept: Kept, error: float) -> None:
    vectors = unit_rows(50, 33)
    assert np.abs(unpack(pack(vectors, kept), kept, 33) - vectors).max() <= error


@pytest.mark.parametrize("kept", KEPT)
def test_a_row_depends_on_itself_alone(kept: Kept) -> None:
    vectors = unit_rows(20, 17)
    whole = pack(vectors, kept)
    for row in (0, 7, 19):
        assert pack(vectors[row : row + 1], kept).tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("kept", KEPT)
def test_a_set_gives_float32_whatever_is_kept(tmp_path: Path, kept: Kept) -> None:
    vectors = unit_rows(7, 12)
    by = replace(BY, kept=kept)
    parts = [
        write_part(tmp_path, part, vectors[rows], [passage(f"p{row}") for row in range(7)[rows]], by)
        for part, rows in enumerate((slice(0, 4), slice(4, 7)))
    ]
    publish_set(tmp_path, parts, snapshot={"path": "s", "hash": "h"}, corpus={"path": "c", "dataset_id": "d"})
    found = EmbeddingSet.open(tmp_path)
    assert (found.kept, found.dim, found.rows) == (kept, 12, 7)
    expected = unpack(pack(vectors, kept), kept, 12)
    np.testing.assert_array_equal(np.concatenate([block for _, block in found.blocks(rows=3)]), expected)
    gathered = found.gather(np.array([6, 0, 4]))
    assert gathered.dtype == np.float32
    np.testing.assert_array_equal(gathered, expected[[6, 0, 4]])
    assert finished_part(tmp_path, 1, by) == parts[1]


def test_another_form_or_length_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path, 0, unit_rows(2, 8), [passage("a"), passage("b")], BY)
    with pytest.raises(UserError, match=r"with kept float16 \(now int8\), dim None \(now 4\); a set is never mixed"):
        finished_part(tmp_path, 0, replace(BY, kept="int8", dim=4))


def test_a_file_of_another_form_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    part = write_part(tmp_path, 0, unit_rows(2, 8), [passage("a"), passage("b")], replace(BY, kept="int8"))
    publish_set(tmp_path, [part], snapshot={"path": "s", "hash": "h"}, corpus={"path": "c", "dataset_id": "d"})
    size = part_files(tmp_path, 0).vectors.stat().st_size
    np.save(part_files(tmp_path, 0).vectors, np.zeros(size - 128, dtype=np.uint8))
    with pytest.raises(UserError, match=r"part-000000.npy holds no int8 vectors of 8"):
        EmbeddingSet.open(tmp_path).gather(np.array([0]))


def test_what_does_not_fit_into_float16_is_named(tmp_path: Path) -> None:
    vectors = np.array([[1.0, 2.0], [1.0, 1e6]], dtype=np.float32)
    with pytest.raises(UserError, match=r"not finite for passage 'b'; as float16.*--keep float32"):
        write_part(tmp_path, 0, vectors, [passage("a"), passage("b")], BY)
    assert write_part(tmp_path, 0, vectors, [passage("a"), passage("b")], replace(BY, kept="float32")).rows == 2


def test_unknown_forms_and_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="vectors cannot be kept as .int4.; there are: float32, float16"):
        check_kept("int4", None)
    with pytest.raises(UserError, match="cannot be cut to 0 dimensions; give 1 or more"):
        check_kept("int8", 0)
