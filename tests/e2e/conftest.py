"""A tiny retrieval set, and the user's command, for the end-to-end tests."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_WORDS = (
    "river stone cloud lamp garden wheel bridge candle forest mirror anchor basket copper dancer engine feather "
    "glacier harbor island jacket kettle ladder magnet needle orchard pepper quartz ribbon saddle timber"
)
_PASSAGES = 120
_COMMAND_TIMEOUT_S = 240


def dipole(*arguments: object, expect: int = 0, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run `dipole … --json` as a user would and return what it prints."""
    done = subprocess.run(
        command(*arguments, "--json"),
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        env=clean_environment() | (environment or {}),
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return dict(json.loads(done.stdout)) if expect == 0 else {"stderr": done.stderr, "stdout": done.stdout}


def command(*arguments: object) -> list[str]:
    """Return the command line of the installed `dipole`."""
    return [str(Path(sys.executable).with_name("dipole")), *map(str, arguments)]


def clean_environment() -> dict[str, str]:
    """Return the environment without what would reach a network or a cluster."""
    return {**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


def write_beir(folder: Path, *, seed: int = 0) -> Path:
    """Write a BEIR folder: a passage is a bag of words, its query some of them; every third one is for dev."""
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "qrels").mkdir()
    qrels: dict[str, list[str]] = {"train": [], "dev": []}
    with open(folder / "corpus.jsonl", "w") as corpus, open(folder / "queries.jsonl", "w") as queries:
        for number in range(_PASSAGES):
            words = dice.sample(_WORDS.split(), 8)
            text = " ".join(words * dice.randint(1, 4))
            corpus.write(json.dumps({"_id": f"p{number}", "title": f"page {number}", "text": text}) + "\n")
            queries.write(json.dumps({"_id": f"q{number}", "text": " ".join(words[:3]) + f" {number}"}) + "\n")
            qrels["dev" if number % 3 == 2 else "train"].append(f"q{number}\tp{number}\t1")
    for split, lines in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `beir`, `pairs` and `corpus`, made by the user's commands."""
    folder = tmp_path_factory.mktemp("data")
    beir = write_beir(folder / "beir")
    dipole("shards", "pairs", "--input", beir, "--out", folder / "pairs", "--samples-per-shard", 30)
    dipole("shards", "corpus", "--input", beir, "--out", folder / "corpus", "--samples-per-shard", 40)
    return folder


@pytest.fixture(scope="session")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a few seconds: two ranks, dropout, checkpoints every two steps, no mining."""
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(tiny_toml(data))
    return path


def tiny_toml(data: Path, extra: Sequence[str] = ()) -> str:
    """Return the config's text."""
    return "\n".join(
        [
            "[run]\nranks = 2\nseed = 1",
            f'[data]\npairs = "{data / "pairs"}"\ncorpus = "{data / "corpus"}"',
            "[scratch]\nlayers = 1\nwidth = 32\nheads = 2\nvocab_size = 300\ndropout = 0.1",
            "[encoder]\nmax_tokens = 40",
            "[batch]\nbatch_size = 16\ntokens_per_chunk = 128",
            "[train]\nsteps = 12\ncheckpoint_every_steps = 2",
            '[engine]\nprecision = "float32"',
            f'[dev]\ndata = "{data / "beir"}"\nevery_steps = 6',
            *extra,
            "",
        ]
    )
