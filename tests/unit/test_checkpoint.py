"""Checkpoints of one process: exact, whole or absent, and damaged ones are passed over."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_shards.atomic import sha256_file
from data_shards.collate import pad_chunks
from data_shards.errors import UserError
from encoder.model import Encoder
from encoder.snapshot import load_encoder
from tests.unit.tiny import TEXTS
from train.checkpoint import TrainState, check_fits, latest_checkpoint, save_checkpoint
from train.engine import Engine, EngineConfig, start_engine
from train.schedule import OptimizerConfig

STATE = TrainState(
    step=0,
    engine="ddp",
    world_size=1,
    dataset_id="sha256:a",
    batch_size=6,
    seed=0,
    order="5eed",
    negatives_version=0,
)


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def start(snapshot: Path) -> tuple[Encoder, Engine]:
    encoder = load_encoder(snapshot).train()
    return encoder, start_engine(encoder, EngineConfig(precision="float32"), OptimizerConfig(max_grad_norm=0.5))


def advance(encoder: Encoder, engine: Engine, steps: int) -> list[float]:
    """Take steps whose gradient depends on the weights; return the gradient norms."""
    (chunk,) = pad_chunks(encoder.tokenize(TEXTS, "query"), pad_id=0, tokens_per_chunk=10_000)
    norms = []
    for _ in range(steps):
        with engine.chunk(last=True):
            vector_BD = engine.encode(chunk)
            engine.backward((vector_BD @ vector_BD.T).square().sum())
        norms.append(engine.step(1e-2))
    return norms


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resume_is_exact(snapshot: Path, tmp_path: Path) -> None:
    """Three steps, a checkpoint, three more; another process loads it and does the last three: the same bits."""
    encoder, engine = start(snapshot)
    advance(encoder, engine, 3)
    path = save_checkpoint(engine, replace(STATE, step=3), tmp_path, keep=2)
    saved = weights(encoder)
    norms = advance(encoder, engine, 3)

    resumed, resumed_engine = start(snapshot)
    found = latest_checkpoint(tmp_path)
    assert found == (path, replace(STATE, step=3))
    resumed_engine.load(path)
    assert_same(weights(resumed), saved)
    assert advance(resumed, resumed_engine, 3) == norms
    assert_same(weights(resumed), weights(encoder))


def test_the_optimiser_s_state_matters(snapshot: Path, tmp_path: Path) -> None:
    """Weights alone would not do: the test above would fail without what AdamW remembers."""
    encoder, engine = start(snapshot)
    advance(encoder, engine, 3)
    path = save_checkpoint(engine, STATE, tmp_path, keep=1)
    norms = advance(encoder, engine, 3)
    resumed, resumed_engine = start(snapshot)
    resumed.load_state_dict(load_file(path / "encoder.safetensors"))
    assert advance(resumed, resumed_engine, 3) != norms


def three(snapshot: Path, root: Path, keep: int = 3) -> None:
    encoder, engine = start(snapshot)
    for step in (2, 4, 6):
        advance(encoder, engine, 1)
        save_checkpoint(engine, replace(STATE, step=step), root, keep=keep)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_stay_and_the_oldest_go(snapshot: Path, tmp_path: Path) -> None:
    three(snapshot, tmp_path, keep=2)
    assert names(tmp_path) == ["step-0000004", "step-0000006"]


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("name", ["encoder.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    snapshot: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    three(snapshot, tmp_path)
    file = tmp_path / "step-0000006" / name
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[1] ^= 1
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "gone":
        file.unlink()
    with caplog.at_level(logging.WARNING, "train.checkpoint"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found[0].name, found[1].step) == ("step-0000004", 4)
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith("checkpoint step-0000006 is passed over: ")
    assert name in caplog.text


@pytest.mark.parametrize(
    "change",
    [lambda row: row.pop("files"), lambda row: row.pop("step"), lambda row: row.update(surprise=1)],
    ids=["no checksums", "no step", "another version's field"],
)
def test_a_state_of_another_shape_is_passed_over(snapshot: Path, tmp_path: Path, change: Any) -> None:
    three(snapshot, tmp_path)
    path = tmp_path / "step-0000006" / "state.json"
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 4


def test_an_interrupted_save_is_never_taken_and_the_next_one_clears_it_up(snapshot: Path, tmp_path: Path) -> None:
    three(snapshot, tmp_path)
    engine = start(snapshot)[1]

    class Interrupted:
        def save(self, folder: Path) -> None:
            engine.save(folder)
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(Interrupted(), replace(STATE, step=8), tmp_path, keep=3)  # type: ignore[arg-type]
    assert ".tmp-step-0000008" in names(tmp_path)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 6
    (tmp_path / ".tmp-step-0000008" / "rest").write_text("of the save before")
    save_checkpoint(engine, replace(STATE, step=8), tmp_path, keep=3)
    assert names(tmp_path) == ["step-0000004", "step-0000006", "step-0000008"]
    assert not (tmp_path / "step-0000008" / "rest").exists()


def test_a_step_that_is_reached_again_is_written_again(snapshot: Path, tmp_path: Path) -> None:
    three(snapshot, tmp_path)
    encoder, engine = start(snapshot)
    save_checkpoint(engine, replace(STATE, step=6, best_dev=0.5), tmp_path, keep=3)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].best_dev == 0.5
    assert_same(load_file(found[0] / "encoder.safetensors"), weights(encoder))


def test_nothing_executes_a_pickle_in_a_checkpoint_is_refused(snapshot: Path, tmp_path: Path) -> None:
    """Even where its checksum is right: somebody who can write the one can write the other."""
    engine = start(snapshot)[1]
    path = save_checkpoint(engine, STATE, tmp_path / "checkpoints", keep=1)
    bomb = f"cos\nmkdir\n(V{tmp_path / 'executed'}\ntR.".encode()
    (path / "optimizer.pt").write_bytes(bomb)
    row = json.loads((path / "state.json").read_text())
    row["files"]["optimizer.pt"] = sha256_file(path / "optimizer.pt")
    (path / "state.json").write_text(json.dumps(row))
    assert latest_checkpoint(tmp_path / "checkpoints") is not None
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        engine.load(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists(), "the bomb is a dud"


FITS: dict[str, Any] = {
    "engine": "ddp",
    "world_size": 1,
    "dataset_id": "sha256:a",
    "batch_size": 6,
    "seed": 0,
    "order": "5eed",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_id": "sha256:b"}, "was written with dataset_id sha256:a, this run has sha256:b; set it back, or"),
        ({"batch_size": 8}, "was written with batch_size 6, this run has 8"),
        ({"seed": 1}, "was written with seed 0, this run has 1"),
        (
            {"order": "0dd"},
            r"under another global order: the \[order\] section, data\.weights or .*; set them back, or",
        ),
        ({"engine": "zero2"}, "was written with engine ddp, this run has zero2"),
    ],
)
def test_what_would_not_be_the_same_run_is_refused(change: dict[str, Any], message: str) -> None:
    check_fits(STATE, **FITS)
    with pytest.raises(UserError, match=message):
        check_fits(STATE, **{**FITS, **change})


def test_another_number_of_ranks_is_refused_for_sharded_state_alone() -> None:
    check_fits(STATE, **{**FITS, "world_size": 4})
    sharded = replace(STATE, engine="zero1", world_size=2)
    check_fits(sharded, **{**FITS, "engine": "zero1", "world_size": 2})
    with pytest.raises(UserError, match="state is for 2 ranks, this run has 4; resume with --ranks 2"):
        check_fits(sharded, **{**FITS, "engine": "zero1", "world_size": 4})
