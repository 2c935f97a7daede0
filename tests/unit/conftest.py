"""One thread, no network, and a small encoder for the tests that need one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from encoder.model import Encoder
from encoder.snapshot import load_encoder, save_snapshot
from tests.unit.damaged import sound_dataset
from tests.unit.tiny import tiny_encoder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot that no test may change."""
    path = tmp_path_factory.mktemp("snapshot") / "tiny"
    save_snapshot(tiny_encoder(), path, step=7)
    return path


@pytest.fixture
def encoder(snapshot: Path) -> Encoder:
    """A fresh encoder for each test, always with the same weights and tokenizer."""
    return load_encoder(snapshot)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A sound dataset to harm, as `tests.unit.damaged` describes it."""
    return sound_dataset(tmp_path / "pairs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("wants root that may mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def handlers_come_back() -> Iterator[None]:
    """A stage catches signals for as long as its process lives; the tests' process goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state for the process, and refuses to start a second time with other settings."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
