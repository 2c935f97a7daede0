"""Versions made from the one before: adds, replacements and deletes, and that they equal a rebuild."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.file_lock import locked
from data_shards.samples import Passage
from index_build.embedding_set import EmbeddingSet
from index_build.exact import exact_search
from index_build.index import build_index
from index_build.index_check import check_index
from index_build.index_config import IndexConfig
from index_build.index_update import delete_ids, update_index
from index_build.index_version import LOCK_NAME, current_version, list_versions, open_index, rollback, version_dir
from index_build.index_wear import why_rebuild
from index_build.recall import Recall
from tests.unit.index_sets import clustered, embedding_set, numbered

ROWS, DIM = 1_200, 16
FEW = IndexConfig(recall_queries=200)
KINDS = [
    ("Flat", "auto"),
    ("IVF16,SQ8", "auto"),
    ("IVF16,SQfp16", "always"),
    ("IVF16,PQ8x4fs,Refine(SQfp16)", "auto"),
    ("IVF16_HNSW8,SQfp16", "auto"),
    ("HNSW16,SQfp16", "auto"),
]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    return embedding_set(tmp_path_factory.mktemp("before"), clustered(ROWS, DIM, 0))


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    """100 passages gone, 50 with another text, 150 new, in another order and other parts."""
    old, fresh = clustered(ROWS, DIM, 0), clustered(200, DIM, 7)
    changed = [Passage(id=f"p{row}", text=f"another {row}") for row in range(1_150, 1_200)]
    passages = [*numbered(ROWS)[100:1_150], *changed, *numbered(150, "new")]
    vectors = np.concatenate([old[100:1_150], fresh])
    order = np.random.default_rng(3).permutation(len(passages))
    return embedding_set(tmp_path_factory.mktemp("after"), vectors[order], 4, [passages[place] for place in order])


@pytest.mark.parametrize(("factory", "on_disk"), KINDS)
def test_an_update_equals_a_rebuild(
    before: EmbeddingSet, after: EmbeddingSet, tmp_path: Path, factory: str, on_disk: str
) -> None:
    """Found ids are those of the new set alone, and recall is that of a rebuild within what its interval allows."""
    config = IndexConfig(factory=factory, on_disk=on_disk, recall_queries=200)
    build_index(before, tmp_path / "updated", config)
    updated = update_index(tmp_path / "updated", after, FEW)
    rebuilt = build_index(after, tmp_path / "rebuilt", config)
    assert updated.changes == {"added": 150, "replaced": 50, "removed": 100, "kept": 1_050}
    assert updated.ntotal == rebuilt.ntotal == 1_250
    assert updated.recall.high >= rebuilt.recall.low
    assert rebuilt.recall.high >= updated.recall.low
    opened = open_index(tmp_path / "updated")
    assert opened.ids == after.ids
    own = np.arange(0, 1_250, 7)
    found = opened.search(after.gather(own), 5).rows
    assert (found >= 0).all()
    assert (found[:, 0] == own).mean() > 0.95
    assert check_index(tmp_path / "updated")["versions"][2]["compared"] == ["embedding set"]


@pytest.mark.parametrize(("factory", "on_disk"), KINDS)
def test_what_is_deleted_is_never_found_and_k_are_still_k(
    before: EmbeddingSet, tmp_path: Path, factory: str, on_disk: str
) -> None:
    build_index(before, tmp_path, IndexConfig(factory=factory, on_disk=on_disk, recall_queries=200))
    gone = np.arange(0, ROWS, 10)
    made = delete_ids(tmp_path, [f"p{row}" for row in gone], FEW)
    assert made.ntotal == ROWS - len(gone)
    assert made.changes == {"added": 0, "replaced": 0, "removed": 120, "kept": 1_080}
    found = open_index(tmp_path).search(before.gather(gone), 20).rows
    assert not np.isin(found, gone).any()
    assert (found >= 0).mean() > 0.99
    assert made.recall.value > 0.85  # against what is left: deleted rows are no misses
    check_index(tmp_path)
    assert np.isin(gone, open_index(tmp_path, 1).search(before.gather(gone), 20).rows).mean() > 0.9
    assert rollback(tmp_path, 1).ntotal == ROWS


def test_all_lists_probed_an_index_with_holes_is_exact(before: EmbeddingSet, tmp_path: Path) -> None:
    build_index(before, tmp_path, IndexConfig(factory="IVF16,SQfp16", wanted_recall=1.0, recall_queries=50))
    delete_ids(tmp_path, [f"p{row}" for row in range(0, ROWS, 3)], FEW)
    left = np.flatnonzero(np.arange(ROWS) % 3)
    queries = clustered(40, DIM, 5)
    truth = exact_search(queries, [(left, before.gather(left))], 10)
    found = open_index(tmp_path).search(queries, 10)
    np.testing.assert_allclose(found.scores, truth.scores, atol=1e-3)


def test_deleted_passages_come_back_with_a_set_that_has_them(before: EmbeddingSet, tmp_path: Path) -> None:
    build_index(before, tmp_path, IndexConfig(factory="IVF4,Flat", recall_queries=50))
    delete_ids(tmp_path, ["p7", "p8"], FEW)
    made = update_index(tmp_path, before, FEW)
    assert made.changes == {"added": 2, "replaced": 0, "removed": 0, "kept": ROWS - 2}
    assert open_index(tmp_path).search(before.gather(np.array([7, 8])), 1).rows[:, 0].tolist() == [7, 8]
    assert update_index(tmp_path, before, FEW).version == made.version == 3  # nothing to do makes no version


def test_a_rebuild_is_due_where_dead_or_added_rows_pass_a_bound(
    before: EmbeddingSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_index(before, tmp_path / "a", IndexConfig(factory="IVF16,SQfp16", recall_queries=50))
    few = delete_ids(tmp_path / "a", [f"p{row}" for row in range(200)], FEW)
    assert few.rebuild_due == ""
    many = delete_ids(tmp_path / "a", [f"p{row}" for row in range(200, 300)], FEW)
    assert many.rebuild_due == "25% of its rows are dead (bound 20%)"
    assert "a rebuild is due: 25% of its rows are dead (bound 20%); run `dipole index build`" in caplog.text
    far = -np.abs(clustered(1_500, DIM, 8))  # where no centroid is
    vectors = np.concatenate([clustered(ROWS, DIM, 0), far / np.linalg.norm(far, axis=1, keepdims=True)])
    grown = embedding_set(tmp_path / "grown", vectors, 3, [*numbered(ROWS), *numbered(1_500, "far")])
    build_index(before, tmp_path / "b", IndexConfig(factory="IVF16,SQfp16", recall_queries=50))
    made = update_index(tmp_path / "b", grown, FEW)
    assert "56% of its rows came since it was built (bound 50%)" in made.rebuild_due
    assert "what was added lies far from its lists" in made.rebuild_due
    fresh = build_index(grown, tmp_path / "b", IndexConfig(factory="IVF16,SQfp16", recall_queries=50))
    assert fresh.rebuild_due == ""


@pytest.mark.parametrize(
    ("worn", "recall", "why"),
    [
        ({}, 0.96, ""),
        ({"dead_share": 0.2, "added_share": 0.5}, 0.96, ""),
        ({"dead_share": 0.21}, 0.96, "21% of its rows are dead (bound 20%)"),
        ({"added_share": 0.51}, 0.96, "51% of its rows came since it was built (bound 50%)"),
        ({"imbalance": 1.6}, 0.96, "its lists have grown uneven, their imbalance is 1.60 times that of the build"),
        ({"distance": 1.3}, 0.96, "what was added lies far from its lists, the squared distance is 1.30 times"),
        ({}, 0.91, "its recall is 0.910, at most 0.920, and was to be 0.950"),
        ({"distance": 1.2}, 0.945, ""),  # the interval still holds what was wanted
    ],
)
def test_bounds_of_wear(worn: dict[str, float], recall: float, why: str) -> None:
    sound = {"dead_share": 0.0, "added_share": 0.0, "imbalance": 1.0, "imbalance_built": 1.0}
    wear = {**sound, "distance": 1.0, "distance_built": 1.0, **worn}
    measured = Recall(k=10, value=recall, low=recall - 0.01, high=recall + 0.01, queries=500, queries_from="given")
    found = why_rebuild(wear, measured, 0.95)
    assert found == why if not why else found.startswith(why)


def test_given_queries_go_on_measuring(before: EmbeddingSet, after: EmbeddingSet, tmp_path: Path) -> None:
    queries = clustered(100, DIM, 9)
    build_index(before, tmp_path, IndexConfig(factory="IVF8,Flat"), queries)
    made = update_index(tmp_path, after, FEW)
    assert (made.recall.queries_from, made.recall.queries) == ("given", 50)
    np.testing.assert_array_equal(np.load(version_dir(tmp_path, 2) / "queries.npy"), queries)


def test_users_mistakes_are_named_and_change_nothing(before: EmbeddingSet, tmp_path: Path) -> None:
    root = tmp_path / "index"
    build_index(before, root, IndexConfig(factory="Flat", recall_queries=50))
    with pytest.raises(UserError, match=r"2 of 3 ids are not in .*v000001, 'nobody' for one; nothing was deleted"):
        delete_ids(root, ["p1", "nobody", "stranger"], FEW)
    with pytest.raises(UserError, match="no id was given"):
        delete_ids(root, [], FEW)
    with pytest.raises(UserError, match="these are all 1,200 passages"):
        delete_ids(root, [f"p{row}" for row in range(ROWS)], FEW)
    other = embedding_set(tmp_path / "other", clustered(300, 8, 0))
    with pytest.raises(UserError, match="vectors of two snapshots cannot be compared; run `dipole index build`"):
        update_index(root, other, FEW)
    with locked(root / LOCK_NAME), pytest.raises(UserError, match="another process is writing a version of"):
        delete_ids(root, ["p1"], FEW)
    assert list_versions(root) == [1] == [current_version(root)]


def test_ids_that_look_like_numbers_of_64_bits_stay_what_they_are(tmp_path: Path) -> None:
    names = [str(2**63 - 1), str(2**64 - 1), str(-(2**63)), "0009", "9", "9.0", "1e3", "ÿ\u2028", " x "]
    passages = [Passage(id=name, text=f"text {name}") for name in names] + numbered(91)
    vectors = embedding_set(tmp_path / "set", clustered(100, DIM, 0), 2, passages)
    build_index(vectors, tmp_path / "index", IndexConfig(factory="IVF4,Flat", recall_queries=20))
    assert open_index(tmp_path / "index").ids[:9] == names
    made = delete_ids(tmp_path / "index", [str(2**64 - 1), "9"], FEW)
    assert made.changes["removed"] == 2
    opened = open_index(tmp_path / "index")
    left = set(opened.search(vectors.gather(np.arange(9)), 98).rows.ravel().tolist())
    assert {1, 4}.isdisjoint(left)
    assert {0, 2, 3, 5, 6, 7, 8} <= left
    assert update_index(tmp_path / "index", vectors, FEW).changes["added"] == 2
    assert open_index(tmp_path / "index").ids[:9] == names
