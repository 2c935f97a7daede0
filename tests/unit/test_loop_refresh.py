# ruff: noqa: F811  (fixtures come from the neighbouring file)
"""Refreshes in the loop, in one process: beside training, with the devices given back, and when the loss is flat."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_shards.atomic import read_json, write_json
from data_shards.negatives import version_dir
from data_shards.reader import PairDataset
from launch.config import load_config, to_toml
from launch.runs import load_job
from tests.unit.test_loop import (
    assert_same,
    events,
    prepared,  # noqa: F401
    publish,
    run,  # noqa: F401
    stop_after,
    uninterrupted,  # noqa: F401
    values,
)
from train import arrivals
from train.exit_codes import EXIT_MINING, EXIT_STOPPED
from train.loop import train
from train.refresh import RefreshFailedError, RefreshRequest, request_path
from train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "handlers_come_back")
LONG = 14


def configured(run: RunFolder, *overrides: str) -> RunFolder:
    run.config.write_text(to_toml(load_config(run.config, overrides)))
    return run


def copied(run: RunFolder, place: Path) -> RunFolder:
    shutil.copytree(run.root, place)
    return RunFolder(place)


@pytest.fixture
def beside(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with its miner beside it, which has published the version before it was asked for."""
    monkeypatch.setattr(arrivals, "_LOOK_EVERY_S", 0.0)
    return configured(run, "--refresh.way=async", f"--train.steps={LONG}", "--train.keep_checkpoints=20")


def test_beside_training_a_version_is_used_from_a_step_that_is_not_made_yet(beside: RunFolder) -> None:
    assert train(load_job(beside)) == 0
    (use,) = read_json(beside.negatives / "uses.json")
    assert use["version"] == 1
    # Seen at step 2 at the earliest, opened by step 3; two steps are read ahead, and one is being made.
    assert use["from_step"] >= 7
    versions = [0] * use["from_step"] + [1] * (LONG - use["from_step"])
    assert values(beside, "step", "negatives_version") == versions
    assert ("refresh", use["from_step"]) in events(beside)
    ages = values(beside, "step", "negatives_age_steps")
    assert ages[use["from_step"] :] == list(range(use["from_step"] - 2, LONG - 2))


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_a_resumed_run_takes_what_was_decided_before(beside: RunFolder, tmp_path: Path, steps: int) -> None:
    """Set back to any checkpoint, also to one from before the version was seen, it is the run that it was."""
    assert train(load_job(beside)) == 0
    back = copied(beside, tmp_path / "back")
    back.done.unlink()
    shutil.rmtree(back.final)
    for path in back.checkpoints.glob("step-*"):
        if path.name > f"step-{steps:07d}":
            shutil.rmtree(path)
    assert train(load_job(back)) == 0
    assert_same(back, beside)
    assert values(back, "step", "negatives_version") == values(beside, "step", "negatives_version")


@pytest.mark.parametrize("reached", [9, LONG])
def test_a_version_that_came_too_late_for_a_step_stays_too_late_for_it(
    beside: RunFolder, prepared: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: int
) -> None:
    """Invariant 3, *resume is exact*: a resume takes no version at a step that was done without it."""
    shutil.rmtree(version_dir(beside.negatives, 1))
    back = copied(beside, tmp_path / "back")
    assert train(load_job(beside)) == 0
    with monkeypatch.context() as patch:
        if reached < LONG:
            stop_after(patch, back, reached)
        assert train(load_job(back)) == (EXIT_STOPPED if reached < LONG else 0)
    publish(back, PairDataset(prepared.root.parent / "pairs"))
    back.done.unlink(missing_ok=True)
    shutil.rmtree(back.final, ignore_errors=True)
    for path in back.checkpoints.glob("step-*"):
        if path.name > "step-0000003":
            shutil.rmtree(path)
    with monkeypatch.context() as patch:  # a life that is cut off sooner than the one before
        stop_after(patch, back, 5)
        assert train(load_job(back)) == EXIT_STOPPED
    request_path(back, 1).unlink()
    assert train(load_job(back)) == 0
    assert values(back, "step", "loss")[:reached] == values(beside, "step", "loss")[:reached]
    assert set(values(back, "step", "negatives_version")[:reached]) == {0}
    uses = back.negatives / "uses.json"
    assert not uses.exists() or read_json(uses)[0]["from_step"] >= reached


def test_without_a_version_training_goes_on_until_its_age_is_too_high(beside: RunFolder) -> None:
    shutil.rmtree(version_dir(beside.negatives, 1))
    whole = copied(beside, beside.root.parent / "whole")
    assert train(load_job(whole)) == 0
    assert set(values(whole, "step", "negatives_version")) == {0}
    configured(beside, "--refresh.max_age_steps=5")
    with pytest.raises(RefreshFailedError, match=r"^no negatives after 6 steps, refresh\.max_age_steps is 5; see"):
        train(load_job(beside))


def test_the_ranks_make_room_for_the_miner_and_come_back_to_the_same_run(
    run: RunFolder,
    uninterrupted: RunFolder,
    prepared: RunFolder,
) -> None:
    """Before the version is there they leave again; a request is left once, with its snapshot."""
    configured(run, "--refresh.give_back=on")
    shutil.rmtree(version_dir(run.negatives, 1))
    for _ in range(2):
        assert train(load_job(run)) == EXIT_MINING
        assert read_json(run.mining) == {"version": 1, "step": 2}
        assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-0000001", "step-0000002"]
        assert not run.stopped.exists()
    assert RefreshRequest.read(request_path(run, 1)).to_step == 6
    publish(run, PairDataset(prepared.root.parent / "pairs"))
    assert train(load_job(run)) == 0
    assert_same(run, uninterrupted)


def test_a_version_that_was_damaged_on_the_way_to_the_disk_is_asked_for_again(
    run: RunFolder,
    uninterrupted: RunFolder,
    prepared: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = version_dir(run.negatives, 1) / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    from train import refresher

    set_aside = refresher.set_aside

    def and_mined_again(*arguments: object) -> None:
        set_aside(*arguments)  # type: ignore[arg-type]
        publish(run, PairDataset(prepared.root.parent / "pairs"))

    monkeypatch.setattr(refresher, "set_aside", and_mined_again)
    assert train(load_job(run)) == 0
    assert_same(run, uninterrupted)
    assert (run.negatives / "v000001.damaged").is_dir()


def test_a_flat_loss_over_hard_negatives_asks_sooner(beside: RunFolder) -> None:
    """With a gain that nothing reaches, two stretches of two steps after the first refresh are enough."""
    run = configured(
        beside,
        "--refresh.every_steps=10",
        "--refresh.flat_steps=2",
        "--refresh.flat_gain=0.99",
    )
    assert train(load_job(run)) == 0
    use = read_json(run.negatives / "uses.json")[0]["from_step"]
    second = RefreshRequest.read(request_path(run, 2))
    assert second.snapshot_step == use + 4 < 12
    assert run.snapshot(second.snapshot_step).exists()


def test_a_resume_asks_at_the_same_flat_step_whatever_came_later(beside: RunFolder) -> None:
    run = configured(
        beside,
        "--refresh.every_steps=10",
        "--refresh.flat_steps=2",
        "--refresh.flat_gain=0.99",
    )
    assert train(load_job(run)) == 0
    asked = RefreshRequest.read(request_path(run, 2))
    assert asked.snapshot_step < 12
    # As a life that came further would have left it: the second version in use from the last step on.
    second = shutil.copytree(version_dir(run.negatives, 1), version_dir(run.negatives, 2))
    write_json(second / "manifest.json", {**read_json(second / "manifest.json"), "version": 2})
    uses = read_json(run.negatives / "uses.json")
    write_json(run.negatives / "uses.json", [*uses, {"from_step": LONG - 1, "version": 2}])
    request_path(run, 2).unlink()
    run.done.unlink()
    for path in [run.final, *run.checkpoints.glob("step-*")]:
        if path.name > "step-0000003" or path == run.final:
            shutil.rmtree(path)
    assert train(load_job(run)) == 0
    assert RefreshRequest.read(request_path(run, 2)) == asked


def test_the_count_of_a_flat_loss_survives_a_stop(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(run, "--refresh.every_steps=10", "--refresh.flat_steps=3", "--refresh.first_step=1", "--train.steps=7")
    whole = copied(run, run.root.parent / "whole")
    assert train(load_job(whole)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, run, 3)
        assert train(load_job(run)) == EXIT_STOPPED
    assert train(load_job(run)) == 0
    states = [read_json(where.checkpoints / "step-0000007" / "state.json")["state"] for where in (run, whole)]
    assert states[0]["flatness"] == states[1]["flatness"] != []
