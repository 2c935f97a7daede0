"""Refreshes beside training: the miner and a rank are killed, and what was trained is explained and comes again."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from data_shards.atomic import read_json
from data_shards.negatives import NegativesVersion
from data_shards.reader import PairDataset
from data_shards.samples import text_hash
from tests.e2e.conftest import tiny_toml
from tests.e2e.watching import Watched, losses, steps_logged
from tests.resuming import copy_run
from train.tracker import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.ray]
_MORE = [
    '[refresh]\nway = "async"\nfirst_step = 20\nevery_steps = 60\nkeep_versions = 100',
    "[mining]\nmax_relative_score = 1.0",
    "[workers]\ncount = 1",
    '[tracker]\nmode = "disabled"',
]

_CHANGES = {
    "[train]\nsteps = 12\ncheckpoint_every_steps = 2": "[train]\nsteps = 100000\ncheckpoint_every_steps = 40",
    "[engine]": "keep_checkpoints = 1000\n[engine]",
    "batch_size = 16": "batch_size = 80",
    "every_steps = 6\n": "every_steps = 100000\n",
}


def uses(run: Path) -> list[dict[str, Any]]:
    path = run / "negatives" / "uses.json"
    return list(read_json(path)) if path.exists() else []


def in_use(run: Path, count: int) -> bool:
    """Whether so many versions are in use, by steps that are logged."""
    found = uses(run)
    return len(found) >= count and steps_logged(run) > found[count - 1]["from_step"] + 5


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose miner was killed while it mined, and which was stopped when a second version was in use."""
    folder = tmp_path_factory.mktemp("beside")
    text = tiny_toml(data, _MORE)
    for old, new in _CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "beside.toml").write_text(text)
    run = folder / "run"
    watched = Watched("train", folder / "beside.toml", "--out", run)
    try:
        watched.wait_for(lambda: in_use(run, 1))
        (miner,) = watched.running("launch.miner")
        miner.kill()
        watched.wait_for(lambda: in_use(run, 2))
        watched.process.send_signal(signal.SIGTERM)
        code, output = watched.wait()
        assert code == 75, output
        assert "the miner ended (exit code -9) and is started again" in output
        assert watched.ends_within(10) == []
    finally:
        watched.clean_up()
    return run


def test_every_step_says_which_negatives_it_had_and_how_old_they_were(stopped: Path) -> None:
    rows = [row for row in read_metrics(stopped / "metrics.jsonl") if row["event"] == "step"]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    begins = {use["from_step"]: use["version"] for use in uses(stopped)}
    seen = {
        row["version"]: row["step"] for row in read_metrics(stopped / "metrics.jsonl") if row["event"] == "refresh"
    }
    assert {version: step for step, version in begins.items() if step < len(rows)} == seen
    versions = [row["negatives_version"] for row in rows]
    assert versions == sorted(versions)
    assert set(versions) > {0}
    taken_at = [version.manifest.snapshot_step for version in opened(stopped)]
    assert all(step % 60 == 20 for step in taken_at), "each snapshot is of a step at which a refresh was due"
    assert len(set(taken_at)) == len(taken_at)


def opened(run: Path) -> list[NegativesVersion]:
    return [NegativesVersion.open(run / "negatives", use["version"]) for use in uses(run)]


def test_no_negative_that_was_used_is_a_positive(stopped: Path, data: Path) -> None:
    """Invariant 4, *negatives are negative*."""
    pairs = PairDataset(data / "pairs")
    shards, rows = pairs.locate(range(len(pairs)))  # type: ignore[arg-type]
    found = 0
    for version in opened(stopped):
        for ordinal, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            (pair,) = pairs.pairs([ordinal])  # type: ignore[arg-type]
            known = {text_hash(positive.text) for positive in pair.positives}
            negatives = version.negatives(pairs.shard_stems[shard], row)
            found += len(negatives)
            assert not known & {text_hash(negative.text) for negative in negatives}
    assert found > 100


def test_set_back_and_killed_on_the_way_it_is_the_run_that_it_was(stopped: Path, tmp_path: Path) -> None:
    """Invariant 3, *resume is exact*: when a version came is history, which a resume repeats."""
    run = copy_run(stopped, tmp_path / "run")
    config = run / "config.toml"
    first_use, last = uses(run)[0]["from_step"], steps_logged(run)
    for path in (run / "checkpoints").glob("step-*"):
        if path.name >= f"step-{first_use:07d}":
            shutil.rmtree(path)
    watched = Watched("train", config, "--resume")
    try:
        kill_at = random.Random(7).randint(first_use + 1, last - 1)
        watched.wait_for(lambda: kill_at < steps_logged(run) < last)
        watched.rank(1).kill()
        assert watched.wait()[0] == 1
        assert watched.ends_within(60) == []
        watched = Watched("train", config, "--resume")
        watched.wait_for(lambda: steps_logged(run) > last)
        watched.process.send_signal(signal.SIGTERM)
        assert watched.wait()[0] == 75
        assert watched.ends_within(10) == []
    finally:
        watched.clean_up()
    found, wanted = losses(run), losses(stopped)
    assert {step: found[step] for step in wanted} == wanted
