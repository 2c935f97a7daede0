"""Everything of a run that outlives its process: checkpoints, snapshots, and where they came from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from encoder.model import Encoder
from encoder.snapshot import save_snapshot, snapshot_hash
from train.checkpoint import TrainState, check_fits, newest_checkpoint, oldest_resumable
from train.checkpoint_saver import CheckpointSaver
from train.collectives import rank
from train.engine import Engine
from train.job import TrainJob
from train.objective import Objective
from train.state_files import StateReader

_log = logging.getLogger(__name__)


class Keeper:
    """Saves and loads; every rank calls its methods together."""

    def __init__(
        self,
        job: TrainJob,
        engine: Engine,
        encoder: Encoder,
        objective: Objective | None,
        *,
        root: Path | None = None,
    ) -> None:
        """Clear up what dead saves left.

        Args:
            job: what this rank is told.
            engine: whose state is kept.
            encoder: of the snapshots.
            objective: where it learns, its state is kept too.
            root: the folder of checkpoints; by default the run's.
        """
        self._root = root or job.run.checkpoints
        self._keep = job.train.keep_checkpoints
        self._deciding = job.dev.metrics[0].lower()
        self._at: int | None = None  # the step whose checkpoint this process has written or read
        self._surpassed: list[Path] = []  # best snapshots of before, until a checkpoint knows of the new one
        self._going: list[Path] = []  # those that the checkpoint under way makes superfluous
        self._run, self._engine, self._encoder, self._objective = job.run, engine, encoder, objective
        self._saver = CheckpointSaver(
            self._root,
            keep=self._keep,
            device=engine.device,
            asynchronous=job.train.asynchronous_checkpoints,
            timeout_s=job.engine.timeout_s,
        )

    def resume(self, fresh: TrainState) -> TrainState:
        """Load the newest whole checkpoint, or begin with `fresh`, which says what this run is.

        Raises:
            UserError: the checkpoint is of another run.
        """
        found = newest_checkpoint(self._root, self._engine.device)
        if found is None:
            if damaged := sorted(path.name for path in self._root.glob("step-*")):
                raise UserError(
                    f"none of the checkpoints in {self._root} is whole ({', '.join(damaged)}; the log "
                    "says why); copy one back, or start a new run with another run.out"
                )
            self._forget_later_bests(fresh)
            return fresh
        path, state = found
        check_fits(
            state,
            engine=fresh.engine,
            world_size=fresh.world_size,
            dataset_id=fresh.dataset_id,
            batch_size=fresh.batch_size,
            seed=fresh.seed,
            order=fresh.order,
            precision=fresh.precision,
        )
        reader = StateReader(path)
        reader.check_shapes(self._engine.shapes())
        self._engine.load(reader, reader.extra["engine"])
        if self._objective is not None:
            self._objective.load(reader.extra["objective"])
        self._forget_later_bests(state)
        self._at = state.step
        _log.info("resumed from %s", path.name)
        return state.taken_up_by(fresh)

    def checkpoint(self, state: TrainState) -> None:
        """Begin to write a checkpoint, unless the one of this step is this process's own.

        Another one of this step is of a future that was passed over as damaged: it is replaced.
        """
        if self._at == state.step:
            return
        extra = {"engine": self._engine.extra()}
        if self._objective is not None:
            extra["objective"] = self._objective.state()
        self.wait()
        self._saver.save(self._engine.pieces(), self._engine.shapes(), state, extra)
        self._at = state.step
        self._going, self._surpassed = self._surpassed, []

    def poll(self) -> None:
        """Raise what has become of the checkpoint under way, if it failed on this rank."""
        self._saver.poll()

    def wait(self) -> None:
        """Wait until the checkpoint under way is there."""
        self._saver.wait()
        while self._going:
            shutil.rmtree(self._going.pop(), ignore_errors=True)

    @property
    def oldest_step(self) -> int:
        """The earliest step that a resume may begin with."""
        return oldest_resumable(self._root, keep=self._keep)

    def close(self) -> None:
        """Let the checkpoint under way end, or give it up; no collective."""
        self._saver.close()

    def snapshot(self, path: Path, step: int) -> str:
        """Write the encoder, unless it is there: the first rank writes, every rank gives its part.

        Returns:
            On the first rank, the snapshot's hash.
        """
        weights = self._engine.weights()
        if rank() != 0:
            return ""
        if not path.exists():
            return save_snapshot(self._encoder, path, step=step, weights=weights)
        return snapshot_hash(path)

    def best(self, step: int, values: dict[str, float]) -> None:
        """Point to the best snapshot so far; the one before goes once a checkpoint knows of this one."""
        path = self._run.best(step)
        if rank() == 0:
            write_json(self._run.best_pointer, {"snapshot": path.name, "step": step, **values})
            self._surpassed = [older for older in path.parent.glob("best-*") if older != path]

    def _forget_later_bests(self, state: TrainState) -> None:
        """Let the best be what it was at the checkpoint: what came later may turn out otherwise."""
        if rank() != 0 or self._root != self._run.checkpoints:
            return
        kept = self._run.best(state.best_step) if state.best_step else None
        for path in self._run.initial.parent.glob("best-*"):
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)
        pointer = self._run.best_pointer
        if not pointer.exists() or read_json(pointer)["step"] == state.best_step:
            return
        pointer.unlink()
        if kept is not None and kept.exists():
            row = {"snapshot": kept.name, "step": state.best_step, self._deciding: state.best_dev}
            write_json(pointer, row)
