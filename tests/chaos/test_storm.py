"""Kill storms over training and mining, in both ways: what comes out is the run that nobody touched.

`make test-chaos SEEDS="1 2 3"`; each seed is a storm of its own for each way.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from data_shards.atomic import read_json
from data_shards.negatives import NegativesVersion, published_versions
from data_shards.reader import PairDataset
from data_shards.samples import text_hash
from tests.chaos.storm import blow
from tests.e2e.conftest import data as data, dipole, tiny_toml
from tests.e2e.watching import Watched, losses, steps_logged
from tests.resuming import assert_same_weights, copy_run
from train.tracker import read_metrics

SEEDS = [int(word) for word in os.environ.get("SEEDS", "1").split()]
STEPS = 60
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]


def toml(data: Path, way: str) -> str:
    refresh = f'[refresh]\nway = "{way}"\nfirst_step = 10\nevery_steps = 15\nkeep_versions = 100'
    text = tiny_toml(
        data,
        [
            refresh,
            "[mining]\nmax_relative_score = 1.0",
            "[workers]\ncount = 1",
            '[tracker]\nmode = "disabled"',
        ],
    )
    changes = {
        "steps = 12\ncheckpoint_every_steps = 2": (
            f"steps = {STEPS}\ncheckpoint_every_steps = 5\nkeep_checkpoints = 1000"
        ),
        "every_steps = 6\n": "every_steps = 20\n",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def begun(data: Path, folder: Path, way: str) -> Path:
    """A run that was stopped after its first steps: all others continue copies of it, from the same weights."""
    (folder / "run.toml").write_text(toml(data, way))
    run = folder / "begun"
    watched = Watched("train", folder / "run.toml", "--out", run)
    try:
        watched.wait_for(lambda: steps_logged(run) >= 1)
        watched.process.send_signal(signal.SIGTERM)
        assert watched.wait()[0] == 75
    finally:
        watched.clean_up()
    return run


@pytest.fixture(scope="module")
def phased(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begun(data, tmp_path_factory.mktemp("phased"), "phased")


@pytest.fixture(scope="module")
def untouched(phased: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = copy_run(phased, tmp_path_factory.mktemp("untouched") / "run")
    dipole("train", run / "config.toml", "--resume")
    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_over_phases(phased: Path, untouched: Path, data: Path, tmp_path: Path, seed: int) -> None:
    run = copy_run(phased, tmp_path / "run")
    told = blow(run, seed=seed, kills=4, steps=STEPS)
    assert losses(run) == losses(untouched), told
    assert sorted(losses(run)) == [*range(STEPS)], told
    assert_same_weights(run / "snapshots/final", untouched / "snapshots/final")
    check_versions(run, data)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_beside_training(data: Path, tmp_path: Path, seed: int) -> None:
    begin = begun(data, tmp_path, "async")
    run = copy_run(begin, tmp_path / "run")
    told = blow(run, seed=1000 + seed, kills=4, steps=STEPS)
    assert sorted(losses(run)) == [*range(STEPS)], told
    check_negatives(run, data)
    # What came when is history: set back to its beginning, the run is the same once more, with nobody touching it.
    again = copy_run(run, tmp_path / "again")
    (again / "done.json").unlink()
    for path in [*(again / "checkpoints").glob("step-*"), again / "snapshots/final"]:
        shutil.rmtree(path)
    shutil.copytree(begin / "checkpoints", again / "checkpoints", dirs_exist_ok=True)
    dipole("train", again / "config.toml", "--resume")
    assert losses(again) == losses(run), told
    assert_same_weights(again / "snapshots/final", run / "snapshots/final")


def check_versions(run: Path, data: Path) -> None:
    """In phases: one version at a time, in order, each from the step that is written down."""
    steps = [row for row in read_metrics(run / "metrics.jsonl") if row["event"] == "step"]
    versions = [row["negatives_version"] for row in steps]
    assert versions == sorted(versions)
    uses: list[dict[str, Any]] = read_json(run / "negatives/uses.json") if versions[-1] else []
    begins = [(use["from_step"], use["version"]) for use in uses if use["from_step"] < len(steps)]
    for step, version in begins:
        assert versions[step] == version
        assert step == 0 or versions[step - 1] < version
    assert {version for _, version in begins} == set(versions) - {0}
    check_negatives(run, data)


def check_negatives(run: Path, data: Path) -> None:
    """Invariant 4, *negatives are negative*, of every version that was published."""
    pairs = PairDataset(data / "pairs")
    shards, rows = pairs.locate(range(len(pairs)))  # type: ignore[arg-type]
    for version in published_versions(run / "negatives"):
        opened = NegativesVersion.open(run / "negatives", version)
        for ordinal, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            (pair,) = pairs.pairs([ordinal])  # type: ignore[arg-type]
            known = {text_hash(positive.text) for positive in pair.positives}
            found = opened.negatives(pairs.shard_stems[shard], row)
            assert not known & {text_hash(negative.text) for negative in found}
