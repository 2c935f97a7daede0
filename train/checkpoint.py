"""Checkpoints: what one is of, which is the newest whole one, and which go.

    checkpoints/step-0000040/             whole: the rename to this name is its commit
    checkpoints/step-0000040.replaced/    the one before, while a step that is reached again is written again
    checkpoints/.tmp-…/                   being written, or left by a dead save: never read, removed at the next start

`train.state_files` says what is in one, `train.checkpoint_saver` writes it. Random numbers, learning rate and the
order of samples are functions of the step, so none of them is in it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from data_shards.atomic import drop_dir, fsync_dir, sha256_file
from data_shards.errors import UserError
from train.collectives import max_over_ranks, rank, world_size
from train.state_files import part_name, read_state

_log = logging.getLogger(__name__)
_REPLACED = ".replaced"
_NO_STATE = 1 << 40
_CPU = torch.device("cpu")


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
    precision: str = "float32"
    """Of matrix products."""
    best_dev: float | None = None
    """Best dev metric so far."""
    best_step: int | None = None
    """The step it was measured at; the checkpoint of this step is kept."""
    evals_without_gain: int = 0
    """See `train.dev.Best`."""
    loss_ceiling: float = 0.0
    """See `train.health.Health`."""
    skips: int = 0
    """Likewise."""
    keep_graphs: bool | None = None
    """What `train.gradient_cache = "auto"` has measured: the two ways round differently under some engines."""
    refreshes: int = 0
    """Negatives versions that have been asked for."""
    refresh_step: int = 0
    """The step at which the newest of them was."""
    flatness: list[Any] = field(default_factory=list)
    """See `train.cadence.Flatness`."""

    def taken_up_by(self, run: TrainState) -> TrainState:
        """Return this state as a run goes on with it that may have another engine, precision and number of ranks."""
        taken = replace(self, engine=run.engine, world_size=run.world_size, precision=run.precision)
        return taken if taken == self else replace(taken, keep_graphs=None)


def newest_checkpoint(root: Path, device: torch.device = _CPU) -> tuple[Path, TrainState] | None:
    """Return the newest checkpoint whose files all match their checksums; damaged ones are passed over, loudly.

    A collective: each rank reads its share of the files, and all come to the same answer, also where only one of
    them finds damage or does not see the folder.

    Args:
        root: the folder of all checkpoints, on a disk that all ranks share.
        device: where the process group's tensors live.
    """
    below = _NO_STATE
    while True:
        mine = max((code for code in _codes(root) if code < below), default=-1)
        below = max_over_ranks(mine, device)
        if below < 0:
            return None
        path = root / _folder_name(below)
        state, names, share = _look(path)
        worst = max_over_ranks(share, device)
        if worst == 0 and state is not None:
            return path, state
        if not share:
            where = names[worst - 1] if worst <= len(names) else "state.json"
            _log.warning("checkpoint %s is passed over: another rank found %s damaged or missing", path.name, where)


def _look(path: Path) -> tuple[TrainState | None, list[str], int]:
    """Check this rank's share of a checkpoint's files.

    Returns:
        Its state, None where that cannot be read; its files; and 0 where nothing is wrong, else a number that is the
        same on all ranks: 1 + the place of the damaged file, or a large one for the state.
    """
    names: list[str] = []
    at_fault = _NO_STATE
    try:
        row = read_state(path)
        state = TrainState(**row["state"])
        names = _file_names(state.world_size)
        if set(names) != set(row["files"]):
            raise UserError(f"state.json names {len(row['files'])} files, {state.world_size} ranks write two each")
        for place in range(rank(), len(names), world_size()):
            at_fault = place + 1
            if sha256_file(path / names[place]) != row["files"][names[place]]:
                raise UserError(f"{names[place]} is damaged: its checksum does not match")
        return state, names, 0
    except (UserError, OSError, TypeError, KeyError, AttributeError) as error:
        cause = f"no {error}" if isinstance(error, KeyError) else str(error)
        _log.warning("checkpoint %s is passed over: %s", path.name, cause)
        return None, names, at_fault


def check_fits(
    state: TrainState,
    *,
    engine: str,
    world_size: int,
    dataset_id: str,
    batch_size: int,
    seed: int,
    order: str,
    precision: str = "float32",
) -> None:
    """Refuse to resume what would not be the same run; say in the log what may differ and does.

    Raises:
        UserError: data, batch size, seed or global order differ.
    """
    for name, now in {"dataset_id": dataset_id, "batch_size": batch_size, "seed": seed}.items():
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
    then_now = {
        "engine": (state.engine, engine),
        "ranks": (state.world_size, world_size),
        "precision": (state.precision, precision),
    }
    changes = [f"{name} {then} -> {now}" for name, (then, now) in then_now.items() if then != now]
    if changes:
        _log.info(
            "resuming with %s: the order of samples stays, sums are rounded differently from here", ", ".join(changes)
        )


def folder_of(root: Path, step: int) -> Path:
    """Return where the checkpoint of a step is, or would be."""
    return root / f"step-{step:07d}"


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished folder to its place: the commit.

    A resumed run may reach the same step again: at every moment the old or the new folder is there, whole.
    """
    replaced = path.with_name(path.name + _REPLACED)
    if path.exists():
        drop_dir(replaced)
        os.rename(path, replaced)
    os.rename(temporary, path)
    fsync_dir(path.parent)


def rotate(root: Path, state: TrainState, *, keep: int) -> None:
    """Drop all but the newest `keep` checkpoints and the best one.

    Args:
        root: the folder of all checkpoints.
        state: of the one that was just written. Later steps are of a future that was passed over as damaged.
        keep: how many stay, the best not counted.
    """
    codes = sorted(_codes(root), reverse=True)
    newest_of = {step: max(code for code in codes if code // 2 == step) for step in {code // 2 for code in codes}}
    staying = sorted(step for step in newest_of if step <= state.step)[-keep:]
    going = (c for c in codes if c != newest_of[c // 2] or c // 2 not in {*staying, state.best_step})
    for code in going:
        try:
            drop_dir(root / _folder_name(code))
        except OSError as error:  # the new one is committed all the same
            _log.warning("an old checkpoint stays: %s", error)


def oldest_resumable(root: Path, *, keep: int) -> int:
    """Return the step of the oldest checkpoint that a resume may take; 0 where fewer than `keep` are there."""
    steps = sorted({code // 2 for code in _codes(root)}, reverse=True)
    return steps[keep - 1] if len(steps) >= keep else 0


def remove_dead_saves(root: Path) -> None:
    """Remove what saves left that were interrupted; no other save may be going on."""
    for folder in root.glob(".tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _codes(root: Path) -> list[int]:
    """Return a number for each checkpoint, larger the newer it is: twice the step, and 1 if it was not replaced."""
    names = (re.fullmatch(r"step-(\d{7,})(\.replaced)?", path.name) for path in root.glob("step-*"))
    return [2 * int(name[1]) + (name[2] is None) for name in names if name]


def _folder_name(code: int) -> str:
    return f"step-{code // 2:07d}" + ("" if code % 2 else _REPLACED)


def _file_names(world_size: int) -> list[str]:
    """Large ones first: dealt out in turn, they are spread over ranks."""
    suffixes = (".safetensors", ".json")
    return [f"{part_name(rank, world_size)}{suffix}" for suffix in suffixes for rank in range(world_size)]
