"""What a run shows of a refresh: the event with its numbers, and the sample as a table that is really written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_shards.errors import UserError
from data_shards.negatives import NegativesManifest, NegativesVersion, write_negatives
from tests.unit.test_negatives_format import MANIFEST, ROWS
from train.refresh_log import SAMPLE_COLUMNS, log_refresh, refresh_values
from train.tracker import Tracker, TrackerConfig, read_metrics

FULL = replace(
    MANIFEST,
    filters={"kept": 30, "margin": 60, "known_positive": 10},
    seconds={"embed_corpus": 6.0, "index": 1.0, "search": 1.5, "filter": 1.5},
    sources=("dense", "bm25"),
    statistics={"queries": 5, "gap": 0.25, "still_hard": 0.5, "false_negative_share": 0.125},
)
SAMPLE = [
    {
        "query_id": "q1",
        "query": "sort | a list",
        "positives": [{"id": "p1", "title": "Sort", "text": "sorts", "score": 0.75}],
        "negatives": [
            {"id": "p2", "title": "", "text": "two", "score": 0.5, "teacher": -1.5},
            {"id": "p3", "title": "", "text": "three", "score": 0.25},
        ],
    },
    {"query_id": "q2", "query": "nothing found", "positives": [], "negatives": []},
]
TABLE = [
    ["sort | a list", "Sort sorts", 0.75, "two", 0.5, -1.5],
    ["sort | a list", "Sort sorts", 0.75, "three", 0.25, None],
    ["nothing found", "", None, "", None, None],
]


@pytest.fixture(autouse=True)
def _no_run_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()


def version(place: Path, manifest: NegativesManifest = FULL, sample: Any = SAMPLE) -> NegativesVersion:
    write_negatives(place, manifest, ROWS, sample=sample)
    return NegativesVersion.open(place, manifest.version)


def tracker(folder: Path, mode: str, *, active: bool = True) -> Tracker:
    config = TrackerConfig(mode=mode, project="tests", tensorboard=mode == "offline")  # type: ignore[arg-type]
    return Tracker(folder / "metrics.jsonl", config, run_id="ab12", job_type="train", resolved={}, active=active)


def test_a_refresh_is_logged_with_shares_gaps_and_age(tmp_path: Path) -> None:
    """By hand: 2.5 of 10 seconds are index and search; 60 of 100 candidates fell to the margin."""
    log = tracker(tmp_path, "disabled")
    log_refresh(log, version(tmp_path / "negatives"), step=42, waited_s=3.5, age_steps=2)
    log.close()
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["event"], row["step"], row["waited_s"], row["age_steps"]) == ("refresh", 42, 3.5, 2)
    assert (row["version"], row["from_step"], row["to_step"], row["queries"], row["asked_queries"]) == (
        3,
        40,
        80,
        3,
        5,
    )
    assert row["seconds"] == FULL.seconds
    assert row["search_share"] == 0.25
    assert row["filters"] == FULL.filters
    assert row["filter_share"] == {"kept": 0.3, "margin": 0.6, "known_positive": 0.1}
    assert (row["positive_score"], row["negative_score"], row["gap"], row["still_hard"]) == (0.7, 0.4, 0.25, 0.5)
    assert (row["false_negative_share"], row["sources"], row["index"]) == (0.125, "dense, bm25", FULL.index)


def test_a_version_from_before_there_were_statistics_is_logged(tmp_path: Path) -> None:
    values = refresh_values(replace(MANIFEST, filters={}, seconds={}))
    assert values["asked_queries"] == 0
    assert values["filter_share"] == {}
    assert values["search_share"] == 0.0
    assert "gap" not in values
    log = tracker(tmp_path, "disabled")
    log_refresh(log, version(tmp_path / "negatives", MANIFEST, None), step=1, waited_s=0.0, age_steps=0)


def test_the_sample_is_a_table_in_an_offline_run_and_in_tensorboard(tmp_path: Path) -> None:
    log = tracker(tmp_path, "offline")
    log_refresh(log, version(tmp_path / "negatives"), step=42, waited_s=3.5, age_steps=2)
    log.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    numbers, table = items
    assert (numbers["refresh/filter_share/margin"], numbers["refresh/gap"]) == (0.6, 0.25)
    assert (table["refresh/sample._type"], table["refresh/sample.nrows"]) == ("table-file", 3)
    assert table["global_step"] == 42
    (written,) = tmp_path.glob("wandb/offline-run-*/files/media/table/refresh/sample_*.json")
    assert json.loads(written.read_text()) == {"columns": list(SAMPLE_COLUMNS), "data": TABLE}
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    (event,) = shown.Tensors("refresh/sample/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| query | positive | positive_score | negative | negative_score | teacher |"
    assert lines[2:] == [
        "| sort \\| a list | Sort sorts | 0.75 | two | 0.5 | -1.5 |",
        "| sort \\| a list | Sort sorts | 0.75 | three | 0.25 |  |",
        "| nothing found |  |  |  |  |  |",
    ]


def test_other_ranks_log_nothing(tmp_path: Path) -> None:
    log = tracker(tmp_path / "run", "offline", active=False)
    log_refresh(log, version(tmp_path / "negatives"), step=42, waited_s=3.5, age_steps=2)
    assert not (tmp_path / "run").exists()


def test_a_sample_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    """Sound bytes of somebody else's."""
    log = tracker(tmp_path, "disabled")
    strange = version(tmp_path / "negatives", FULL, [{"question": "?"}])
    with pytest.raises(UserError, match=r"sample\.json holds no sample \(KeyError\('positives'\)\); mine anew"):
        log_refresh(log, strange, step=42, waited_s=3.5, age_steps=2)
