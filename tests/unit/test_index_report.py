"""The page of an index version: one file, nothing from elsewhere, the numbers that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from index_build.index import build_index
from index_build.index_config import IndexConfig
from index_build.index_manifest import IndexManifest
from index_build.index_update import delete_ids
from index_build.index_version import version_dir
from launch.index_report import write_index_report
from tests.unit.index_sets import clustered, embedding_set
from tests.unit.page_outline import Outline, assert_offline


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[IndexManifest], list[str]]:
    place = tmp_path_factory.mktemp("index")
    vectors = embedding_set(place / "set", clustered(1_000, 16, 0))
    config = IndexConfig(factory="IVF16,SQfp16", recall_queries=100, wanted_recall=0.97)
    manifests = [
        build_index(vectors, place / "index", config, report=write_index_report),
        delete_ids(place / "index", [f"p{row}" for row in range(400)], config, report=write_index_report),
    ]
    pages = [(version_dir(place / "index", at) / "report.html").read_text(encoding="utf-8") for at in (1, 2)]
    return manifests, pages


def test_nothing_comes_from_elsewhere(made: tuple[list[IndexManifest], list[str]]) -> None:
    for page in made[1]:
        assert_offline(page)


def test_the_measured_numbers_are_shown(made: tuple[list[IndexManifest], list[str]]) -> None:
    manifest, texts = made[0][0], Outline(made[1][0]).texts
    assert f"{manifest.recall.value:.3f}" in texts
    assert manifest.choice in texts
    assert "IVF16,SQfp16" in texts
    assert any(f"95% interval {manifest.recall.low:.3f} to {manifest.recall.high:.3f}" in text for text in texts)
    for point in manifest.curve:
        assert f"nprobe {point['search']['nprobe']}" in texts
    assert "A rebuild is due:" not in texts


def test_a_changed_version_tells_what_has_changed(made: tuple[list[IndexManifest], list[str]]) -> None:
    texts = Outline(made[1][1]).texts
    assert "Changed from version 1" in texts
    assert texts[texts.index("removed") + 1] == "400"
    assert "A rebuild is due:" in texts
    assert any("40% of its rows are dead (bound 20%)" in text for text in texts)


def test_an_exact_search_has_no_curve(tmp_path: Path) -> None:
    vectors = embedding_set(tmp_path / "set", clustered(100, 16, 0))
    build_index(vectors, tmp_path / "index", IndexConfig(recall_queries=20), report=write_index_report)
    page = (version_dir(tmp_path / "index", 1) / "report.html").read_text(encoding="utf-8")
    assert_offline(page)
    assert "Recall against time" not in page
    assert "exact" in Outline(page).texts
