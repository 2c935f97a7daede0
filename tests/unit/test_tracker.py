"""What a run logs: lines of JSON that survive kills, and a Weights & Biases run that is really written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_shards.errors import UserError
from train import boards
from train.lineage import code_version, read_lineage
from train.stops import EXIT_DIVERGED, EXIT_STOPPED
from train.tracker import Tracker, TrackerConfig, read_metrics, resolve_mode, truncate_metrics

OFFLINE = TrackerConfig(mode="offline", project="tests", group="a job")
DISABLED = TrackerConfig(mode="disabled")
BOTH = TrackerConfig(mode="offline", project="tests", tensorboard=True)
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


def start(path: Path, config: TrackerConfig = DISABLED, *, active: bool = True, resume_step: int = 0) -> Tracker:
    resolved = {"run": {"seed": 3}, "tracker": {"mode": config.mode}}
    return Tracker(
        path,
        config,
        run_id="abcd1234",
        job_type="train",
        resolved=resolved,
        active=active,
        resume_step=resume_step,
    )


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


def inspect(folder: Path, attempt: str = "offline-run-*") -> list[dict[str, Any]]:
    """Read an offline run back with Weights & Biases' own command."""
    (file,) = folder.glob(f"wandb/{attempt}/run-*.wandb")
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
    config = run["config"]["update"]
    assert config["run"] == {"seed": 3}
    assert config["code"] == code_version()
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


@pytest.mark.parametrize(
    ("code", "title", "level"),
    [
        (0, "train finished", "INFO"),
        (1, "train failed", "ERROR"),
        (EXIT_STOPPED, "train stopped", "WARN"),
        (EXIT_DIVERGED, "train diverged", "ERROR"),
    ],
)
def test_how_a_run_ended_is_told_by_its_exit_code_and_an_alert(
    tmp_path: Path, code: int, title: str, level: str
) -> None:
    """A run that was stopped is marked as one that will go on."""
    tracker = start(tmp_path / "run" / "metrics.jsonl", OFFLINE)
    tracker.log("step", 0, {"loss": 1.0})
    tracker.close(exit_code=code, why="the reason")
    records = inspect(tmp_path / "run")
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [code]
    (alert,) = [record["alert"] for record in records if record["type"] == "alert"]
    assert (alert["title"], alert["text"], alert["level"]) == (title, "the reason", level)
    assert ("preempting" in [record["type"] for record in records]) == (code == EXIT_STOPPED)


def test_a_histogram_is_kept_in_all_three_places(tmp_path: Path) -> None:
    """Two edges are those of equal bins; a number beside it stays a number."""
    folder = tmp_path / "run"
    given = {"counts": [1, 0, 3, 4], "edges": [-1.0, 1.0]}
    tracker = start(folder / "metrics.jsonl", BOTH)
    tracker.log("step", 7, {"loss": 0.5, "scores": {"positive": {"histogram": given}}})
    tracker.close()
    assert read_metrics(folder / "metrics.jsonl")[0]["scores"] == {"positive": {"histogram": given}}
    (item,) = [record["history"]["item"] for record in inspect(folder) if record["type"] == "history"]
    assert item["step/scores/positive._type"] == "histogram"
    assert item["step/scores/positive.values"] == [1, 0, 3, 4]
    assert item["step/scores/positive.bins"] == [-1, -0.5, 0, 0.5, 1]
    assert (item["step/loss"], item["global_step"]) == (0.5, 7)
    shown = events_of(folder)
    assert [(event.step, event.value) for event in shown.Scalars("step/loss")] == [(7, 0.5)]
    (bins,) = shown.Histograms("step/scores/positive")
    assert bins.step == 7
    assert bins.histogram_value.bucket_limit == [-0.5, 0, 0.5, 1]
    assert bins.histogram_value.bucket == [1, 0, 3, 4]
    assert (bins.histogram_value.num, bins.histogram_value.sum) == (8, -0.75 + 0.75 + 3.0)


def events_of(folder: Path) -> EventAccumulator:
    """Read event files back with TensorBoard's own reader."""
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    return shown


def test_a_resumed_run_replaces_what_tensorboard_showed_of_later_steps(tmp_path: Path) -> None:
    config = TrackerConfig(mode="disabled", tensorboard=True)
    for resume_step, value in ((0, 1.0), (3, 2.0)):
        tracker = start(tmp_path / "metrics.jsonl", config, resume_step=resume_step)
        for step in range(resume_step, 6):
            tracker.log("step", step, {"loss": value})
        if not resume_step:
            tracker.log("dev", 3, {"ndcg@10": 0.5})
        tracker.close()
        time.sleep(1.1)  # event files are read in the order of the second in their name
    found = [(event.step, event.value) for event in events_of(tmp_path).Scalars("step/loss")]
    assert [value for value in found if value[0] > 3] == [(4, 2.0), (5, 2.0)]
    assert {step for step, _ in found} == set(range(6))
    assert len(events_of(tmp_path).Scalars("dev/ndcg@10")) == 1


def test_tensorboard_that_is_not_installed_is_told_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"tracker\.tensorboard needs TensorBoard: pip install 'dipole\[tensorboard\]'"
    ):
        start(tmp_path / "metrics.jsonl", TrackerConfig(mode="disabled", tensorboard=True))


def test_what_was_made_of_what_is_kept_in_the_run_folder_and_shown(tmp_path: Path) -> None:
    """By reference: the snapshot itself goes nowhere. Made again after a resume it is no second one."""
    folder = tmp_path / "run"
    snapshot = folder / "snapshots" / "step-0000040"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights that stay here")
    uses = {"pairs": "sha256:p", "negatives": "v000001"}
    for _ in range(2):
        tracker = start(folder / "metrics.jsonl", BOTH)
        tracker.artifact("snapshot", snapshot, identity="sha256:s", step=40, uses=uses)
        tracker.close()
        wandb.teardown()
    (row,) = read_lineage(folder)
    assert row.pop("time") > 1.7e9
    assert row == {"kind": "snapshot", "id": "sha256:s", "step": 40, "path": "snapshots/step-0000040", "uses": uses}
    records = [record for file in sorted(folder.glob("wandb/offline-run-*")) for record in inspect(folder, file.name)]
    (artifact,) = [record["artifact"] for record in records if record["type"] == "artifact"]
    assert (artifact["name"], artifact["type"]) == ("snapshot-abcd1234", "snapshot")
    assert "step-40" in artifact["aliases"]
    assert json.loads(artifact["metadata"])["uses"] == uses
    assert artifact["manifest"]["contents"][0]["ref"].startswith(f"file://{snapshot}")
    copies = [path for path in folder.rglob("*") if path.is_file() and b"weights that stay here" in path.read_bytes()]
    assert copies == [snapshot / "model.safetensors"]


def test_other_ranks_make_nothing_known(tmp_path: Path) -> None:
    tracker = start(tmp_path / "metrics.jsonl", OFFLINE, active=False)
    tracker.artifact("snapshot", tmp_path, identity="sha256:s", step=4, uses={})
    tracker.close(EXIT_STOPPED, "asked")
    assert read_lineage(tmp_path) == []


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


@pytest.mark.parametrize("name", ["log_every_steps", "details_every_steps"])
def test_an_interval_below_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"tracker\.{name} must be at least 1, came 0"):
        TrackerConfig(**{name: 0})  # type: ignore[arg-type]


def test_a_board_that_fails_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, *arguments: object) -> None:
            raise ConnectionResetError("Connection lost")

    tracker = Tracker(
        tmp_path / "metrics.jsonl",
        TrackerConfig(mode="disabled"),
        run_id="r",
        job_type="train",
        resolved={},
        active=True,
    )
    tracker._boards.append(Broken())  # type: ignore[arg-type]  # W&B whose helper process was killed
    tracker.log("step", 0, {"loss": 1.0})
    tracker.log("step", 1, {"loss": 0.5})
    tracker.close()
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 0.5]
    assert caplog.text.count("Broken fails (ConnectionResetError: Connection lost)") == 1
