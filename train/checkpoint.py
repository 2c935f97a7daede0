"""Checkpoints: a folder that is whole or absent, with the checksum of every file.

    checkpoints/step-0000040/{encoder.safetensors, optimizer.pt}   DDP
    checkpoints/step-0000040/deepspeed/…                           DeepSpeed
    checkpoints/step-0000040/state.json                            what they belong to, and their checksums

Random numbers, learning rate and the order of samples are functions of the step, so none of them is in it.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.atomic import fsync_dir, fsync_file, read_json, sha256_file, write_json
from data_shards.errors import UserError
from train.collectives import barrier, rank
from train.engine import Engine

_log = logging.getLogger(__name__)
_STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What a checkpoint is of."""

    step: int
    """Steps that are done; training goes on with this one."""
    engine: str
    """Kind of engine that wrote it."""
    world_size: int
    """Ranks that wrote it."""
    dataset_id: str
    """Of the training pairs."""
    batch_size: int
    """Pairs a step."""
    seed: int
    """Of the global order and of dropout."""
    order: str
    """Identity of the global order: all that it is a function of."""
    negatives_version: int
    """In use at the last step; 0 before the first refresh."""
    best_dev: float | None = None
    """Best dev metric so far."""


def save_checkpoint(engine: Engine, state: TrainState, root: Path, *, keep: int) -> Path:
    """Write a checkpoint with all ranks, then drop the oldest beyond `keep`.

    The rename of the folder is the commit: an interrupted save leaves a `.tmp-` folder that is never read.

    Args:
        engine: writes weights and optimiser state.
        state: what they belong to.
        root: the folder of all checkpoints, on a disk that all ranks share.
        keep: checkpoints that stay.
    """
    path = root / f"step-{state.step:07d}"
    temporary = root / f".tmp-{path.name}"
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    engine.save(temporary)
    barrier()
    if rank() == 0:
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        for file in files:
            fsync_file(file)
        checksums = {str(file.relative_to(temporary)): sha256_file(file) for file in files}
        write_json(temporary / _STATE, {**asdict(state), "files": checksums})
        shutil.rmtree(path, ignore_errors=True)  # a resumed run may reach the same step again
        os.rename(temporary, path)
        fsync_dir(root)
        for old in _folders(root)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    barrier()
    return path


def latest_checkpoint(root: Path) -> tuple[Path, TrainState] | None:
    """Return the newest checkpoint whose files all match their checksums; damaged ones are passed over, loudly."""
    for path in reversed(_folders(root)):
        try:
            row = read_json(path / _STATE)
            checksums = row.pop("files")
            state = TrainState(**row)
            for name, wanted in checksums.items():
                if not (path / name).is_file() or sha256_file(path / name) != wanted:
                    raise UserError(f"{path / name} is damaged or missing")
            return path, state
        except (UserError, TypeError, KeyError) as error:
            _log.warning("checkpoint %s is passed over: %s", path.name, error)
    return None


def check_fits(
    state: TrainState, *, engine: str, world_size: int, dataset_id: str, batch_size: int, seed: int, order: str
) -> None:
    """Refuse to resume what would not be the same run.

    Raises:
        UserError: data, batch size, seed or engine differ, or ZeRO's shards are for another number of ranks.
    """
    now_of = {"dataset_id": dataset_id, "batch_size": batch_size, "seed": seed, "engine": engine}
    for name, now in now_of.items():
        if (then := getattr(state, name)) != now:
            raise UserError(
                f"the checkpoint was written with {name} {then}, this run has {now}; "
                f"set it back, or start a new run with another run.out"
            )
    if state.order != order:
        raise UserError(
            "the checkpoint was written under another global order: the [order] section, data.weights or the weights "
            "in the manifests have changed; set them back, or start a new run with another run.out"
        )
    if engine != "ddp" and state.world_size != world_size:
        raise UserError(
            f"the checkpoint's ZeRO state is for {state.world_size} ranks, this run has {world_size}; "
            f"resume with --ranks {state.world_size}"
        )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.is_dir())
