"""What passes between trainer and miner: a request, a version that is published, or word of a failure.

They are different processes that share the run folder, and either may die and begin again. At a refresh the trainer
writes a snapshot and a request; the miner (`launch.miner`) publishes the negatives version that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_shards.atomic import read_json, write_json
from data_shards.negatives import NegativesVersion, published_versions
from train.run_folder import RunFolder

_POLL_S = 0.1


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
    sources: tuple[Literal["bm25"], ...] = ()
    """Where negatives come from, in place of `mining.sources`: the warm-up has no encoder to ask."""

    def write(self, run: RunFolder) -> None:
        """Leave the request for the miner; asking twice is asking once."""
        path = request_path(run, self.version)
        for word in (failed_path(run, self.version), given_up_path(run, self.version)):
            word.unlink(missing_ok=True)
        if not path.exists():
            write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> RefreshRequest:
        """Read a request."""
        row = read_json(path)
        return cls(**{**row, "sources": tuple(row["sources"])})


def request_path(run: RunFolder, version: int) -> Path:
    """Where a version is asked for."""
    return run.requests / f"v{version:06d}.json"


def request_paths(run: RunFolder) -> dict[int, Path]:
    """Return all requests by version."""
    return {int(path.stem[1:]): path for path in run.requests.glob("v*.json") if path.name.count(".") == 1}


def failed_path(run: RunFolder, version: int) -> Path:
    """Where the miner says why it could not make a version."""
    return run.requests / f"v{version:06d}.failed.json"


def given_up_path(run: RunFolder, version: int) -> Path:
    """Where a rank says that it waits no longer, since the run is to stop: only one may have been told."""
    return run.requests / f"v{version:06d}.given-up.json"


def wait_for_version(
    run: RunFolder, version: int, *, dataset_id: str, timeout_s: float, give_up: Callable[[], bool]
) -> NegativesVersion | None:
    """Wait until a version is published; every rank waits for itself, with no collective to time out.

    Args:
        run: the run folder.
        version: which one.
        dataset_id: of the training pairs; a version for others is refused.
        timeout_s: after this the run ends.
        give_up: asked again and again; true on one rank ends the waiting on all, because the run is to stop.

    Returns:
        The verified version, or None after giving up.

    Raises:
        RefreshFailedError: the miner failed, or took too long.
    """
    deadline = time.monotonic() + timeout_s
    while version not in published_versions(run.negatives):
        if give_up():
            write_json(given_up_path(run, version), {})
        if given_up_path(run, version).exists():
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
