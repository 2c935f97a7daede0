"""The `adapt` stage of one rank: hidden tokens of corpus passages are guessed, until the steps are done.

What it leaves is the snapshot `adapted`, from which contrastive training begins. In metrics its steps are counted up
to 0, where contrastive training begins: all events of a run then stand on one axis.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from dataclasses import replace

import torch

from data_shards.atomic import read_json
from data_shards.quarantine import Quarantine
from data_shards.reader import CorpusDataset
from encoder.masked_lm import MaskedLM, load_head
from encoder.snapshot import load_encoder, save_snapshot
from train.adapt_batches import MaskedBatch, MaskedLoader
from train.collectives import barrier, rank, sum_over_ranks, world_size
from train.engine import resolve_precision, start_engine
from train.health import Health, check_step
from train.job import TrainJob
from train.keeper import Keeper
from train.masked_step import MaskedOutput, masked_step
from train.mfu import peak_memory_gib
from train.schedule import learning_rate
from train.stops import EXIT_STOPPED, StopFlag
from train.tracker import Tracker, truncate_metrics
from train.watchdog import Watchdog
from train.watched import first_state, leave, run_watched

_log = logging.getLogger(__name__)


def adapt(job: TrainJob) -> int:
    """Train the backbone on the corpus until the last step, or until asked to stop.

    Returns:
        The exit code: 0 with the snapshot `adapted`, or `EXIT_STOPPED` after a stop with a checkpoint.

    Raises:
        UserError: the config does not fit the checkpoint or this machine; a checkpoint was not written.
        TrainingDivergedError: the loss or its gradient became NaN or infinite, or far higher than at the start.
    """
    return run_watched(job, _Adapting)


class _Adapting:
    """State of the stage on one rank."""

    def __init__(self, job: TrainJob, watchdog: Watchdog) -> None:
        self.job, self.watchdog = job, watchdog
        self.stop = StopFlag(job.stop)
        self.encoder = load_encoder(job.run.initial)
        # What is not trained is kept aside: an engine may round it, or cut it up.
        state = self.encoder.state_dict()
        self.kept = {name: value.clone() for name, value in state.items() if not name.startswith("backbone.")}
        model = MaskedLM(self.encoder, load_head(self.encoder, job.run.adapt_head)).train()
        self.optimizer = job.adapt.optimizer(job.optimizer)
        self.engine = start_engine(model, job.engine, self.optimizer)
        self.device = self.engine.device
        self.precision = resolve_precision(job.engine, self.device)
        self.dataset = self._open_corpus()
        self.order = self.dataset.order(batch_size=job.adapt.batch_size, seed=job.seed, config=job.order)
        self.total = job.adapt.total_steps(self.order)
        self.loader = MaskedLoader(
            dataset=self.dataset,
            order=self.order,
            encoder=self.encoder,
            config=job.adapt,
            batch=job.batch.on(self.device, self.precision),
            rank=rank(),
            world=world_size(),
        )
        self.keeper = Keeper(job, self.engine, self.encoder, None, root=job.run.adapt_checkpoints)
        self.state = self.keeper.resume(first_state(job, self.dataset.dataset_id, self.order, self.precision))
        first = self.state.step - self.total
        if rank() == 0:
            truncate_metrics(job.run.metrics, first)
        self.tracker = Tracker(
            job.run.metrics,
            job.tracker,
            run_id=job.run_id,
            job_type="adapt",
            resolved={**job.resolved, "world_size": world_size(), "corpus_id": self.dataset.dataset_id},
            active=rank() == 0,
            resume_step=first,
        )
        self.stopped_by = ""
        self.step_started = time.monotonic()
        self._skipped = 0.0  # passages, by all ranks, since the last line of the log

    def _open_corpus(self) -> CorpusDataset:
        place = self.job.run.quarantine(f"rank-{rank():05d}-corpus")
        quarantine = Quarantine(place) if self.job.data.on_error == "quarantine" else None
        return CorpusDataset(self.job.corpus, cache=self.job.data.cache, quarantine=quarantine)

    def run(self) -> int:
        """Take the steps."""
        if self.stop.asked_anywhere(self.device):
            return self._leave()
        for batch in self.loader.steps(self.state.step, self.total):
            if self._step(batch, time.monotonic() - self.step_started):
                return self._leave()
        return self._finish()

    def close(self, exit_code: int, why: str) -> None:
        """Let what runs beside the steps come to its end."""
        self.keeper.close()
        self.tracker.close(exit_code, why or self.stopped_by)

    def _step(self, batch: MaskedBatch, waited_s: float) -> bool:
        """Train on one global batch; then log and checkpoint as due. Returns whether to stop."""
        self.watchdog.phase("adapt", batch.step)
        rate = learning_rate(self.optimizer, batch.step, self.total)
        output = masked_step(self.engine, batch, seed=self.job.seed)
        norm = self.engine.step(rate)
        loss, hits, asked = self._add_up(output)
        self._log_step(batch.step, output, waited_s, {"loss": loss, "accuracy": hits, "lr": rate, "grad_norm": norm})
        self._check(batch.step, loss, norm)
        self.state = replace(self.state, step=batch.step + 1)
        self.keeper.poll()
        over = self.state.step == self.total
        if not over and (asked or self.state.step % self.job.train.checkpoint_every_steps == 0):
            self._checkpoint()
        self.step_started = time.monotonic()
        self.watchdog.phase("read", self.state.step)
        return asked and not over

    def _add_up(self, output: MaskedOutput) -> tuple[float, float, bool]:
        """Return loss and accuracy over all ranks, and whether any was asked to stop: it saves a collective."""
        asked = output.sums.new_tensor([self.stop.asked_here()])
        loss, hits, stops = sum_over_ranks(torch.cat([output.sums, asked])).tolist()
        count = max(1.0, output.masked)
        return loss / count, hits / count, stops > 0

    def _check(self, step: int, loss: float, norm: float) -> None:
        """End the run where going on makes no sense."""
        checkpoints = sorted(path.name for path in self.job.run.adapt_checkpoints.glob("step-*"))
        health = check_step(
            Health(loss_ceiling=self.state.loss_ceiling, skips=self.state.skips),
            self.job.health,
            step=step,
            settled_steps=step,
            loss=loss,
            grad_norm=norm,
            skipped=self.precision == "float16" and not math.isfinite(norm) and math.isfinite(loss),
            checkpoint=checkpoints[-1] if checkpoints else "",
            section="adapt",
        )
        self.state = replace(self.state, loss_ceiling=health.loss_ceiling, skips=health.skips)

    def _log_step(self, step: int, output: MaskedOutput, waited_s: float, values: dict[str, float]) -> None:
        self._skipped += output.skipped
        seconds = time.monotonic() - self.step_started
        if step % self.job.tracker.log_every_steps and step < self.total - 1:
            return
        self.tracker.log(
            "adapt",
            step - self.total,
            {
                **values,
                "masked": output.masked,
                "skipped": self._skipped,
                "done": step + 1,
                "steps": self.total,
                "epoch": self.order.epoch(step + 1),
                "tokens_per_s": output.tokens / seconds,
                "padding_share": 1 - output.tokens / output.padded_tokens,
                "data_wait_share": waited_s / seconds,
                "peak_memory_gib": peak_memory_gib(),
            },
        )
        self._skipped = 0.0

    def _checkpoint(self) -> None:
        self.watchdog.phase("checkpoint", self.state.step)
        self.keeper.checkpoint(self.state)

    def _leave(self) -> int:
        """Leave after a stop: the checkpoint is written, the resume flag says so."""
        self._checkpoint()
        where = {"stage": "adapt", "step": self.state.step, "of": self.total}
        self.stopped_by = leave(self.job, self.keeper, self.stop, self.device, **where)
        return EXIT_STOPPED

    def _finish(self) -> int:
        """Write the adapted encoder, the mark of a whole stage; its checkpoints are of no use any more."""
        self.watchdog.phase("finish", self.state.step)
        self.keeper.wait()
        weights = self.engine.weights()
        run = self.job.run
        if rank() == 0:
            own = {name.removeprefix("encoder."): value for name, value in weights.items()}
            digest = save_snapshot(self.encoder, run.adapted, weights={**own, **self.kept})
            uses = {"snapshot": read_json(run.initial / "dipole.json")["hash"], "corpus": self.dataset.dataset_id}
            self.tracker.artifact("snapshot", run.adapted, identity=digest, step=0, uses=uses)
            shutil.rmtree(run.adapt_checkpoints, ignore_errors=True)
        barrier()
        _log.info("adapted in %d steps", self.total)
        return 0
