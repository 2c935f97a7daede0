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
from tests.chaos.storm import blow, calm
from tests.e2e.conftest import data as data, tiny_toml
from tests.e2e.watching import Watched, losses, steps_logged
from tests.resuming import assert_same_weights, copy_run
from train.tracker import read_metrics

SEEDS = [int(word) for word in os.environ.get("SEEDS", "1").split()]
STEPS, STRIDE, KILLS = 60, 15, 4
"""Of a run in phases."""
BESIDE_STRIDE, BESIDE_EVERY = 60, 40
"""Beside training: a version takes some seconds, and steps are quick."""
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]


def toml(data: Path, way: str) -> str:
    """Return the tiny config with refreshes; beside training it has no end, since none knows when versions come."""
    phased = way == "phased"
    refresh = "first_step = 10\nevery_steps = 15" if phased else f"first_step = 20\nevery_steps = {BESIDE_EVERY}"
    steps, checkpoint, dev = (STEPS, 5, 20) if phased else (100_000, 25, 100_000)
    text = tiny_toml(
        data,
        [
            f'[refresh]\nway = "{way}"\n{refresh}\nkeep_versions = 100',
            "[mining]\nmax_relative_score = 1.0",
            "[workers]\ncount = 1",
            '[tracker]\nmode = "disabled"',
        ],
    )
    changes = {
        "steps = 12\ncheckpoint_every_steps = 2": (
            f"steps = {steps}\ncheckpoint_every_steps = {checkpoint}\nkeep_checkpoints = 1000"
        ),
        "every_steps = 6\n": f"every_steps = {dev}\n",
        "batch_size = 16": f"batch_size = {16 if phased else 80}",
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
    calm(run, until=lambda: False)
    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_over_phases(phased: Path, untouched: Path, data: Path, tmp_path: Path, seed: int) -> None:
    run = copy_run(phased, tmp_path / "run")
    storm = blow(run, seed=seed, kills=KILLS, stride=STRIDE)
    calm(run, until=lambda: False)
    assert (run / "done.json").exists(), storm.told
    assert losses(run) == losses(untouched), storm.told
    assert sorted(losses(run)) == [*range(STEPS)], storm.told
    storm.agrees_with(losses(run))
    assert_same_weights(run / "snapshots/final", untouched / "snapshots/final")
    assert versions_of_steps(run, data)[-1] == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_beside_training(data: Path, tmp_path: Path, seed: int) -> None:
    begin = begun(data, tmp_path, "async")
    run = copy_run(begin, tmp_path / "run")
    calm(run, until=lambda: uses(run) >= 1)
    storm = blow(run, seed=1000 + seed, kills=KILLS, stride=BESIDE_STRIDE)
    before = uses(run)
    calm(run, until=lambda: in_use(run, before + 1))
    found = losses(run)
    assert sorted(found) == [*range(len(found))], storm.told
    storm.agrees_with(found)
    assert len(set(versions_of_steps(run, data, beside=True))) >= 2, storm.told
    # What came when is history: set back to its beginning, the run is the same once more, with nobody touching it.
    again = copy_run(run, tmp_path / "again")
    shutil.rmtree(again / "checkpoints")
    shutil.copytree(begin / "checkpoints", again / "checkpoints")
    calm(again, until=lambda: steps_logged(again) > len(found))
    repeated = losses(again)
    assert {step: repeated[step] for step in found} == found, storm.told
    last = max(checkpoints(run) & checkpoints(again) - checkpoints(begin))
    assert_same_state(again / "checkpoints" / last, run / "checkpoints" / last)


def checkpoints(run: Path) -> set[str]:
    """Return the names of all checkpoints."""
    return {path.name for path in (run / "checkpoints").glob("step-*") if path.suffix == ""}


def uses(run: Path) -> int:
    """Return how many versions were taken."""
    path = run / "negatives/uses.json"
    return len(read_json(path)) if path.exists() else 0


def in_use(run: Path, count: int) -> bool:
    """Whether so many versions are in use, by steps that are logged."""
    found = read_json(run / "negatives/uses.json") if uses(run) >= count else []
    return bool(found) and steps_logged(run) > found[count - 1]["from_step"] + 5


def assert_same_state(found: Path, wanted: Path) -> None:
    """Compare weights and optimiser state of two checkpoints bit for bit."""
    names = sorted(path.name for path in wanted.glob("*.safetensors"))
    assert names == sorted(path.name for path in found.glob("*.safetensors")) != []
    for name in names:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name


def versions_of_steps(run: Path, data: Path, *, beside: bool = False) -> list[int]:
    """Invariant 4, *negatives are negative*, and one version at a time, in order; return that of each step."""
    versions = [row["negatives_version"] for row in read_metrics(run / "metrics.jsonl") if row["event"] == "step"]
    written: list[dict[str, Any]] = read_json(run / "negatives/uses.json")
    begins = [use["from_step"] for use in written]
    assert begins == sorted(set(begins))
    assert [use["version"] for use in written] == sorted({use["version"] for use in written})
    for step, version in enumerate(versions):
        # Beside training, one that came early may be for steps that are still ahead: then the one before serves.
        begun = [0, *(use["version"] for use in written if use["from_step"] <= step)]
        assert version in (begun[-2:] if beside else begun[-1:]), step
    pairs = PairDataset(data / "pairs")
    shards, rows = pairs.locate(range(len(pairs)))  # type: ignore[arg-type]
    for version in published_versions(run / "negatives"):
        opened = NegativesVersion.open(run / "negatives", version)
        for ordinal, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            (pair,) = pairs.pairs([ordinal])  # type: ignore[arg-type]
            known = {text_hash(positive.text) for positive in pair.positives}
            found = opened.negatives(pairs.shard_stems[shard], row)
            assert not known & {text_hash(negative.text) for negative in found}
    return versions
