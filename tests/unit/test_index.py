"""Index versions: built, measured, opened, swapped, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import pytest

from data_shards.errors import UserError
from index_build.embedding_set import EmbeddingSet
from index_build.exact import Neighbours, exact_search
from index_build.index import build_index
from index_build.index_check import check_index
from index_build.index_config import IndexConfig
from index_build.index_version import current_version, list_versions, open_index, rollback, version_dir
from index_build.recall import RecallProbe, wilson
from tests.unit.index_sets import embedding_set, unit_vectors


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    return embedding_set(tmp_path_factory.mktemp("set"), unit_vectors(600, 16, seed=0))


def numpy_top(vectors: EmbeddingSet, queries: np.ndarray, k: int) -> np.ndarray:
    every = np.concatenate([block for _, block in vectors.blocks()])
    return np.argsort(-(queries @ every.T), axis=1, kind="stable")[:, :k]


def test_exact_search_is_numpys(vectors: EmbeddingSet) -> None:
    queries = unit_vectors(20, 16, seed=1)
    found = exact_search(queries, vectors.blocks(rows=70), 10)
    np.testing.assert_array_equal(found.rows, numpy_top(vectors, queries, 10))


def test_exact_search_by_hand() -> None:
    rows = np.array([[1, 0], [0, 2], [-1, 0]], dtype=np.float32)
    found = exact_search(np.array([[3, 1]], dtype=np.float32), [(0, rows[:2]), (2, rows[2:])], 4)
    assert found.rows.tolist() == [[0, 1, 2, -1]]
    assert found.scores.tolist() == [[3, 2, -3, -np.inf]]


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,SQ8", "L2norm,IVF8,Flat"])
def test_found_ids_are_those_of_the_rows(vectors: EmbeddingSet, tmp_path: Path, factory: str) -> None:
    """An ID map over IVF, or rows added out of order, would mix ids up."""
    build_index(vectors, tmp_path, IndexConfig(factory=factory))
    index = open_index(tmp_path)
    assert index.ids == [f"p{row}" for row in range(600)]
    own = np.array([0, 199, 200, 399, 400, 599])  # first and last rows of the three parts
    assert index.search(vectors.gather(own), 1).rows[:, 0].tolist() == own.tolist()


def test_recall_is_measured_in_every_manifest(vectors: EmbeddingSet, tmp_path: Path) -> None:
    """Invariant 6, *recall is measured*: by exact search over the same vectors, recounted here with numpy."""
    queries = unit_vectors(200, 16, seed=2)
    config = IndexConfig(factory="IVF16,Flat", wanted_recall=0.7)
    made = build_index(vectors, tmp_path, config, queries)
    assert made.recall.queries == 100
    assert made.recall.queries_from == "given"
    measured_on = queries[1::2]
    found = open_index(tmp_path).search(measured_on, 10).rows
    truth = numpy_top(vectors, measured_on, 10)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert made.recall.value == pytest.approx(share, abs=1e-6)
    assert made.recall.low < made.recall.value < made.recall.high
    written = json.loads((version_dir(tmp_path, 1) / "manifest.json").read_text())
    assert written["recall@10"]["value"] == made.recall.value
    assert written["search"] == made.search


def test_a_manifest_without_measured_recall_is_refused(vectors: EmbeddingSet, tmp_path: Path) -> None:
    """Invariant 6, *recall is measured*: an index that does not say its recall does not open."""
    build_index(vectors, tmp_path, IndexConfig(factory="Flat"))
    path = version_dir(tmp_path, 1) / "manifest.json"
    row = json.loads(path.read_text())
    del row["recall@10"]
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match="carries no measured recall"):
        open_index(tmp_path)


def test_the_cheapest_nprobe_that_reaches_the_wanted_recall_is_taken(vectors: EmbeddingSet, tmp_path: Path) -> None:
    queries = unit_vectors(200, 16, seed=3)
    chosen = {}
    for wanted in (0.1, 0.7, 1.0):
        root = tmp_path / str(wanted)
        config = IndexConfig(factory="IVF16,Flat", wanted_recall=wanted)
        chosen[wanted] = build_index(vectors, root, config, queries).search["nprobe"]
    assert chosen[0.1] == 1
    assert 1 < chosen[0.7] < 16
    assert chosen[1.0] == 16
    index = faiss.read_index(str(version_dir(tmp_path / "0.7", 1) / "index.faiss"))
    index.nprobe = chosen[0.7] // 2
    tuned_on, truth = queries[0::2], numpy_top(vectors, queries[0::2], 10)
    _, rows = index.search(tuned_on, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), truth.tolist(), strict=True)]) < 0.7


def test_without_queries_corpus_rows_stand_in_without_themselves(vectors: EmbeddingSet, tmp_path: Path) -> None:
    made = build_index(vectors, tmp_path, IndexConfig(factory="Flat", recall_queries=50))
    assert made.recall.queries_from == "corpus rows, each without itself"
    assert made.recall.value == 1.0
    assert made.recall.queries == 25
    probe = RecallProbe.prepare(vectors, vectors.gather(np.array([7])), 10, own_rows=np.array([7]))
    assert 7 not in probe.truth.rows


def test_hits_count_what_is_as_near_as_the_truth(tmp_path: Path) -> None:
    """Of two equal rows the index may return either: neither is a miss. A farther row is."""
    rows = np.array([[1, 0], [0.5, 0], [0.5, 0], [0.25, 0]], dtype=np.float32)
    probe = RecallProbe.prepare(embedding_set(tmp_path, rows, parts=1), np.array([[1, 0]], dtype=np.float32), 2)

    def answers(*found: int) -> float:
        return float(probe.hits(lambda q, k: Neighbours(np.zeros((1, 2), np.float32), np.array([found])))[0])

    assert answers(0, 1) == answers(0, 2) == 1.0
    assert answers(0, 3) == answers(0, -1) == 0.5
    assert answers(3, -1) == 0.0


def test_wilson_by_hand() -> None:
    """With z = 1.96, for 8 of 10, (0.8 + 0.192) / 1.384 ± 1.96 / 1.384 * sqrt(0.016 + 0.0096) = 0.717 ± 0.227."""
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(1.0, 100) == pytest.approx((0.9630, 1.0), abs=1e-3)
    assert wilson(1.0, 0) == (0.0, 1.0)


def test_the_same_set_gives_the_same_index(vectors: EmbeddingSet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_index(vectors, tmp_path / name, IndexConfig(factory="IVF16,SQ8"))
    files = [(version_dir(tmp_path / name, 1) / "index.faiss").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_versions_are_numbered_swapped_and_rolled_back(vectors: EmbeddingSet, tmp_path: Path) -> None:
    for factory in ("Flat", "IVF4,Flat"):
        build_index(vectors, tmp_path, IndexConfig(factory=factory))
    assert list_versions(tmp_path) == [1, 2]
    assert open_index(tmp_path).manifest.factory == "IVF4,Flat"
    assert rollback(tmp_path, 1).factory == "Flat"
    assert current_version(tmp_path) == 1
    assert build_index(vectors, tmp_path, IndexConfig(factory="Flat")).version == 3
    report = check_index(tmp_path)
    assert report["current"] == 3
    assert report["versions"][2] == {
        "factory": "IVF4,Flat",
        "ntotal": 600,
        "recall@10": pytest.approx(1, abs=0.05),
        "compared": ["embedding set"],
    }
    with pytest.raises(UserError, match="has no index version 9; there are: 1, 2, 3"):
        rollback(tmp_path, 9)


@pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
def test_a_damaged_version_is_refused(vectors: EmbeddingSet, tmp_path: Path, name: str) -> None:
    build_index(vectors, tmp_path, IndexConfig(factory="Flat"))
    path = version_dir(tmp_path, 1) / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged.*roll back"):
        open_index(tmp_path)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        check_index(tmp_path)


def test_a_build_that_fails_leaves_no_version(vectors: EmbeddingSet, tmp_path: Path) -> None:
    build_index(vectors, tmp_path, IndexConfig(factory="Flat"))
    for factory, reason in (("Nonsense", "could not parse"), ("IVF6000,Flat", "Number of training points")):
        with pytest.raises(UserError, match=f"index.factory '{factory}' cannot be built on 600 vectors.*{reason}"):
            build_index(vectors, tmp_path, IndexConfig(factory=factory))
    assert list_versions(tmp_path) == [1]
    assert current_version(tmp_path) == 1


def test_users_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no index.*dipole index build"):
        open_index(tmp_path)
    with pytest.raises(UserError, match="leave IDMap out"):
        IndexConfig(factory="IVF8,SQ8,IDMap2")
    with pytest.raises(UserError, match=r"index.wanted_recall is 95"):
        IndexConfig(wanted_recall=95)


def test_a_query_of_another_dimension_is_refused(vectors: EmbeddingSet, tmp_path: Path) -> None:
    build_index(vectors, tmp_path, IndexConfig(factory="Flat"))
    with pytest.raises(UserError, match="vectors of 16 dimensions, the query has 8"):
        open_index(tmp_path).search(np.zeros((1, 8), np.float32), 1)
