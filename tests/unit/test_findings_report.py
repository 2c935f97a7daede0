"""The validation report as a page and as text: one file, nothing from elsewhere, the numbers that were found."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from data_shards.findings.find import ChecksConfig, Findings, find
from launch.data_report import write_data_report
from launch.data_text import findings_text, percent, samples_text, stats_text, verdict
from tests.unit.page_outline import Outline, assert_offline
from tests.unit.tiny import pair, passage, write_corpus, write_pairs

HOSTILE = "<script>alert('x')</script> & $\\frac{1}{2}$ {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "shop"
    same = (passage("p", "the same passage"), passage("p-again", "The same passage"))
    pairs = [pair(number, positives=same if number < 2 else (passage(f"p{number}"),)) for number in range(30)]
    pairs[5] = pair(5, query=HOSTILE, weight=0.01, source="<b>logs</b>")
    pairs[6] = pair(6, query="", negatives=(passage("n"),), scores=(3.0,))
    pairs[7] = pair(7, positives=())
    write_pairs(folder, pairs)
    return folder


@pytest.fixture(scope="module")
def findings(folder: Path) -> Findings:
    return find(folder, ChecksConfig())


@pytest.fixture(scope="module")
def page(folder: Path, findings: Findings) -> str:
    return write_data_report(folder, findings).read_text(encoding="utf-8")


def test_the_page_lies_in_the_dataset_and_takes_nothing_from_elsewhere(folder, page):
    assert (folder / "validation.html").is_file()
    assert_offline(page)


def test_hostile_text_stays_text(page):
    parsed = Outline(page)
    assert "script" not in parsed.tags
    assert "b>logs" not in page
    assert "<b>logs</b>" in parsed.texts
    assert "49" not in parsed.texts


def test_findings_and_numbers_are_on_the_page(findings, page):
    texts = Outline(page).texts
    shown = " ".join(texts)
    assert {"1", "fatal", "pair without positive", "blank query", "positive under several ids"} <= set(texts)
    assert "Not fit for use: pair_without_positive" in shown
    assert "of 30 queries, 3.3%" in shown
    assert "p-again · train-000000.tar row 0; as in p · train-000000.tar row 0" in shown
    assert "(blank)" in texts
    assert findings.dataset_id in texts


def test_each_figure_is_drawn_where_there_is_data(page):
    figures = re.findall(r'<svg class="wide"[^>]*aria-label="([^"]*)"', page)
    assert len(figures) == 6  # lengths, languages, positives, negatives, weights, scores
    assert "29 queries with 0, 1 queries with 1" in figures[3]
    assert "weights from 0.01 to 1" in figures[4]


def test_a_plain_corpus_has_a_short_page(tmp_path):
    folder = write_corpus(tmp_path / "c", [passage("a", "some words here")])
    findings = find(folder, ChecksConfig(near_duplicates=False, sample_texts=0))
    page = write_data_report(folder, findings, tmp_path / "elsewhere.html").read_text(encoding="utf-8")
    texts = Outline(page).texts
    assert "Nothing fatal was found, and nothing else either." in texts
    assert "What was found" not in texts
    assert "Languages" not in texts
    assert not (folder / "validation.html").exists()


def test_the_same_findings_give_the_same_bytes(folder, findings, page, tmp_path):
    assert write_data_report(folder, findings, tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_findings_as_text(folder, findings):
    text = findings_text(findings)
    assert text.startswith("Not fit for use: pair_without_positive. Mend it, or allow it by name (--allow here, ")
    assert "FATAL      pair_without_positive: 1 of 30 pairs, 3.3%" in text
    assert "· train-000001.tar row 3, id q7: “query 7”" in text
    assert "as in train-000000.tar row 0, id p" in text
    allowed = find(folder, ChecksConfig(allow=("pair_without_positive",), near_duplicates=False))
    assert verdict(allowed).startswith("Fatal findings were allowed: pair_without_positive; besides, ")
    assert "allowed    pair_without_positive" in findings_text(allowed)


def test_a_teachers_scores_are_shown(tmp_path):
    taught = pair(0, negatives=(passage("n"),), teacher_positives=(2.5,), teacher_negatives=(-7.0,))
    dataset = write_pairs(tmp_path / "p", [taught, pair(1)])
    shown = samples_text([msgspec.to_builtins(sample) for sample in dataset])
    assert "positive p0  teacher 2.5\n" in shown
    assert "negative n  teacher -7\n" in shown
    assert "positive p1\n" in shown
    numbers = find(tmp_path / "p", ChecksConfig(near_duplicates=False)).numbers
    assert "pairs with a teacher's score for every passage: 1" in stats_text(numbers)


@pytest.mark.parametrize(
    ("count", "of", "text"),
    [
        (0, 0, "0.00%"),
        (1, 100_000, "<0.01%"),
        (1, 200, "0.50%"),
        (1, 3, "33.3%"),
        (99_999, 100_000, ">99.9%"),
        (5, 5, "100.0%"),
    ],
)
def test_a_little_is_not_nothing(count, of, text):
    assert percent(count, of) == text
