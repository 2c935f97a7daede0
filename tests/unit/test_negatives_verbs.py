"""`dipole negatives show`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.negatives import write_negatives
from launch.cli import main
from tests.unit.test_negatives_format import MANIFEST, ROWS
from tests.unit.test_refresh_log import FULL, SAMPLE

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with an old version and a new one, and one that was mined by hand."""
    (tmp_path / "run.json").write_text("{}")
    write_negatives(tmp_path / "negatives", MANIFEST, ROWS)
    write_negatives(tmp_path / "negatives", replace(FULL, version=12, from_step=80, to_step=120), ROWS, sample=SAMPLE)
    write_negatives(tmp_path / "mined", replace(FULL, version=1), ROWS)
    return tmp_path


def test_all_versions_are_listed(run: Path, capsys: Capture) -> None:
    assert main(["negatives", "show", "--run", str(run)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[1:-1]
    assert head.split() == [
        "version",
        "steps",
        "snapshot",
        "sources",
        "queries",
        "a",
        "query",
        "gap",
        "still",
        "hard",
        "false",
        "seconds",
    ]
    assert [row.split() for row in rows] == [
        ["v3", "40-80", "40", "dense", "3", "-", "-", "-", "-", "1.5"],
        ["v12", "80-120", "40", "dense+bm25", "3", "-", "0.250", "50%", "12.5%", "10.0"],
    ]


def test_one_version_is_shown_in_full(run: Path, capsys: Capture) -> None:
    assert main(["negatives", "show", "--run", str(run), "--version", "12"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["margin", "60", "60.0%"] in lines
    assert ["search", "1.50", "15.0%"] in lines
    assert "gap 0.250" in out
    assert "50.0% of the version before" in out
    assert ["+", "0.750", "Sort", "sorts"] in lines
    assert ["-", "0.500", "teacher", "-1.500", "two"] in lines


def test_as_json_it_is_one_object(run: Path, capsys: Capture) -> None:
    assert main(["negatives", "show", "--run", str(run), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["version"] for row in listed["versions"]] == [3, 12]
    assert listed["versions"][1]["total_s"] == 10.0
    assert main(["negatives", "show", "--run", str(run), "--version", "12", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["sample"], shown["filters"], shown["seconds"]) == (SAMPLE, FULL.filters, FULL.seconds)


def test_versions_that_were_mined_by_hand_are_kept_apart(run: Path, capsys: Capture) -> None:
    assert main(["negatives", "show", "--run", str(run), "--by-hand", "--json"]) == 0
    assert [row["version"] for row in json.loads(capsys.readouterr().out)["versions"]] == [1]


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        ("run.json", [], "is not a run folder; give one that `dipole train` made"),
        ("negatives", [], "negatives holds no negatives version yet; --by-hand shows those of `dipole mine`"),
        ("mined", ["--by-hand"], "mined holds no negatives version yet; `dipole mine` makes one"),
        ("", ["--version", "4"], "v000004 is no published negatives version; there are: 3, 12"),
        ("negatives/v000012/sample.json", ["--version", "12"], "sample.json at byte 0: the file is missing"),
    ],
)
def test_a_mistake_is_one_line(run: Path, capsys: Capture, prepare: str, arguments: list[str], message: str) -> None:
    if prepare:
        (run / prepare).rename(run / "gone")
    assert main(["negatives", "show", "--run", str(run), *arguments]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_a_damaged_manifest_is_one_line(run: Path, capsys: Capture) -> None:
    (run / "negatives/v000012/manifest.json").write_text("{")
    assert main(["negatives", "show", "--run", str(run)]) == 2
    assert "v000012/manifest.json is not valid JSON" in capsys.readouterr().err
