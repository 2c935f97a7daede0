"""One run, three engines: stopped under DeepSpeed ZeRO-3, again under FSDP2, and ended by a single process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from data_shards.atomic import read_json
from encoder.embed import embed_texts
from encoder.snapshot import load_encoder
from tests.e2e.conftest import dipole, tiny_toml
from tests.e2e.watching import Watched, losses, steps_logged

pytestmark = [pytest.mark.distributed, pytest.mark.deepspeed]


def _stopped_at(step: int, run: Path, *arguments: object) -> None:
    """Train until a step is logged, then ask to stop."""
    watched = Watched("train", *arguments)
    try:
        watched.wait_for(lambda: steps_logged(run) >= step)
        watched.process.send_signal(signal.SIGTERM)
        code, output = watched.wait()
        assert code == 75, output
        assert watched.ends_within(10) == []
    finally:
        watched.clean_up()
    assert read_json(run / "stopped.json")["reason"].startswith("signal SIG")


def test_a_run_goes_on_under_another_engine(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    config, run = tmp_path / "tiny.toml", tmp_path / "run"
    config.write_text(tiny_toml(data, []))
    resume = [run / "config.toml", "--resume"]
    _stopped_at(2, run, config, "--out", run, "--engine.kind=zero3")
    _stopped_at(6, run, *resume, "--engine.kind=fsdp2", "--train.gradient_cache=on")
    answer = dipole("train", *resume, "--engine.kind=ddp", "--ranks", 1)
    assert (answer["finished"], answer["steps"]) == (True, 12)
    assert sorted(losses(run)) == list(range(12)), "each step once"
    log = (run / "logs" / "train.log").read_text()
    for change in ("engine zero3 -> fsdp2", "engine fsdp2 -> ddp, ranks 2 -> 1"):
        assert f"resuming with {change}" in log
    texts = ["open a file", "close it"]
    ours = embed_texts(load_encoder(run / "snapshots/final"), texts, side="query")
    theirs = SentenceTransformer(str(run / "snapshots/final"), device="cpu").encode(texts)
    assert abs(ours - theirs).max() < 1e-5
