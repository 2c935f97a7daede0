"""Which checkpoint is taken, which go, and what may differ when a run is resumed."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.atomic import sha256_file
from data_shards.errors import UserError
from tests.unit.toy_state import SHAPES, assert_holds, names, pieces, state
from train.checkpoint import TrainState, check_fits, newest_checkpoint, publish, remove_dead_saves, rotate
from train.checkpoint_saver import CheckpointSaver
from train.state_files import StateReader, _checksum

FILES = ["rank-00000-of-00001.safetensors", "rank-00000-of-00001.json", "state.json"]


def save(root: Path, *steps: int, keep: int = 3, **fields: Any) -> None:
    saver = CheckpointSaver(root, keep=keep, device=torch.device("cpu"), asynchronous=False)
    for step in steps:
        saver.save(pieces(step), SHAPES, state(step, **fields), {"optimizer_steps": step})


def newest(root: Path) -> tuple[str, TrainState]:
    found = newest_checkpoint(root)
    assert found is not None
    assert_holds(found[0], found[1].step)
    return found[0].name, found[1]


def test_what_was_saved_is_found(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, best_dev=0.25, best_step=2, negatives_version=3, precision="bfloat16")
    wanted = state(4, best_dev=0.25, best_step=2, negatives_version=3, precision="bfloat16")
    assert newest(tmp_path) == ("step-0000004", wanted)
    assert StateReader(tmp_path / "step-0000004").extra == {"optimizer_steps": 4}


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "a folder"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    save(tmp_path, 2, 4, 6)
    file = tmp_path / "step-0000006" / name
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flipped":
        content[-20] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-9])
    elif damage == "a folder":
        file.mkdir()
    with caplog.at_level(logging.WARNING, "train.checkpoint"):
        assert newest(tmp_path) == ("step-0000004", state(4))
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("checkpoint step-0000006 is passed over: ")
    assert name in caplog.text


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    for name in names(tmp_path):
        (tmp_path / name / FILES[0]).unlink()
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("files"), "no 'files'"),
        (lambda row: row["state"].pop("step"), "'step'"),
        (lambda row: row["state"].update(surprise=1), "'surprise'"),
        (lambda row: row["state"].update(world_size=2), "state.json names 2 files, 2 ranks write two each"),
        (lambda row: row.update(files=[]), "state.json names 0 files"),
        (lambda row: row.update(state=None), "NoneType"),
    ],
)
def test_a_state_of_another_shape_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, message: str
) -> None:
    """One that another version of the code wrote: its checksum is right."""
    save(tmp_path, 2, 4)
    path = tmp_path / "step-0000004" / "state.json"
    row = json.loads(path.read_text())
    row.pop("checksum")
    change(row)
    path.write_text(json.dumps({**row, "checksum": _checksum(row)}))
    assert newest(tmp_path) == ("step-0000002", state(2))
    assert message in caplog.text


def test_a_field_that_is_newer_than_the_checkpoint_has_its_default(tmp_path: Path) -> None:
    save(tmp_path, 2)
    path = tmp_path / "step-0000002" / "state.json"
    row = json.loads(path.read_text())
    row.pop("checksum")
    row["state"].pop("best_step")
    path.write_text(json.dumps({**row, "checksum": _checksum(row)}))
    assert newest(tmp_path) == ("step-0000002", state(2))


def test_nothing_executes_a_pickle_in_a_checkpoint_is_not_read(tmp_path: Path) -> None:
    """Even where all checksums are right: somebody who can write the one can write the others."""
    save(tmp_path, 2)
    path = tmp_path / "step-0000002"
    bomb = f"cos\nmkdir\n(V{tmp_path / 'executed'}\ntR.".encode()
    (path / FILES[0]).write_bytes(bomb)
    row = json.loads((path / "state.json").read_text())
    row.pop("checksum")
    row["files"][FILES[0]] = sha256_file(path / FILES[0])
    (path / "state.json").write_text(json.dumps({**row, "checksum": _checksum(row)}))
    assert newest_checkpoint(tmp_path) is not None
    with pytest.raises(UserError, match="cannot be read"):
        StateReader(path).full("weight", "words")
    assert not (tmp_path / "executed").exists()


def test_the_newest_stay_and_the_oldest_go(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6, 8, keep=2)
    assert names(tmp_path) == ["step-0000006", "step-0000008"]


def test_the_best_stays_until_there_is_a_better_one(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, keep=1, device=torch.device("cpu"), asynchronous=False)
    kept = []
    for step, best in ((2, 2), (4, 2), (6, 2), (8, 8), (10, 8), (12, 11)):
        saver.save(pieces(step), SHAPES, state(step, best_step=best), {})
        kept.append([int(name[-2:]) for name in names(tmp_path)])
    assert kept == [[2], [2, 4], [2, 6], [8], [8, 10], [12]]


def test_a_damaged_future_does_not_push_sound_ones_out(tmp_path: Path) -> None:
    """Step 6 is damaged, the run goes on from 4 and saves at 5: the sound ones are 4 and 5, not 5 and 6."""
    save(tmp_path, 2, 4, 6)
    (tmp_path / "step-0000006" / FILES[0]).write_bytes(b"half")
    assert newest(tmp_path)[0] == "step-0000004"
    save(tmp_path, 5, keep=2)
    assert names(tmp_path) == ["step-0000004", "step-0000005"]


def test_a_step_that_is_reached_again_is_written_again(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    save(tmp_path, 4, best_dev=0.5)
    assert newest(tmp_path) == ("step-0000004", state(4, best_dev=0.5))
    assert names(tmp_path) == ["step-0000002", "step-0000004"]


def test_between_two_renames_the_replaced_one_is_taken(tmp_path: Path) -> None:
    """Killed there, only the old folder of the step is whole; it counts as that step until a new one is written."""
    save(tmp_path, 2, 4)
    os.rename(tmp_path / "step-0000004", tmp_path / "step-0000004.replaced")
    assert newest(tmp_path)[0] == "step-0000004.replaced"
    save(tmp_path, 6, keep=2)
    assert names(tmp_path) == ["step-0000004.replaced", "step-0000006"]
    save(tmp_path, 8, keep=2)
    assert names(tmp_path) == ["step-0000006", "step-0000008"]


def test_a_replaced_one_goes_with_the_next_save_of_its_step(tmp_path: Path) -> None:
    save(tmp_path, 4)
    os.rename(tmp_path / "step-0000004", tmp_path / "step-0000004.replaced")
    save(tmp_path, 4, best_dev=0.5)
    assert names(tmp_path) == ["step-0000004"]
    assert newest(tmp_path)[1].best_dev == 0.5


def test_an_old_one_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)

    def refuse(*names: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("train.checkpoint.os.rename", refuse)
        rotate(tmp_path, state(4), keep=1)
        rotate(tmp_path, state(1), keep=1)
    assert "an old checkpoint stays: [Errno 13] Permission denied" in caplog.text
    assert names(tmp_path) == ["step-0000002"]


def test_what_dead_saves_left_is_removed_at_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / ".tmp-step-0000004-00ab").mkdir()
    (tmp_path / ".tmp-step-0000004-00ab" / "rank-00000-of-00001.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    assert newest(tmp_path)[0] == "step-0000002"
    remove_dead_saves(tmp_path)
    assert names(tmp_path) == ["notes", "step-0000002"]


def test_publish_replaces_what_a_save_before_left_aside(tmp_path: Path) -> None:
    for name, content in (("step-1", "b"), ("step-1.replaced", "a"), (".tmp-x", "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(content)
    publish(tmp_path / ".tmp-x", tmp_path / "step-1")
    assert [(tmp_path / name / "content").read_text() for name in ("step-1", "step-1.replaced")] == ["c", "b"]


FITS: dict[str, Any] = {
    "engine": "toy",
    "world_size": 1,
    "dataset_id": "sha256:a",
    "batch_size": 6,
    "seed": 0,
    "order": "5eed",
    "precision": "float32",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_id": "sha256:b"}, "was written with dataset_id sha256:a, this run has sha256:b; set it back, or"),
        ({"batch_size": 8}, "was written with batch_size 6, this run has 8"),
        ({"seed": 1}, "was written with seed 0, this run has 1"),
        (
            {"order": "0dd"},
            r"under another global order: the \[order\] section, data\.weights or .*; set them back, or",
        ),
    ],
)
def test_what_would_not_be_the_same_run_is_refused(change: dict[str, Any], message: str) -> None:
    check_fits(state(4), **FITS)
    with pytest.raises(UserError, match=message):
        check_fits(state(4), **{**FITS, **change})


def test_another_engine_or_number_of_ranks_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "train.checkpoint"):
        check_fits(state(4), **FITS)
        assert not caplog.records
        sharded = replace(state(4), engine="zero2", world_size=4, precision="bfloat16")
        check_fits(sharded, **{**FITS, "engine": "fsdp"})
    assert [record.message for record in caplog.records] == [
        "resuming with engine zero2 -> fsdp, ranks 4 -> 1, precision bfloat16 -> float32: the order of samples stays,"
        " sums are rounded differently from here"
    ]
