"""Saving while training goes on: nobody waits longer than the copy, every failure is heard, older ones stay."""

from __future__ import annotations

import errno
import logging
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.toy_state import SHAPES, assert_holds, names, pieces, state
from train import checkpoint_saver
from train.checkpoint import newest_checkpoint
from train.checkpoint_saver import CheckpointError, CheckpointSaver
from train.state_files import Piece, StateReader, write_part

CPU = torch.device("cpu")
MIB = 1 << 20


def saver(root: Path, **options: Any) -> CheckpointSaver:
    return CheckpointSaver(root, **{"keep": 3, "device": CPU, **options})


def save(to: CheckpointSaver, step: int) -> None:
    to.save(pieces(step), SHAPES, state(step), {})


class Gate:
    """Stands in for the writing of a part: goes on when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        self._write = checkpoint_saver.write_part
        monkeypatch.setattr(checkpoint_saver, "write_part", self)

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.reached.set()
        assert self.opened.wait(30)
        self._write(*arguments, **options)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


def test_training_goes_on_while_files_are_written(tmp_path: Path, gate: Gate) -> None:
    """The weights change and `extra` is used again; what is written is what they were."""
    weight, extra = torch.arange(4.0), {"scale": {"now": 8}}
    to = saver(tmp_path)
    to.save([Piece("weight", "w", 0, weight)], {"w": (4,)}, state(2), extra)
    assert gate.reached.wait(30)
    to.poll()
    weight.fill_(-1)
    extra["scale"]["now"] = 4
    assert newest_checkpoint(tmp_path) is None
    gate.opened.set()
    to.wait()
    reader = StateReader(tmp_path / "step-0000002")
    assert reader.full("weight", "w").tolist() == [0, 1, 2, 3]
    assert reader.extra == {"scale": {"now": 8}}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_from_a_gpu_the_copy_is_whole_when_save_returns(tmp_path: Path) -> None:
    """Pinned memory and copies that overlap: a change of the weights right after must not be seen."""
    device = torch.device("cuda")
    to = saver(tmp_path, device=device)
    for step in (1, 2):
        weight = torch.arange(1 << 24, device=device, dtype=torch.float32) + step
        halves = [Piece("weight", "w", start, weight[start : start + (1 << 23)]) for start in (0, 1 << 23)]
        to.save(halves, {"w": (1 << 24,)}, state(step), {})
        weight.zero_()
        assert to._pending is not None
        assert all(piece.flat.is_pinned() for piece in to._pending.pieces)
    to.wait()
    wanted = torch.arange(1 << 24, dtype=torch.float32) + 2
    assert torch.equal(StateReader(tmp_path / "step-0000002").full("weight", "w"), wanted)


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    """It would overwrite the copy that is being written."""
    to = saver(tmp_path)
    save(to, 2)
    second = threading.Thread(target=save, args=(to, 4))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.opened.set()
    second.join(30)
    to.wait()
    for step in (2, 4):
        assert_holds(tmp_path / f"step-000000{step}", step)


def test_without_threads_the_checkpoint_is_there_when_save_returns(tmp_path: Path) -> None:
    save(saver(tmp_path, asynchronous=False), 2)
    assert_holds(tmp_path / "step-0000002", 2)
    assert names(tmp_path) == ["step-0000002"]


def test_wait_and_close_without_a_save_do_nothing(tmp_path: Path) -> None:
    to = saver(tmp_path / "none")
    to.poll()
    to.wait()
    to.close()
    assert not (tmp_path / "none").exists()


def fail(number: int) -> Any:
    def write_part(*arguments: Any, **options: Any) -> None:
        raise OSError(number, "No space left on device")

    return write_part


def test_a_failure_is_raised_at_the_next_step_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = saver(tmp_path)
    save(to, 2)
    to.wait()
    monkeypatch.setattr(checkpoint_saver, "write_part", fail(errno.ENOSPC))
    save(to, 4)
    assert to._pending is not None
    assert to._pending.thread is not None
    to._pending.thread.join(30)
    message = (
        rf"^checkpoint step-0000004 was not written: rank 0 needs 0\.0 MiB in {tmp_path}, where [\d.]+ MiB are free "
        r"\(\[Errno 28\] No space left on device\); older checkpoints stay\. Free some space or lower "
        r"train\.keep_checkpoints, then resume$"
    )
    with pytest.raises(CheckpointError, match=message):
        to.poll()
    with pytest.raises(CheckpointError, match=message):
        save(to, 6)
    assert names(tmp_path) == ["step-0000002"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_after_a_failure_a_save_can_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    to = saver(tmp_path, asynchronous=asynchronous)

    def save_and_wait() -> None:
        save(to, 2)
        to.wait()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_saver, "write_part", fail(errno.EIO))
        with pytest.raises(CheckpointError, match="older checkpoints stay"):
            save_and_wait()
    assert names(tmp_path) == []
    save_and_wait()
    assert_holds(tmp_path / "step-0000002", 2)


def test_our_own_mistakes_keep_their_kind(tmp_path: Path) -> None:
    """An engine that leaves a hole: no disk is to blame, and no checkpoint comes of it."""
    to = saver(tmp_path)
    to.save([Piece("weight", "w", 0, torch.zeros(3))], {"w": (4,)}, state(2), {})
    with pytest.raises(ValueError, match="weight of w do not make its 4 values") as caught:
        to.wait()
    assert not isinstance(caught.value, CheckpointError)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("w", 2, 3)], r"weight\|w\|2 with 3 values does not fit its shape \[2, 2\]"),
        ([("v", 0, 1)], r"weight\|v\|0 with 1 values does not fit its shape of no parameter"),
        ([("w", 0, 2), ("w", 0, 4)], r"weight\|w\|0 came twice"),
    ],
)
def test_pieces_that_do_not_fit_are_refused_at_once(
    tmp_path: Path, given: list[tuple[str, int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        saver(tmp_path).save(
            [Piece("weight", name, start, torch.zeros(size)) for name, start, size in given],
            {"w": (2, 2)},
            state(2),
            {},
        )
    assert names(tmp_path) == []


def test_what_is_no_json_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver(tmp_path).save(pieces(2), SHAPES, state(2), {"temperature": torch.zeros(())})
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"file/\.tmp-step-0000002-\w+ cannot be made .*; older checkpoints stay"
    ):
        save(saver(tmp_path / "file"), 2)


def test_close_lets_a_save_end(tmp_path: Path, gate: Gate) -> None:
    """A run that diverges a step later still leaves the checkpoint of the step before."""
    to = saver(tmp_path)
    save(to, 2)
    threading.Timer(0.2, gate.opened.set).start()
    to.close()
    assert_holds(tmp_path / "step-0000002", 2)


def test_close_gives_a_save_up_that_waits_for_a_dead_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two ranks are wanted, the second never writes."""
    monkeypatch.setattr(checkpoint_saver, "world_size", lambda: 2)
    to = saver(tmp_path)
    save(to, 2)
    began = time.monotonic()
    with caplog.at_level(logging.ERROR, "train.checkpoint_saver"):
        to.close(within_s=0.2)
    assert time.monotonic() - began < 20
    assert (
        "checkpoint step-0000002 was given up: rank 1 of 2 did not write its part, and the run is ending"
        in caplog.text
    )
    assert names(tmp_path) == []


def test_a_rank_that_never_writes_is_named_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_saver, "world_size", lambda: 3)
    to = saver(tmp_path, timeout_s=0.1)
    message = (
        r"checkpoint step-0000002 was given up: ranks 1, 2 of 3 did not write its part, and 0\.1 s have passed; "
        rf"is it alive, and is {tmp_path} on a disk that all ranks share\?"
    )
    save(to, 2)
    with pytest.raises(CheckpointError, match=message):
        to.wait()
    assert names(tmp_path) == []


def test_a_part_of_an_interrupted_save_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same step and number of ranks, and the second rank has written its part: of a save that was killed."""
    monkeypatch.setattr(checkpoint_saver, "world_size", lambda: 2)
    to = saver(tmp_path, timeout_s=0.1)
    for name in (".tmp-step-0000002", ".tmp-step-0000002-0000000000000001"):
        (tmp_path / name).mkdir()
        write_part(tmp_path / name, [*pieces(2, rank=1, world_size=2)], rank=1, world_size=2)
    save(to, 2)
    with pytest.raises(CheckpointError, match="rank 1 of 2 did not write its part"):
        to.wait()


# --- disks that are really full -------------------------------------------------------------------------------


def big(step: int) -> tuple[list[Piece], dict[str, tuple[int, ...]]]:
    return [Piece("weight", "w", 0, torch.full((MIB,), float(step)))], {"w": (MIB,)}


def save_two(root: Path) -> str:
    """Save 4 MiB that fit, then 4 MiB that do not."""
    to = saver(root)
    to.save(*big(2), state(2), {})
    to.wait()
    to.save(*big(4), state(4), {})
    with pytest.raises(CheckpointError) as caught:
        to.wait()
    found = newest_checkpoint(root)
    assert found is not None
    assert found[1].step == 2
    assert names(root) == ["step-0000002"]
    return str(caught.value)


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"lacks the right to mount a small disk: {mount.stderr.strip()}")
    try:
        message = save_two(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "rank 0 needs 4.0 MiB" in message
    assert "2.0 MiB are free" in message
    assert "No space left on device" in message


def test_a_file_that_may_not_grow_is_the_same(tmp_path: Path) -> None:
    """A quota of the process's own: what a machine without the right to mount can test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    to = saver(tmp_path)
    save(to, 2)
    to.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        to.save(*big(4), state(4), {})
        with pytest.raises(
            CheckpointError, match=r"rank 0 needs 4\.0 MiB in .*File too large.*older checkpoints stay"
        ):
            to.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-0000002"]
    assert_holds(tmp_path / "step-0000002", 2)


def test_a_rank_whose_part_is_published_before_it_has_flushed_the_folder_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank commits as soon as it sees every part; another may be about to flush the folder's old name."""
    to = saver(tmp_path)
    to._rank, to._world = 1, 2
    final = tmp_path / "step-0000007"

    def written_and_renamed(folder: Path, own: list[Piece], **options: Any) -> None:
        folder.mkdir(parents=True)
        write_part(folder, own, **options)
        folder.rename(final)
        (folder / "gone").read_bytes()

    monkeypatch.setattr(checkpoint_saver, "write_part", written_and_renamed)
    save(to, 7)
    to.wait()
    assert names(tmp_path) == ["step-0000007"]
    # Without its own part there, the same error is what it looks like.
    final.rename(tmp_path / "elsewhere")

    def given_up(folder: Path, own: list[Piece], **options: Any) -> None:
        (folder / "gone").read_bytes()

    monkeypatch.setattr(checkpoint_saver, "write_part", given_up)
    save(to, 8)
    with pytest.raises(CheckpointError, match="rank 0 gave it up, and says why"):
        to.wait()
