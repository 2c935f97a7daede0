"""Where everything of one training run is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run folder; nothing is created by asking for one."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config; it can be run again as it is."""
        return self.root / "config.toml"

    @property
    def identity(self) -> Path:
        """Dataset ids, the W&B run's id, versions: written once, when the run begins."""
        return self.root / "run.json"

    @property
    def initial(self) -> Path:
        """The encoder that the run starts from, as a snapshot."""
        return self.root / "snapshots" / "initial"

    @property
    def adapted(self) -> Path:
        """The same after the `adapt` stage, which it is the end of; training then starts from it."""
        return self.root / "snapshots" / "adapted"

    @property
    def adapt_head(self) -> Path:
        """What the `adapt` stage begins with beside the encoder: the head that guesses tokens."""
        return self.root / "adapt" / "head.safetensors"

    @property
    def adapt_checkpoints(self) -> Path:
        """Checkpoints of the `adapt` stage, until it is done."""
        return self.root / "adapt" / "checkpoints"

    @property
    def final(self) -> Path:
        """The snapshot after the last step."""
        return self.root / "snapshots" / "final"

    def snapshot(self, step: int) -> Path:
        """The snapshot before a step."""
        return self.root / "snapshots" / f"step-{step:07d}"

    def best(self, step: int) -> Path:
        """The snapshot with the best dev metric, which a step has reached."""
        return self.root / "snapshots" / f"best-{step:07d}"

    @property
    def best_pointer(self) -> Path:
        """Which snapshot is the best, and its dev metrics."""
        return self.root / "best.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    def quarantine(self, process: str) -> Path:
        """Damaged samples that a process skipped, one JSON object a line."""
        return self.root / "quarantine" / f"{process}.jsonl"

    @property
    def negatives(self) -> Path:
        """Versions of mined negatives."""
        return self.root / "negatives"

    @property
    def requests(self) -> Path:
        """What the trainer asks the miner for."""
        return self.root / "requests"

    @property
    def mining(self) -> Path:
        """There while the ranks have left their devices to the miner: the version they wait for."""
        return self.root / "mining.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, dev evaluations, refreshes."""
        return self.root / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """Logs of ranks and miner."""
        return self.root / "logs"

    @property
    def failure(self) -> Path:
        """The first cause, when a run fails."""
        return self.root / "failure.json"

    @property
    def stopped(self) -> Path:
        """The resume flag: there when a run was asked to stop, and did so with a checkpoint."""
        return self.root / "stopped.json"

    @property
    def lock(self) -> Path:
        """Held, shared, by every process of a run that is going on."""
        return self.root / "lock"

    @property
    def done(self) -> Path:
        """There when the run reached its last step."""
        return self.root / "done.json"
