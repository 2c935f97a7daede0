"""Writes checkpoints while training goes on.

    every rank   copies its pieces to the host (training waits for this alone) → its thread writes its two files
    rank 0       its thread also waits for the others' files, writes `state.json`, renames the folder, rotates

The threads talk through the shared folder alone: a collective in a thread would meet those of training in another
order on another rank. The folder's temporary name holds a random token, so that no file of an earlier, interrupted
save of the same step is ever counted. A save that fails leaves the older checkpoints as they were.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from train.checkpoint import TrainState, folder_of, publish, remove_dead_saves, rotate
from train.collectives import max_over_ranks, rank, world_size
from train.host_copy import HostCopy
from train.state_files import Piece, Shapes, part_name, write_part, write_state

_log = logging.getLogger(__name__)
_FAILED = ".failed"
_POLL_S = 0.02
_MAX_POLL_S = 1.0


class CheckpointError(UserError):
    """A checkpoint was not written; the message says why. Older ones are as they were."""


@dataclass
class _Save:
    """One save that was begun."""

    state: TrainState
    temporary: Path
    pieces: list[Piece]
    head: dict[str, Any]
    error: BaseException | None = None
    thread: threading.Thread | None = None
    given_up: threading.Event = field(default_factory=threading.Event)


class CheckpointSaver:
    """Saves checkpoints into one folder, one at a time."""

    def __init__(
        self,
        root: Path,
        *,
        keep: int,
        device: torch.device,
        asynchronous: bool = True,
        timeout_s: float = 1800.0,
    ) -> None:
        """Remove what dead saves left; no other run may write here.

        Args:
            root: the folder of all checkpoints, on a disk that all ranks share.
            keep: checkpoints that stay, beside the best.
            device: where the pieces are.
            asynchronous: whether training goes on while files are written.
            timeout_s: how long the first rank waits for the others' files once its own are written.
        """
        self._root, self._keep, self._device = root, keep, device
        self._asynchronous, self._timeout_s = asynchronous, timeout_s
        self._rank, self._world = rank(), world_size()
        self._host = HostCopy(device)
        self._pending: _Save | None = None
        if self._rank == 0:
            remove_dead_saves(root)

    def save(self, pieces: Iterable[Piece], shapes: Shapes, state: TrainState, extra: dict[str, Any]) -> None:
        """Begin a checkpoint, once the one before is done; every rank calls this at the same step.

        When it returns, weights and optimiser state may change. Without `asynchronous` the checkpoint is there.

        Args:
            pieces: this rank's. Together the ranks' pieces make whole tensors; order and cuts are the engine's own.
            shapes: of all parameters, the same on all ranks.
            state: what the checkpoint is of.
            extra: JSON that the engine and the objective want back.

        Raises:
            CheckpointError: the save before failed, or without `asynchronous` this one.
            ValueError: a piece does not fit its parameter, or two begin at the same place.
        """
        self.wait()
        copies = self._host.copy(pieces)
        _check_pieces(copies, shapes)
        # A copy by way of JSON: the caller may go on with `extra`, and what is no JSON fails here.
        head = json.loads(
            json.dumps({"state": asdict(state), "shapes": {k: [*v] for k, v in shapes.items()}, "extra": extra})
        )
        save = _Save(state, self._new_folder(state.step), copies, head)
        self._pending = save
        if self._asynchronous:
            save.thread = threading.Thread(target=self._run, args=(save,), name="checkpoint", daemon=True)
            save.thread.start()
        else:
            self._run(save)
            self.wait()

    def poll(self) -> None:
        """Raise what the save under way has come to, if it failed; waits for nothing and for nobody.

        Raises:
            CheckpointError: it failed on this rank.
        """
        if self._pending is not None and self._pending.error is not None:
            raise self._pending.error

    def wait(self) -> None:
        """Wait until the save under way is committed, on all ranks; every rank calls this at the same step.

        Raises:
            CheckpointError: it failed, on this rank or another.
        """
        save = self._pending
        if save is None:
            return
        if save.thread is not None:
            save.thread.join()
        # The first rank is here after its commit, so past this line all ranks see the folder, or raise together.
        failed = max_over_ranks(int(save.error is not None), self._device)
        self._pending = None
        if failed and self._rank == 0:
            shutil.rmtree(save.temporary, ignore_errors=True)  # again: another rank may have written since
        if save.error is not None:
            raise save.error
        if failed:
            name = folder_of(self._root, save.state.step).name
            raise CheckpointError(f"checkpoint {name} was not written: it failed on another rank, which says why")

    def close(self, *, within_s: float = 60.0) -> None:
        """Let the save under way end, or give it up: for a run that ends, for whatever reason. No collective.

        Args:
            within_s: how long to wait. A rank that died never writes its part.
        """
        save, self._pending = self._pending, None
        if save is None or save.thread is None:
            return
        save.thread.join(within_s)
        save.given_up.set()
        save.thread.join(2 * _MAX_POLL_S)
        if save.error is not None:
            _log.error("%s", save.error)

    def _new_folder(self, step: int) -> Path:
        """Return a temporary folder that this save alone knows, made by the first rank for all."""
        token = secrets.randbits(62) if self._rank == 0 else 0
        folder = self._root / f".tmp-step-{step:07d}-{token:016x}"
        if self._rank == 0:
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be made ({error}); older checkpoints stay") from None
        token = max_over_ranks(token, self._device)  # the others have none, so the highest is the first rank's
        return self._root / f".tmp-step-{step:07d}-{token:016x}"

    def _run(self, save: _Save) -> None:
        """Write this rank's part, and commit all of them where this is the first rank. The thread's whole life."""
        path = folder_of(self._root, save.state.step)
        try:
            write_part(save.temporary, save.pieces, rank=self._rank, world_size=self._world)
            if self._rank == 0:
                self._wait_for_parts(save)
                write_state(save.temporary, save.head, world_size=self._world)
                publish(save.temporary, path)
                rotate(self._root, save.state, keep=self._keep)
        except BaseException as error:
            if not self._is_published(save, path):
                save.error = self._explain(save, error)
                self._clear_up(save)

    def _is_published(self, save: _Save, path: Path) -> bool:
        """Whether the first rank has seen this rank's part whole and committed all, while this rank was at its end.

        What is left then is to flush the folder, under a name that it has no longer.
        """
        part = f"{part_name(self._rank, self._world)}.json"
        return self._rank > 0 and not save.temporary.exists() and (path / part).exists()

    def _wait_for_parts(self, save: _Save) -> None:
        """Wait until every rank has committed its part, or one says that it cannot."""
        deadline, pause = time.monotonic() + self._timeout_s, _POLL_S
        while True:
            names = set(os.listdir(save.temporary))
            for name in sorted(name for name in names if name.endswith(_FAILED)):
                raise CheckpointError(read_json(save.temporary / name)["cause"])
            missing = [k for k in range(self._world) if f"{part_name(k, self._world)}.json" not in names]
            if not missing:
                return
            late, given_up = time.monotonic() > deadline, save.given_up.wait(pause)
            if late or given_up:
                why = "the run is ending" if given_up else f"{self._timeout_s:g} s have passed"
                which = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:8]))}"
                name = folder_of(self._root, save.state.step).name
                raise CheckpointError(
                    f"checkpoint {name} was given up: {which} of {self._world} did not write its part, and {why}; "
                    f"is it alive, and is {self._root} on a disk that all ranks share?"
                )
            pause = min(2 * pause, _MAX_POLL_S)

    def _explain(self, save: _Save, error: BaseException) -> BaseException:
        """Turn a disk's error into one line that says what was needed; leave our own mistakes as they are."""
        if not isinstance(error, OSError | SafetensorError):
            return error
        name = folder_of(self._root, save.state.step).name
        if not save.temporary.exists():
            return CheckpointError(f"checkpoint {name} was not written: rank 0 gave it up, and says why")
        needed = sum(piece.bytes for piece in save.pieces)
        return CheckpointError(
            f"checkpoint {name} was not written: rank {self._rank} needs {_mib(needed)} in {self._root}, where "
            f"{_mib(_free_bytes(self._root))} are free ({error}); older checkpoints stay. Free some space or lower "
            "train.keep_checkpoints, then resume"
        )

    def _clear_up(self, save: _Save) -> None:
        """Remove what this rank wrote; the first rank removes it all, another one tells it why."""
        if self._rank == 0:
            shutil.rmtree(save.temporary, ignore_errors=True)
            return
        part = save.temporary / part_name(self._rank, self._world)
        try:
            part.with_suffix(".safetensors").unlink(missing_ok=True)  # and makes room for the line below
            write_json(part.with_suffix(_FAILED), {"cause": str(save.error)})
        except OSError as error:
            _log.warning("rank %d could not tell the first rank that its part failed: %s", self._rank, error)


def _check_pieces(pieces: list[Piece], shapes: Shapes) -> None:
    seen = set()
    for piece in pieces:
        if piece.name not in shapes or piece.stop > torch.Size(shapes[piece.name]).numel():
            shape = [*shapes[piece.name]] if piece.name in shapes else "of no parameter"
            raise ValueError(f"piece {piece.key} with {piece.flat.numel()} values does not fit its shape {shape}")
        if piece.key in seen:
            raise ValueError(f"piece {piece.key} came twice")
        seen.add(piece.key)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
