"""Search parameters: the cheapest that reach the wanted recall, told by queries that did not choose them."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from data_shards.errors import UserError
from index_build.calibration import calibrate, cheapest, choose_setting, reaches
from index_build.index_rows import IndexedRows
from index_build.recall import RecallProbe
from index_build.slot_search import SlotSearch
from tests.unit.index_sets import embedding_set, unit_vectors


def searched(factory: str, vectors: np.ndarray) -> SlotSearch:
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return SlotSearch(index)


@pytest.mark.parametrize("answer", [1, 2, 3, 5, 15, 16])
def test_cheapest_finds_the_smallest_that_is_enough(answer: int) -> None:
    asked = []

    def enough(value: int) -> bool:
        asked.append(value)
        return value >= answer

    assert cheapest(enough, 1, 16) == answer
    assert len(asked) <= 9


def test_cheapest_stops_where_finer_saves_nothing_and_takes_the_most_where_nothing_is_enough() -> None:
    assert 1_000 <= cheapest(lambda value: value >= 1_000, 1, 4_096) <= 1_064
    assert cheapest(lambda value: False, 1, 100) == 100


def test_a_margin_of_a_standard_error_is_kept() -> None:
    """Of 100 shares, half 1.0 and half 0.9, the mean is 0.95 and its error 0.05 / sqrt(99) = 0.005."""
    shares = np.array([1.0, 0.9] * 50)
    assert not reaches(shares, 0.95)
    assert reaches(shares, 0.9449)
    assert reaches(np.ones(10), 1.0)


def test_a_refined_index_gets_both_of_its_parameters(tmp_path: Path) -> None:
    vectors = unit_vectors(2_000, 32, seed=0)
    index = searched("IVF16,PQ16x4fs,Refine(SQfp16)", vectors)
    probe = RecallProbe.prepare(IndexedRows(embedding_set(tmp_path, vectors)), unit_vectors(100, 32, seed=1), 10)
    found = calibrate(index, probe, 0.9, "given")
    assert set(found.chosen.search) == {"nprobe", "k_factor"}
    assert found.chosen.recall.value > 0.85
    index.set({**found.chosen.search, "k_factor": 1})
    assert probe.hits(index.search).mean() < found.chosen.recall.value  # refining is what found them


def test_the_curve_rises_and_holds_the_chosen_setting(tmp_path: Path) -> None:
    vectors = unit_vectors(3_000, 16, seed=0)
    index = searched("IVF64,Flat", vectors)
    probe = RecallProbe.prepare(IndexedRows(embedding_set(tmp_path, vectors)), unit_vectors(200, 16, seed=1), 10)
    found = calibrate(index, probe, 0.9, "given")
    values = [point.recall.value for point in found.curve]
    assert values == sorted(values)
    assert found.chosen in found.curve
    assert [point.search["nprobe"] for point in found.curve] == sorted(
        point.search["nprobe"] for point in found.curve
    )
    assert index.index.nprobe == found.chosen.search["nprobe"]
    assert found.chosen.recall.queries == 100
    assert found.chosen.queries_per_s > 0


def test_the_graphs_effort_is_chosen(tmp_path: Path) -> None:
    vectors = unit_vectors(2_000, 16, seed=0)
    index = searched("HNSW8,SQfp16", vectors)
    probe = RecallProbe.prepare(IndexedRows(embedding_set(tmp_path, vectors)), unit_vectors(60, 16, seed=1), 10)

    def shares(setting: dict[str, int]) -> np.ndarray:
        index.set(setting)
        return probe.hits(index.search)

    low, high = (choose_setting(index, shares, wanted)["efSearch"] for wanted in (0.5, 0.98))
    assert low < high
    assert choose_setting(searched("Flat", vectors), shares, 0.9) == {}


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(UserError, match="no search parameter 'efSearch'"):
        searched("IVF4,Flat", unit_vectors(200, 8, seed=0)).set({"efSearch": 4})
