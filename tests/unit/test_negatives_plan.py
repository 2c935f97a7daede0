"""Which version a step uses, what is replayed, and what is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.atomic import write_json
from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion, published_versions
from tests.unit.negatives_helper import DATASET, publish
from train.negatives_plan import NegativesPlan, set_aside
from train.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def take(run: RunFolder, plan: NegativesPlan, version: int, from_step: int, *, stretch: tuple[int, int]) -> None:
    publish(run, version, from_step=stretch[0], to_step=stretch[1], snapshot_step=10 * version)
    plan.take(NegativesVersion.open(run.negatives, version), from_step, write=True)


def numbers(plan: NegativesPlan, steps: range) -> list[int]:
    found = [plan.at(step) for step in steps]
    return [version.manifest.version if version else 0 for version in found]


def test_the_newest_whose_stretch_holds_the_step_serves_it(run: RunFolder) -> None:
    """Version 2 comes into use at step 14, but was mined for 16 on; behind its stretch it serves all the same."""
    plan = NegativesPlan(run, DATASET)
    take(run, plan, 1, 11, stretch=(10, 20))
    take(run, plan, 2, 14, stretch=(16, 22))
    assert numbers(plan, range(9, 25)) == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert (plan.lag(10), plan.lag(12), plan.lag(14)) == (0, 1, -6)


def test_what_was_decided_is_replayed_by_the_next_life(run: RunFolder) -> None:
    plan = NegativesPlan(run, DATASET)
    take(run, plan, 1, 11, stretch=(10, 20))
    take(run, plan, 3, 14, stretch=(12, 22))
    again = NegativesPlan(run, DATASET)
    assert again.uses == plan.uses
    assert again.newest == 3
    assert numbers(again, range(9, 25)) == numbers(plan, range(9, 25))
    take_again = NegativesVersion.open(run.negatives, 3)
    again.take(take_again, 14, write=True)
    assert again.uses == plan.uses, "the same use is written once"


def test_a_version_in_use_that_is_gone_is_named(run: RunFolder) -> None:
    take(run, NegativesPlan(run, DATASET), 1, 11, stretch=(10, 20))
    set_aside(run, 1, "a trial")
    assert NegativesPlan(run, DATASET).at(10) is None
    with pytest.raises(
        UserError, match="^negatives version 1, in use from step 11 on, is gone from .*; copy it back"
    ):
        NegativesPlan(run, DATASET).at(11)


def test_a_damaged_version_is_set_aside_and_can_be_published_anew(run: RunFolder) -> None:
    publish(run, 1)
    for _ in range(2):
        set_aside(run, 1, "a trial")
        assert published_versions(run.negatives) == []
        publish(run, 1)
    assert sorted(path.name for path in run.negatives.iterdir()) == ["v000001", "v000001.damaged"]


def test_what_no_checkpoint_needs_is_deleted_with_its_request_and_snapshot(run: RunFolder) -> None:
    """Kept: the newest two; what a resume from step 33 on uses; and of its predecessor too, which may serve there."""
    plan = NegativesPlan(run, DATASET)
    for version in range(1, 8):
        take(run, plan, version, 10 * version + 1, stretch=(10 * version, 10 * version + 20))
        write_json(run.requests / f"v{version:06d}.json", {})
        run.snapshot(10 * version).mkdir(parents=True)
    plan.prune(oldest_step=45, keep=2)
    assert published_versions(run.negatives) == [3, 4, 5, 6, 7]
    assert sorted(path.stem for path in run.requests.iterdir()) == [f"v{version:06d}" for version in range(3, 8)]
    assert [path.name for path in run.initial.parent.iterdir()] == ["step-0000070"]
    plan.prune(oldest_step=1000, keep=3)
    assert published_versions(run.negatives) == [5, 6, 7]
    assert numbers(NegativesPlan(run, DATASET), range(72, 74)) == [7, 7]


def test_nothing_is_deleted_before_the_first_use(run: RunFolder) -> None:
    publish(run, 1)
    NegativesPlan(run, DATASET).prune(oldest_step=100, keep=1)
    assert published_versions(run.negatives) == [1]
