"""Runs that are stopped or killed, and resumed: copied, stopped, and compared with one that was left alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.numpy import load_file

from train.stops import StopFlag


def copy_run(start: Path, to: Path) -> Path:
    """Copy a run to another place and tell its config so."""
    shutil.copytree(start, to, symlinks=True)
    config = to / "config.toml"
    config.write_text(config.read_text().replace(str(start), str(to)))
    return to


def stop_when(monkeypatch: pytest.MonkeyPatch, stage: ModuleType, condition: Callable[[], bool]) -> None:
    """Have the flag of a stage up as soon as a condition holds."""

    class Stop(StopFlag):
        def asked_here(self) -> bool:
            return condition()

    monkeypatch.setattr(stage, "StopFlag", Stop)


def assert_same_weights(found: Path, wanted: Path) -> None:
    """Compare two snapshots bit for bit."""
    ours, theirs = (load_file(path / "model.safetensors") for path in (found, wanted))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] == value).all(), f"{name} of {found.name}"
