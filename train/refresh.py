"""The trainer's side of a refresh: when, what it asks for, and how it waits.

Trainer and miner are different processes that share the run folder. At a refresh step the trainer writes a snapshot
and a request; the miner (`launch.miner`) publishes the negatives version that was asked for; every rank waits
for its manifest. Which version a step uses follows from the step alone, so no rank can differ from another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion, published_versions
from train.run_folder import RunFolder

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """When negatives are mined anew."""

    first_step: int = 0
    """The first refresh comes before this step; 0 turns mining off."""
    every_steps: int = 0
    """Steps from one refresh to the next; 0 leaves it at the first."""
    timeout_s: int = 3600
    """A version that takes longer than this ends the run."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.first_step, self.every_steps) < 0 or self.timeout_s < 1:
            raise UserError("refresh.first_step and every_steps must be 0 or more, timeout_s at least 1")
        if self.every_steps and not self.first_step:
            raise UserError("refresh.every_steps is set but first_step is 0, which turns mining off; set first_step")

    def borders(self, total_steps: int) -> list[int]:
        """Return the steps before which a refresh happens."""
        if not 0 < self.first_step < total_steps:
            return []
        return list(range(self.first_step, total_steps, self.every_steps or total_steps))


class RefreshFailedError(RuntimeError):
    """The miner said that it cannot make the version, or said nothing for too long."""


@dataclass(frozen=True, kw_only=True)
class RefreshRequest:
    """What the trainer wants: negatives for the steps [from_step, to_step), by one snapshot."""

    version: int
    snapshot: str
    """Relative to the run folder."""
    snapshot_step: int
    from_step: int
    to_step: int

    def write(self, run: RunFolder) -> None:
        """Leave the request for the miner; asking twice is asking once."""
        path = request_path(run, self.version)
        failed_path(run, self.version).unlink(missing_ok=True)
        if not path.exists():
            write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> RefreshRequest:
        """Read a request."""
        return cls(**read_json(path))


def request_path(run: RunFolder, version: int) -> Path:
    """Where a version is asked for."""
    return run.requests / f"v{version:06d}.json"


def failed_path(run: RunFolder, version: int) -> Path:
    """Where the miner says why it could not make a version."""
    return run.requests / f"v{version:06d}.failed.json"


def wait_for_version(
    run: RunFolder, version: int, *, dataset_id: str, timeout_s: float, give_up: Callable[[], bool]
) -> NegativesVersion | None:
    """Wait until a version is published; every rank waits for itself, with no collective to time out.

    Args:
        run: the run folder.
        version: which one.
        dataset_id: of the training pairs; a version for others is refused.
        timeout_s: after this the run ends.
        give_up: asked again and again; true ends the waiting, because the run is to stop.

    Returns:
        The verified version, or None after giving up.

    Raises:
        RefreshFailedError: the miner failed, or took too long.
    """
    deadline = time.monotonic() + timeout_s
    while version not in published_versions(run.negatives):
        if give_up():
            return None
        if (failed := failed_path(run, version)).exists():
            raise RefreshFailedError(f"negatives version {version} was not made: {read_json(failed)['cause']}")
        if time.monotonic() > deadline:
            raise RefreshFailedError(
                f"negatives version {version} was not published within refresh.timeout_s = {timeout_s:.0f}; "
                f"raise it, or see {run.logs / 'miner.log'}"
            )
        time.sleep(_POLL_S)
    return NegativesVersion.open(run.negatives, version, dataset_id)
