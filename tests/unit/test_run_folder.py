"""Names in a run folder are an interface: the miner, the report and older runs rely on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from train.run_folder import RunFolder


def test_names_by_hand(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    names = {
        name: str(getattr(run, name).relative_to(run.root))
        for name, value in vars(RunFolder).items()
        if isinstance(value, property)
    }
    assert names == {
        "config": "config.toml",
        "identity": "run.json",
        "initial": "snapshots/initial",
        "final": "snapshots/final",
        "adapted": "snapshots/adapted",
        "adapt_checkpoints": "adapt/checkpoints",
        "adapt_head": "adapt/head.safetensors",
        "best_pointer": "best.json",
        "checkpoints": "checkpoints",
        "negatives": "negatives",
        "requests": "requests",
        "mining": "mining.json",
        "metrics": "metrics.jsonl",
        "logs": "logs",
        "failure": "failure.json",
        "stopped": "stopped.json",
        "lock": "lock",
        "done": "done.json",
    }
    assert run.snapshot(40) == run.root / "snapshots/step-0000040"


def test_asking_creates_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.checkpoints.parent == run.snapshot(3).parents[1] == run.root
    assert not run.root.exists()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.root = tmp_path  # type: ignore[misc]
