"""The training loop of one rank.

For each global batch, with the negatives that are in use at its step: encode, gather, score, differentiate, step.
Around it: refresh, log, evaluate, checkpoint, stop when asked.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from data_shards.atomic import write_json
from data_shards.collate import Chunk
from encoder.lora import add_lora
from encoder.model import Side
from encoder.snapshot import load_encoder
from train.batches import BatchLoader, StepBatch
from train.collectives import barrier, rank, world_size
from train.dev import Best, DevSet
from train.engine import resolve_precision, start_engine
from train.exit_codes import EXIT_MINING
from train.grad_cache import Encode, train_step
from train.health import Health, check_step
from train.job import TrainJob
from train.keeper import Keeper
from train.memory import graphs_fit
from train.mfu import Utilisation, peak_memory_gib
from train.objective import Objective
from train.refresh_log import log_refresh
from train.refresher import Refresher
from train.schedule import learning_rate
from train.step_log import StepSums, add_up
from train.stops import EXIT_STOPPED, StopFlag
from train.tracker import Tracker, truncate_metrics
from train.watchdog import Watchdog
from train.watched import first_state, launched, leave, run_watched

_log = logging.getLogger(__name__)


def train(job: TrainJob) -> int:
    """Run until the last step, until the dev metric no longer rises, or until asked to stop.

    Returns:
        The exit code: 0, or `EXIT_STOPPED` after a stop with a checkpoint.

    Raises:
        UserError: the config does not fit the data, the checkpoint or this machine; a checkpoint was not written.
        TrainingDivergedError: the loss or its gradient became NaN or infinite, or far higher than at the start.
    """
    return run_watched(job, _Loop)


class _Loop:
    """State of the loop on one rank."""

    def __init__(self, job: TrainJob, watchdog: Watchdog) -> None:
        self.job, self.watchdog = job, watchdog
        self.stop = StopFlag(job.stop)
        self.dataset = job.data.open(job.run.quarantine(f"rank-{launched('RANK', 0):05d}"))
        self.order = self.dataset.order(batch_size=job.batch.batch_size, seed=job.seed, config=job.order)
        self.total = job.train.total_steps(self.order)
        self.encoder = load_encoder(job.start).train()
        if job.lora.rank:
            add_lora(self.encoder, job.lora, seed=job.seed)
        self.engine = start_engine(self.encoder, job.engine, job.optimizer)
        self.device = self.engine.device
        self.precision = resolve_precision(job.engine, self.device)
        self.utilisation = Utilisation(self.encoder, self.device, self.precision, world_size())
        self.objective = Objective(job.loss, device=self.device)
        self.base = self._base_model() if job.loss.base_weight else None
        self.loader = BatchLoader(
            dataset=self.dataset,
            order=self.order,
            encoder=self.encoder,
            config=job.batch.on(self.device, self.precision),
            rank=rank(),
            world=world_size(),
        )
        self.refresher = Refresher(
            job, order=self.order, total=self.total, dataset_id=self.dataset.dataset_id, device=self.device
        )
        self.dev = DevSet(job.dev) if job.dev.data else None
        self.keeper = Keeper(job, self.engine, self.encoder, self.objective)
        self.state = self.keeper.resume(first_state(job, self.dataset.dataset_id, self.order, self.precision))
        if rank() == 0:
            truncate_metrics(job.run.metrics, self.state.step)
        self.tracker = Tracker(
            job.run.metrics,
            job.tracker,
            run_id=job.run_id,
            job_type="train",
            resolved={**job.resolved, "world_size": world_size(), "dataset_id": self.dataset.dataset_id},
            active=rank() == 0,
            resume_step=self.state.step,
        )
        # None: to be measured.
        self.keep_graphs = {"on": False, "off": True}.get(job.train.gradient_cache, self.state.keep_graphs)
        self.step_started = time.monotonic()
        self.stopped_by = ""
        self._waited_s = 0.0  # for the newest negatives
        self._refreshed_at = time.monotonic()
        self._skipped = 0.0  # pairs, by all ranks, since the last line of the log

    def run(self) -> int:
        """Go from refresh to refresh."""
        if self.dev and self.state.step == 0:
            self._evaluate()
        while self.state.step < self.total:
            if (code := self._refresh()) is not None:
                return code
            negatives_at = self.refresher.plan.at
            for batches in self.loader.steps(self.state.step, self.refresher.read_to(self.state), negatives_at):
                waited_s = time.monotonic() - self.step_started
                if self._step(batches, waited_s):
                    return self._leave()
                if self._best.says_stop(self.job.dev):
                    _log.info("step %d: no gain in %d evaluations", self.state.step, self.job.dev.stop_after_evals)
                    return self._finish()
                if self.refresher.due(self.state):
                    break
        return self._finish()

    def close(self, exit_code: int, why: str) -> None:
        """Let what runs beside the loop come to its end."""
        self.refresher.close()
        self.keeper.close()
        self.tracker.close(exit_code, why or self.stopped_by)

    def _step(self, batches: list[StepBatch], waited_s: float) -> bool:
        """Train on one global batch; then log, evaluate and checkpoint as due. Returns whether to stop."""
        step = batches[0].step
        if self.refresher.begins(step):
            self._log_refresh(step)
        self.watchdog.phase("measure memory", step)
        if self.keep_graphs is None:
            self.keep_graphs = graphs_fit(self.engine, batches, budget_gib=self.job.train.activations_gib)
            self.state = replace(self.state, keep_graphs=self.keep_graphs)
        rate = learning_rate(self.job.optimizer, step, self.total)
        outputs = train_step(
            self.engine,
            batches,
            self.objective,
            seed=self.job.seed,
            keep_graphs=self.keep_graphs,
            two_towers=self.encoder.settings.towers == "two",
            base=self.base,
            details=step % self.job.tracker.details_every_steps == 0,
            phase=lambda name: self.watchdog.phase(name, step),
        )
        self.watchdog.phase("optimizer", step)
        norm = self.engine.step(rate)
        self.objective.step(rate)
        sums = add_up(outputs, batches, asked=self.stop.asked_here(), say=self.refresher.say(self.state))
        self._log_step(step, sums, rate, norm, waited_s)
        self._check(step, sums, norm)
        self.refresher.hear(step, sums.said)
        self.state = replace(self.refresher.counted(self.state, sums.hard_loss), step=step + 1)
        self.refresher.check_age(self.state)
        self.keeper.poll()
        done = self.state.step
        gained = False
        if self.dev and (done % self.job.dev.every_steps == 0 or done == self.total):
            gained = self._evaluate()
        last = sums.asked or done == self.total or self._best.says_stop(self.job.dev)
        if gained or last or done % self.job.train.checkpoint_every_steps == 0:
            self._checkpoint()
        self.step_started = time.monotonic()
        self.watchdog.phase("read", done)
        return sums.asked

    def _check(self, step: int, sums: StepSums, norm: float) -> None:
        """End the run where going on makes no sense."""
        use = self.refresher.plan.begun(step)
        checkpoints = sorted(path.name for path in self.job.run.checkpoints.glob("step-*"))
        health = check_step(
            Health(loss_ceiling=self.state.loss_ceiling, skips=self.state.skips),
            self.job.health,
            step=step,
            settled_steps=step - (use.from_step if use else 0),
            loss=sums.loss,
            grad_norm=norm,
            skipped=self.precision == "float16" and not math.isfinite(norm) and math.isfinite(sums.loss),
            checkpoint=checkpoints[-1] if checkpoints else "",
        )
        self.state = replace(self.state, loss_ceiling=health.loss_ceiling, skips=health.skips)

    def _log_step(self, step: int, sums: StepSums, rate: float, norm: float, waited_s: float) -> None:
        self._skipped += sums.skipped
        seconds = time.monotonic() - self.step_started
        if step % self.job.tracker.log_every_steps and step < self.total - 1:
            return
        self.tracker.log(
            "step",
            step,
            {
                **sums.values(),
                "skipped": self._skipped,
                "steps": self.total,
                "lr": rate,
                "grad_norm": norm,
                "epoch": self.order.epoch(step + 1),
                "pairs_per_s": sums.queries / seconds,
                "tokens_per_s": sums.tokens / seconds,
                "padding_share": 1 - sums.tokens / sums.padded_tokens,
                "data_wait_share": waited_s / seconds,
                "peak_memory_gib": peak_memory_gib(),
                **self.utilisation.of_step(tokens=sums.tokens, squares=sums.squares, seconds=seconds),
                **({"fetched_mib": self.dataset.fetched.bytes / 2**20} if self.dataset.is_remote else {}),
                **self._negatives(step),
            },
        )
        self._skipped = 0.0

    def _refresh(self) -> int | None:
        """Ask for negatives where they are due; return the exit code where the ranks are to leave."""
        if self.refresher.due(self.state):
            step, began = self.state.step, time.monotonic()
            self.watchdog.phase("snapshot", step)
            if step:  # before step 0 there is nothing but the first encoder
                self._snapshot(self.job.run.snapshot(step), step)
            request = self.refresher.ask(self.state)
            self.watchdog.phase("refresh", step, allow_s=self.refresher.allow_s)
            if self.refresher.leaves_for(request):
                self._checkpoint()
                self.keeper.wait()
                self.refresher.leave(request)
                return EXIT_MINING
            if not self.refresher.waits or self.refresher.wait(request, give_up=self.stop.asked_here):
                self.state = replace(self.state, refreshes=request.version, refresh_step=step, flatness=[])
            self._waited_s = time.monotonic() - began
            self.watchdog.phase("read", step)
        self.step_started = time.monotonic()
        return self._leave() if self.stop.asked_anywhere(self.device) else None

    def _log_refresh(self, step: int) -> None:
        """Show the negatives that come into use, and let go of those that are of no use any more."""
        version = self.refresher.plan.newest_at(step)
        assert version is not None
        age = step - version.manifest.snapshot_step
        now = time.monotonic()
        share = self._waited_s / (now - self._refreshed_at)
        self._refreshed_at = now
        log_refresh(self.tracker, version, step=step, waited_s=self._waited_s, waited_share=share, age_steps=age)
        _log.info("step %d: negatives version %d, %d queries", step, version.manifest.version, len(version))
        self.refresher.prune(self.keeper.oldest_step)

    def _negatives(self, step: int) -> dict[str, int]:
        """Say which negatives a step has, and how many steps old the encoder is that found them."""
        version = self.refresher.plan.at(step)
        if version is None:
            return {"negatives_version": 0, "negatives_age_steps": 0}
        manifest = version.manifest
        return {"negatives_version": manifest.version, "negatives_age_steps": step - manifest.snapshot_step}

    @property
    def _best(self) -> Best:
        state = self.state
        return Best(value=state.best_dev, step=state.best_step, evals_without_gain=state.evals_without_gain)

    def _evaluate(self) -> bool:
        """Measure on the dev set; keep a snapshot of the best. Returns whether this is it."""
        assert self.dev is not None
        step = self.state.step
        self.watchdog.phase("dev", step)
        began = time.monotonic()
        with self.engine.evaluation():
            values = self.dev.evaluate(
                self._encode,
                self.encoder,
                device=self.device,
                tokens_per_chunk=2 * self.job.batch.tokens_per_chunk,
            )
        deciding = next(iter(values.values()))
        best = self._best.after(deciding, step, min_gain=self.job.dev.min_gain)
        self.state = replace(
            self.state, best_dev=best.value, best_step=best.step, evals_without_gain=best.evals_without_gain
        )
        self.tracker.log("dev", step, {**values, "seconds": time.monotonic() - began})
        _log.info("step %d: dev %s", step, ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        if best.step != step or step == 0:
            return False
        self._snapshot(self.job.run.best(step), step)
        self.keeper.best(step, values)
        return True

    def _encode(self, chunk: Chunk, side: Side) -> torch.Tensor:
        self.watchdog.phase("dev", self.state.step)  # a large dev set is no hang
        vector_BD: torch.Tensor = self.engine.forward(chunk.input_ids, chunk.attention_mask, side)
        return vector_BD

    def _base_model(self) -> Encode:
        """Load the model that training must not go far from, whole on every rank.

        It is the run's first one, also where the backbone was adapted since: what is worth keeping are the vectors of
        the model that was named, and guessing words has moved them to where nobody wanted them.
        """
        base = load_encoder(self.job.run.initial).to(self.device).eval().requires_grad_(False)

        def encode(chunk: Chunk, side: Side) -> torch.Tensor:
            vector_BD: torch.Tensor = base(chunk.input_ids, chunk.attention_mask, side)
            return vector_BD

        return encode

    def _checkpoint(self) -> None:
        self.watchdog.phase("checkpoint", self.state.step)
        self.keeper.checkpoint(self.state)

    def _snapshot(self, path: Path, step: int) -> None:
        """Write a snapshot, and what it was made from."""
        digest = self.keeper.snapshot(path, step)
        uses = {"pairs": self.dataset.dataset_id, "run": self.job.run_id}
        if use := self.refresher.plan.begun(step - 1):
            uses["negatives"] = f"v{use.version:06d}"
        self.tracker.artifact("snapshot", path, identity=digest, step=step, uses=uses)

    def _leave(self) -> int:
        """Leave after a stop: the checkpoint is written, the resume flag says so."""
        self._checkpoint()
        where = {"step": self.state.step, "of": self.total}
        self.stopped_by = leave(self.job, self.keeper, self.stop, self.device, **where)
        return EXIT_STOPPED

    def _finish(self) -> int:
        """Write the last snapshot and the mark of a whole run."""
        self.watchdog.phase("finish", self.state.step)
        self._snapshot(self.job.run.final, self.state.step)
        self.keeper.wait()
        if rank() == 0:
            write_json(self.job.run.done, {"steps": self.state.step, "world_size": world_size()})
        barrier()
        return 0
