"""The quarantine file: a line a place, whatever the process's end, and never in silence."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.quarantine import Quarantine


def damage(shard: str = "a/train-000000.tar", offset: int = 512) -> ShardCorruptError:
    return ShardCorruptError(Path(shard), offset, "corrupt header")


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "quarantine" / "rank-00000.jsonl"


def test_without_damage_there_is_no_file(path: Path) -> None:
    assert Quarantine(path).places == 0
    assert not path.parent.exists()


def test_a_line_names_shard_offset_row_and_reason(path: Path) -> None:
    quarantine = Quarantine(path)
    assert quarantine.add(damage(), 3)
    assert quarantine.add(damage("a/train-000001.tar", 0))
    assert rows(path) == [
        {"shard": "a/train-000000.tar", "offset": 512, "row": 3, "reason": "corrupt header"},
        {"shard": "a/train-000001.tar", "offset": 0, "row": None, "reason": "corrupt header"},
    ]


def test_a_place_is_written_once_however_often_it_is_met(path: Path) -> None:
    quarantine = Quarantine(path)
    assert [quarantine.add(damage(), 3) for _ in range(3)] == [True, False, False]
    assert [quarantine.add(damage(), row) for row in (4, None)] == [True, True]
    assert (quarantine.places, len(rows(path))) == (3, 3)


def test_shards_of_one_name_in_two_datasets_are_two_places(path: Path) -> None:
    quarantine = Quarantine(path)
    assert quarantine.add(damage("a/train-000000.tar"), 3)
    assert quarantine.add(damage("b/train-000000.tar"), 3)
    assert [row["shard"] for row in rows(path)] == ["a/train-000000.tar", "b/train-000000.tar"]


def test_a_process_that_goes_on_adds_only_what_is_new(path: Path) -> None:
    """As after a resume; that it meets a place is counted all the same."""
    Quarantine(path).add(damage(), 3)
    again = Quarantine(path)
    assert [again.add(damage(), row) for row in (3, 4)] == [True, True]
    assert again.places == 2
    assert [row["row"] for row in rows(path)] == [3, 4]


def test_half_a_line_of_a_killed_process_spoils_no_other(path: Path) -> None:
    Quarantine(path).add(damage(), 3)
    with open(path, "a") as file:
        file.write('{"shard": "a/train-0000')
    again = Quarantine(path)
    again.add(damage(), 3)
    again.add(damage(), 5)
    lines = path.read_text().splitlines()
    assert [json.loads(lines[at])["row"] for at in (0, 2)] == [3, 5]
    assert (lines[1], len(lines)) == ('{"shard": "a/train-0000', 3)


def test_a_file_that_cannot_be_written_ends_the_run(path: Path) -> None:
    """A full disk, a folder without rights: what is skipped would be lost silently."""
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("in the folder's place")
    quarantine = Quarantine(path)
    with pytest.raises(
        UserError, match=r"rank-00000\.jsonl cannot be written \(.*\), so that .*train-000000\.tar at"
    ):
        quarantine.add(damage(), 3)
    path.parent.unlink()
    assert quarantine.add(damage(), 3), "it was not taken for written"
    assert len(rows(path)) == 1


def test_the_first_places_are_logged_and_the_rest_is_in_the_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = Quarantine(path)
    with caplog.at_level(logging.WARNING, "data_shards.quarantine"):
        for row in range(30):
            quarantine.add(damage(), row)
    assert len(caplog.records) == 10
    assert caplog.messages[0] == "skipped: a/train-000000.tar at byte 512: corrupt header"
    assert caplog.messages[9].endswith(f"; further ones are only in {path}")
    assert len(rows(path)) == 30


def test_threads_share_it(path: Path) -> None:
    quarantine = Quarantine(path)

    def add() -> None:
        for row in range(100):
            quarantine.add(damage(), row)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["row"] for row in rows(path)) == list(range(100))  # type: ignore[type-var]
