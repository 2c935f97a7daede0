"""What a run logs: lines of JSON that survive kills, and a Weights & Biases run that is really written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from data_shards.errors import UserError
from train.tracker import Tracker, TrackerConfig, read_metrics, resolve_mode, truncate_metrics

OFFLINE = TrackerConfig(mode="offline", project="tests", group="a job")
DISABLED = TrackerConfig(mode="disabled")
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither the environment nor a .netrc of whoever runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    yield
    wandb.teardown()


def start(path: Path, config: TrackerConfig = DISABLED, *, active: bool = True) -> Tracker:
    resolved = {"run": {"seed": 3}, "tracker": {"mode": config.mode}}
    return Tracker(path, config, run_id="abcd1234", job_type="train", resolved=resolved, active=active)


def steps(path: Path) -> list[tuple[str, int]]:
    return [(row["event"], row["step"]) for row in read_metrics(path)]


def log(path: Path, *events: tuple[str, int]) -> None:
    tracker = start(path)
    for event, step in events:
        tracker.log(event, step, {"loss": step / 3})
    tracker.close()


def test_an_event_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run" / "metrics.jsonl")
    tracker.log("step", 0, {"loss": 0.1, "seconds": {"mine": 2}})
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert {name: row[name] for name in ("event", "step", "loss", "seconds")} == {
        "event": "step",
        "step": 0,
        "loss": 0.1,
        "seconds": {"mine": 2},
    }
    assert row["time"] > 1.7e9
    tracker.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = start(tmp_path / "metrics.jsonl", OFFLINE, active=False)
    tracker.log("step", 0, {"loss": 0.1})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_resumed_run_drops_what_it_will_log_again(tmp_path: Path) -> None:
    """From step 4 on. The dev evaluation of step 4 came before the checkpoint; a refresh is asked for again."""
    path = tmp_path / "metrics.jsonl"
    kept = [("dev", 0), ("step", 0), ("step", 1), ("refresh", 2), ("step", 2), ("dev", 2), ("step", 3), ("dev", 4)]
    log(path, *kept, ("refresh", 4), ("step", 4), ("step", 5), ("dev", 6), ("step", 6))
    before = path.read_text().splitlines()
    truncate_metrics(path, 4)
    assert steps(path) == kept
    assert path.read_text().splitlines() == before[: len(kept)]


def test_a_run_that_begins_again_evaluates_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, ("dev", 0), ("step", 0))
    truncate_metrics(path, 0)
    assert steps(path) == []


def test_nothing_to_drop_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    truncate_metrics(path, 3)
    assert not path.exists()
    log(path, ("step", 0), ("step", 1))
    inode = path.stat().st_ino
    truncate_metrics(path, 2)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("cut", ['{"event": "st', '{"event": "step", "step": 2, "loss": 0.', "\x00\x00\x00"])
def test_a_last_line_cut_off_by_a_kill_is_left_out_and_spoils_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, ("step", 0), ("step", 1))
    with open(path, "a") as file:
        file.write(cut)
    with caplog.at_level(logging.WARNING, "train.tracker"):
        assert steps(path) == [("step", 0), ("step", 1)]
    assert "metrics.jsonl: a line that is no JSON is left out" in caplog.text
    truncate_metrics(path, 2)
    log(path, ("step", 2), ("step", 3))
    assert steps(path) == [("step", number) for number in range(4)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_without_a_file_there_are_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def inspect(folder: Path) -> list[dict[str, Any]]:
    """Read an offline run back with Weights & Biases' own command."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_offline_run_is_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the key of the account is in none of its files."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = tmp_path / "run"
    tracker = start(folder / "metrics.jsonl", OFFLINE)
    tracker.log("step", 7, {"loss": 0.5, "seconds": {"mine": 2.0}, "note": "no number"})
    tracker.log("dev", 8, {"ndcg@10": 0.25})
    tracker.close()
    records = inspect(folder)

    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["run_id"], run["project"], run["run_group"], run["job_type"]) == (
        "abcd1234",
        "tests",
        "a job",
        "train",
    )
    assert run["config"]["update"]["run"] == {"seed": 3}
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert {"glob_name": "*", "step_metric": "global_step"}.items() <= metrics[1].items()
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    logged = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
    assert logged == [
        {"global_step": 7, "step/loss": 0.5, "step/seconds/mine": 2.0},
        {"global_step": 8, "dev/ndcg@10": 0.25},
    ]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_failed_run_is_marked_as_failed(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run" / "metrics.jsonl", OFFLINE)
    tracker.log("step", 0, {"loss": 1.0})
    tracker.close(exit_code=1)
    assert [record["exit"]["exit_code"] for record in inspect(tmp_path / "run") if record["type"] == "exit"] == [1]


def _netrc(home: Path, _: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (home / ".netrc").chmod(0o600)


def _key(_: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WANDB_API_KEY", KEY)


def _broken_netrc(home: Path, _: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text("what is this")


def _key_but_offline(_: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WANDB_API_KEY", KEY)
    environment.setenv("WANDB_MODE", "offline")


def _disabled(_: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WANDB_MODE", "disabled")


@pytest.mark.parametrize(
    ("prepare", "mode"),
    [
        (lambda home, environment: None, "offline"),
        (_key, "online"),
        (_netrc, "online"),
        (_broken_netrc, "offline"),
        (_key_but_offline, "offline"),
        (_disabled, "disabled"),
    ],
    ids=["nothing", "key", "netrc", "broken netrc", "key, but offline", "disabled"],
)
def test_auto_is_online_where_there_is_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path, pytest.MonkeyPatch], None], mode: str
) -> None:
    prepare(tmp_path / "home", monkeypatch)
    assert resolve_mode("auto") == mode
    assert resolve_mode("offline") == "offline"


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"tracker\.log_every_steps must be at least 1, came 0"):
        TrackerConfig(log_every_steps=0)
