"""The trainer's side of a refresh: when, the request, and the waiting."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from data_shards.atomic import write_json
from data_shards.errors import ShardCorruptError, UserError
from tests.unit.negatives_helper import publish
from train.refresh import (
    RefreshFailedError,
    RefreshRequest,
    failed_path,
    request_path,
    wait_for_version,
)
from train.run_folder import RunFolder

REQUEST = RefreshRequest(version=2, snapshot="snapshots/step-0000060", snapshot_step=60, from_step=60, to_step=80)


def wait(run: RunFolder, version: int = 2, *, timeout_s: float = 5, stop: bool = False) -> object:
    return wait_for_version(run, version, dataset_id="sha256:a", timeout_s=timeout_s, give_up=lambda: stop)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_request_comes_back_and_asking_twice_is_asking_once(run: RunFolder) -> None:
    REQUEST.write(run)
    path = request_path(run, 2)
    assert path.name == "v000002.json"
    assert RefreshRequest.read(path) == REQUEST
    inode = path.stat().st_ino
    REQUEST.write(run)
    assert path.stat().st_ino == inode
    assert [file.name for file in run.requests.iterdir()] == ["v000002.json"]


def test_asking_again_takes_back_an_earlier_failure(run: RunFolder) -> None:
    REQUEST.write(run)
    write_json(failed_path(run, 2), {"cause": "the disk was full"})
    REQUEST.write(run)
    assert not failed_path(run, 2).exists()


def test_a_published_version_is_opened(run: RunFolder) -> None:
    publish(run, 2)
    found = wait(run)
    assert [p.text for p in found.negatives("train-000000", 3)] == ["mined"]  # type: ignore[attr-defined]
    assert found.manifest.version == 2  # type: ignore[attr-defined]


def test_the_waiting_ends_when_the_version_appears(run: RunFolder) -> None:
    publish(run, 1)
    later = threading.Timer(0.3, publish, [run, 2])
    later.start()
    began = time.monotonic()
    assert wait(run) is not None
    assert time.monotonic() - began >= 0.25
    later.join()


def test_a_failed_miner_s_cause_is_told(run: RunFolder) -> None:
    REQUEST.write(run)
    write_json(failed_path(run, 2), {"cause": "corpus shard 3 is damaged"})
    with pytest.raises(RefreshFailedError, match="^negatives version 2 was not made: corpus shard 3 is damaged$"):
        wait(run)


def test_waiting_ends_at_the_timeout_which_the_message_names(run: RunFolder) -> None:
    message = (
        r"^negatives version 2 was not published within refresh\.timeout_s = 0; raise it, or see .*/logs/miner\.log$"
    )
    with pytest.raises(RefreshFailedError, match=message):
        wait(run, timeout_s=0.2)


def test_a_run_that_is_to_stop_waits_no_longer(run: RunFolder) -> None:
    assert wait(run, stop=True) is None


def test_where_one_rank_was_told_to_stop_the_others_wait_no_longer(run: RunFolder) -> None:
    """The time limit is on one rank's clock. A run that asks again, when it is resumed, waits again."""
    REQUEST.write(run)
    wait(run, stop=True)
    assert wait(run, stop=False, timeout_s=60) is None
    REQUEST.write(run)
    with pytest.raises(RefreshFailedError, match="was not published within"):
        wait(run, timeout_s=0.2)


def test_half_a_version_is_none(run: RunFolder) -> None:
    """Without its manifest it is still being written."""
    (publish(run, 2) / "manifest.json").unlink()
    with pytest.raises(RefreshFailedError, match="was not published within"):
        wait(run, timeout_s=0.2)


def test_a_damaged_version_is_refused(run: RunFolder) -> None:
    shard = publish(run, 2) / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardCorruptError, match=r"train-000000\.tar at byte 0: its sha256 is"):
        wait(run)


def test_a_version_for_other_data_is_refused(run: RunFolder) -> None:
    publish(run, 2, dataset_id="sha256:other")
    with pytest.raises(UserError, match="was mined for dataset sha256:other, training reads sha256:a"):
        wait(run)
