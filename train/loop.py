"""The training loop of one rank.

For each stretch between two refreshes: take the negatives version that belongs to it, then for each global batch
encode, gather, score, differentiate, step. Around it: log, evaluate, checkpoint, stop when asked.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from data_shards.atomic import write_json
from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion
from data_shards.order import GlobalOrder, OrderConfig
from data_shards.reader import PairSource
from encoder.snapshot import load_encoder, save_snapshot
from train.batches import BatchConfig, BatchLoader, StepBatch
from train.checkpoint import TrainState, check_fits, latest_checkpoint, save_checkpoint
from train.collectives import barrier, rank, sum_over_ranks, world_size
from train.dev import DevConfig, DevSet
from train.engine import EngineConfig, resolve_precision, start_engine
from train.grad_cache import cached_step, plain_step
from train.loss import LossConfig, LossOutput
from train.refresh import RefreshConfig, RefreshRequest, wait_for_version
from train.run_folder import RunFolder
from train.schedule import OptimizerConfig, learning_rate
from train.stops import EXIT_STOPPED, StopFlag
from train.tracker import Tracker, TrackerConfig, truncate_metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, and what is kept of it."""

    epochs: float = 1.0
    """Passes over the training pairs."""
    steps: int = 0
    """Optimiser steps; where it is above 0 it takes the place of `epochs`."""
    gradient_cache: bool = True
    """Encode twice and hold one chunk's graph, instead of once and hold them all."""
    checkpoint_every_steps: int = 50
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Older ones are deleted."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.steps < 0 or (self.steps == 0 and self.epochs <= 0):
            raise UserError("train.epochs must be positive, or train.steps at least 1")
        if min(self.checkpoint_every_steps, self.keep_checkpoints) < 1:
            raise UserError("train.checkpoint_every_steps and keep_checkpoints must be at least 1")

    def total_steps(self, order: GlobalOrder) -> int:
        """Return the length of the run in steps."""
        return self.steps or max(1, round(self.epochs * order.steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that one rank needs to know."""

    run: RunFolder
    data: PairSource
    """Training shards."""
    order: OrderConfig
    seed: int
    run_id: str
    train: TrainConfig
    batch: BatchConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    engine: EngineConfig
    refresh: RefreshConfig
    dev: DevConfig
    tracker: TrackerConfig
    resolved: dict[str, Any]
    """The whole config, for W&B."""


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient is no number any more."""


def train(job: TrainJob) -> int:
    """Run until the last step or until asked to stop.

    Returns:
        The exit code: 0, or `EXIT_STOPPED` after a stop with a checkpoint.

    Raises:
        UserError: the config does not fit the data, the checkpoint or this machine.
        TrainingDivergedError: the loss or its gradient became NaN or infinite.
    """
    loop = _Loop(job)
    exit_code = 1
    try:
        exit_code = loop.run()
    finally:
        loop.tracker.close(exit_code)
    return exit_code


class _Loop:
    """State of the loop on one rank."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.stop = StopFlag()
        self.dataset = job.data.open(job.run.quarantine(f"rank-{rank():05d}"))
        self.order = self.dataset.order(batch_size=job.batch.batch_size, seed=job.seed, config=job.order)
        self.total = job.train.total_steps(self.order)
        self.borders = job.refresh.borders(self.total)
        self.encoder = load_encoder(job.run.initial).train()
        self.engine = start_engine(self.encoder, job.engine, job.optimizer)
        self.loader = BatchLoader(
            dataset=self.dataset,
            order=self.order,
            encoder=self.encoder,
            config=job.batch,
            rank=rank(),
            world=world_size(),
        )
        self.dev = DevSet(job.dev) if job.dev.data else None
        self.state = self._resume()
        if rank() == 0:
            truncate_metrics(job.run.metrics, self.state.step)
        self.tracker = Tracker(
            job.run.metrics,
            job.tracker,
            run_id=job.run_id,
            job_type="train",
            resolved={**job.resolved, "world_size": world_size(), "dataset_id": self.dataset.dataset_id},
            active=rank() == 0,
        )
        self.step_started = time.monotonic()
        self._skipped = 0.0  # pairs, by all ranks, since the last line of the log

    def run(self) -> int:
        """Go through the stretches."""
        if self.dev and self.state.step == 0:
            self._evaluate()
        for start, stop, version in self._stretches():
            negatives = self._refresh(version, start, stop) if version else None
            if self.stop.asked_anywhere(self.engine.device):
                return self._leave()
            # Read-ahead ends with the stretch: what follows needs negatives that are not mined yet.
            for batch in self.loader.steps(start, stop, negatives):
                waited_s = time.monotonic() - self.step_started
                if self._step(batch, waited_s):
                    return self._leave()
        return self._finish()

    def _step(self, batch: StepBatch, waited_s: float) -> bool:
        """Train on one global batch; then log, evaluate and checkpoint as due. Returns whether to stop."""
        rate = learning_rate(self.job.optimizer, batch.step, self.total)
        advance = cached_step if self.job.train.gradient_cache else plain_step
        output = advance(self.engine, batch, self.job.loss, seed=self.job.seed)
        norm = self.engine.step(rate)
        asked = self._log_step(batch, output, rate, norm, waited_s)
        self.state = replace(self.state, step=batch.step + 1)
        done = self.state.step
        if self.dev and (done % self.job.dev.every_steps == 0 or done == self.total):
            self._evaluate()
        if asked or done % self.job.train.checkpoint_every_steps == 0 or done == self.total:
            self._checkpoint()
        self.step_started = time.monotonic()
        return asked

    def _log_step(self, batch: StepBatch, output: LossOutput, rate: float, norm: float, waited_s: float) -> bool:
        """Add the ranks' sums up and log them. The stop flag travels along, to save a collective a step."""
        names = list(output.sums)
        local = [*output.sums.values()]
        counts = (batch.skipped, batch.tokens, batch.padded_tokens, self.stop.asked_here())
        local += [local[0].new_tensor(float(count)) for count in counts]
        *sums, skipped, tokens, padded, asked = sum_over_ranks(torch.stack(local).double()).tolist()
        total = dict(zip(names, sums, strict=True))
        queries = total.pop("queries")
        self._skipped += skipped
        loss = total["loss"] / queries
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"the {name} of step {batch.step} is {value}; the newest checkpoint is from before it. Lower "
                    "optimizer.learning_rate, or set engine.precision to float32"
                )
        seconds = time.monotonic() - self.step_started
        if batch.step % self.job.tracker.log_every_steps == 0 or batch.step == self.total - 1:
            self.tracker.log(
                "step",
                batch.step,
                {
                    **{name: value / queries for name, value in total.items()},
                    "masked": total["masked"],
                    "skipped": self._skipped,
                    "steps": self.total,
                    "lr": rate,
                    "grad_norm": norm,
                    "epoch": self.order.epoch(batch.step + 1),
                    "pairs_per_s": queries / seconds,
                    "tokens_per_s": tokens / seconds,
                    "padding_share": 1 - tokens / padded,
                    "data_wait_share": waited_s / seconds,
                    **({"fetched_mib": self.dataset.fetched.bytes / 2**20} if self.dataset.is_remote else {}),
                    "negatives_version": self.state.negatives_version,
                    "negatives_age_steps": self._age(batch.step),
                },
            )
            self._skipped = 0.0
        return bool(asked > 0)

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first step, last step + 1, negatives version) from where the run stands."""
        edges = [0, *self.borders, self.total]
        for version, (start, stop) in enumerate(pairwise(edges)):
            if self.state.step < stop:
                yield max(start, self.state.step), stop, version

    def _refresh(self, version: int, start: int, stop: int) -> NegativesVersion | None:
        """Ask for a version where it is not there yet, wait for it, and use it from here on."""
        border = self.borders[version - 1]
        snapshot = self.job.run.snapshot(border)
        began = time.monotonic()
        if rank() == 0:
            if not snapshot.exists() and start == border:
                save_snapshot(self.encoder, snapshot, step=border)
            request = RefreshRequest(
                version=version,
                snapshot=str(snapshot.relative_to(self.job.run.root)),
                snapshot_step=border,
                from_step=border,
                to_step=stop,
            )
            request.write(self.job.run)
        barrier()  # else another rank may still see that the miner failed, in the run that this one resumes
        negatives = wait_for_version(
            self.job.run,
            version,
            dataset_id=self.dataset.dataset_id,
            timeout_s=self.job.refresh.timeout_s,
            give_up=self.stop.asked_here,
        )
        if negatives is not None:
            self.state = replace(self.state, negatives_version=version)
            if start == border:  # a run that resumes later in the stretch has logged it
                self._log_refresh(negatives, time.monotonic() - began)
        self.step_started = time.monotonic()
        return negatives

    def _log_refresh(self, negatives: NegativesVersion, waited_s: float) -> None:
        manifest = negatives.manifest
        values = {
            "version": manifest.version,
            "from_step": manifest.from_step,
            "to_step": manifest.to_step,
            "queries": len(negatives),
            "seconds": manifest.seconds,
            "filters": manifest.filters,
            **{f"{name}_score": value for name, value in manifest.scores.items()},
            "index": manifest.index,
            "waited_s": waited_s,
        }
        self.tracker.log("refresh", manifest.from_step, values)
        _log.info("step %d: negatives version %d, %d queries", manifest.from_step, manifest.version, len(negatives))

    def _evaluate(self) -> None:
        assert self.dev is not None
        began = time.monotonic()
        value = self.dev.evaluate(
            self.encoder,
            precision=resolve_precision(self.job.engine, self.engine.device),
            tokens_per_batch=2 * self.job.batch.tokens_per_chunk,
        )
        self.state = replace(self.state, best_dev=max(value, self.state.best_dev or 0.0))
        self.tracker.log("dev", self.state.step, {"ndcg@10": value, "seconds": time.monotonic() - began})
        _log.info("step %d: dev nDCG@10 %.4f", self.state.step, value)

    def _resume(self) -> TrainState:
        """Load the newest whole checkpoint, or begin at step 0."""
        fresh = TrainState(
            step=0,
            engine=self.job.engine.kind,
            world_size=world_size(),
            dataset_id=self.dataset.dataset_id,
            batch_size=self.order.batch_size,
            seed=self.job.seed,
            order=self.order.identity,
            negatives_version=0,
        )
        barrier()
        found = latest_checkpoint(self.job.run.checkpoints)
        if found is None:
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
        )
        self.engine.load(path)
        _log.info("resumed from %s", path.name)
        return replace(state, world_size=fresh.world_size)

    def _checkpoint(self) -> None:
        save_checkpoint(self.engine, self.state, self.job.run.checkpoints, keep=self.job.train.keep_checkpoints)

    def _leave(self) -> int:
        """Leave after a stop: the checkpoint is written, the resume flag says so."""
        if not (self.job.run.checkpoints / f"step-{self.state.step:07d}").exists():
            self._checkpoint()
        if rank() == 0:
            write_json(self.job.run.stopped, {"step": self.state.step, "of": self.total})
        barrier()
        return EXIT_STOPPED

    def _finish(self) -> int:
        """Write the last snapshot and the mark of a whole run."""
        if rank() == 0:
            if not self.job.run.final.exists():
                save_snapshot(self.encoder, self.job.run.final, step=self.total)
            write_json(self.job.run.done, {"steps": self.total, "world_size": world_size()})
        barrier()
        return 0

    def _age(self, step: int) -> int:
        version = self.state.negatives_version
        return step - self.borders[version - 1] if version else 0
