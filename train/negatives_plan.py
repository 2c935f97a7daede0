"""Which negatives version each step uses: decided once, written down before it is used, and replayed by every resume.

    RUN/negatives/uses.json     [{"from_step": 160, "version": 3}, …]
    RUN/negatives/lived.json    {"steps": 184}: so many steps were done beside the miner, with what is written there

In `phased` the decisions follow from the cadence alone. In `async` they follow from when a version arrived, which no
second run would repeat: so a run that resumes takes what is written here, and decides only what comes after.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from data_shards.atomic import drop_dir, read_json, write_json
from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion, published_versions, version_dir
from train.collectives import rank
from train.refresh import RefreshRequest, request_path, request_paths
from train.run_folder import RunFolder
from train.tracker import read_metrics

_log = logging.getLogger(__name__)
_LOOKED_AT = 2
"""A version that has just arrived may have been mined for steps that are still ahead: then the one before serves."""


class Use(NamedTuple):
    """A version is in use from a step on."""

    from_step: int
    version: int


class NegativesPlan:
    """The uses of a run; the thread that reads ahead asks it too."""

    def __init__(self, run: RunFolder, dataset_id: str) -> None:
        """Read what an earlier life of the run decided."""
        self._run, self._dataset_id = run, dataset_id
        self._path = run.negatives / "uses.json"
        self.uses = [Use(**row) for row in read_json(self._path)] if self._path.exists() else []
        self._open: dict[int, NegativesVersion] = {}
        self._lock = Lock()

    @property
    def newest(self) -> int:
        """The newest version that was ever taken; 0 where none was."""
        return max((use.version for use in self.uses), default=0)

    def take(self, version: NegativesVersion, from_step: int, *, write: bool) -> None:
        """Use a version from a step on that no batch was made for yet; the first rank writes it down first."""
        use = Use(from_step, version.manifest.version)
        with self._lock:
            self._open[use.version] = version
        if use in self.uses:
            return
        uses = [*self.uses, use]
        if write:
            write_json(self._path, [row._asdict() for row in uses])
        self.uses = uses

    def at(self, step: int) -> NegativesVersion | None:
        """Return the negatives of a step, None before the first.

        It is the newest in use whose stretch holds the step, or the newest where none does.

        Raises:
            UserError: a version that was in use is gone.
        """
        begun = [use for use in self.uses if use.from_step <= step][-_LOOKED_AT:]
        found = [self._version(use) for use in reversed(begun)]
        held = (version for version in found if version.manifest.from_step <= step < version.manifest.to_step)
        return next(held, found[0] if found else None)

    def newest_at(self, step: int) -> NegativesVersion | None:
        """Return the version whose use has begun last, whether or not it was mined for the step."""
        use = self.begun(step)
        return self._version(use) if use else None

    def begun(self, step: int) -> Use | None:
        """Return the newest use at a step."""
        return next((use for use in reversed(self.uses) if use.from_step <= step), None)

    def lag(self, step: int) -> int:
        """Return how many steps passed from a snapshot to the use of what it mined, the newest time; 0 at first."""
        use, version = self.begun(step), self.newest_at(step)
        return use.from_step - version.manifest.snapshot_step if use and version else 0

    def prune(self, *, oldest_step: int, keep: int) -> None:
        """Delete what no resume will ask for: the first rank's work.

        Args:
            oldest_step: of the checkpoints that a run may resume from.
            keep: so many of the newest stay whatever happens.
        """
        needed = [use.version for use in self.uses if use.from_step <= oldest_step][-_LOOKED_AT:]
        needed += [use.version for use in self.uses if use.from_step > oldest_step]
        published = published_versions(self._run.negatives)
        going = [v for v in published[:-keep] if v not in needed and v < self.newest]
        for version in going:
            # The request goes first: without its version it would be served anew.
            _quietly(request_path(self._run, version).unlink, True)
            _quietly(drop_dir, version_dir(self._run.negatives, version))
        if self.uses:
            self._drop_old_snapshots(self.uses[-1])

    def _drop_old_snapshots(self, use: Use) -> None:
        """Delete snapshots of refreshes that are over; the one that mined the newest negatives stays."""
        step = self._version(use).manifest.snapshot_step
        for path in self._run.initial.parent.glob("step-*"):
            if path < self._run.snapshot(step):
                _quietly(drop_dir, path)

    def _version(self, use: Use) -> NegativesVersion:
        with self._lock:
            if use.version not in self._open:
                self._open[use.version] = self._reopen(use)
            for version in sorted(self._open)[: -2 * _LOOKED_AT]:
                del self._open[version]
            return self._open[use.version]

    def _reopen(self, use: Use) -> NegativesVersion:
        if use.version not in published_versions(self._run.negatives):
            raise UserError(
                f"negatives version {use.version}, in use from step {use.from_step} on, is gone from "
                f"{self._run.negatives}; copy it back, or start a new run with another run.out"
            )
        return NegativesVersion.open(self._run.negatives, use.version, self._dataset_id)


def lived_to(run: RunFolder) -> int:
    """Return how many steps earlier lives of a run have done, by what they left: lines of the log, and requests.

    To be asked before the log is cut back to the step that the run goes on with. The first rank writes it down, since
    the next life may be cut off before it has come that far.
    """
    path = run.negatives / "lived.json"
    logged = (row["step"] + 1 for row in read_metrics(run.metrics) if row["event"] == "step")
    asked = (RefreshRequest.read(place).snapshot_step for place in request_paths(run).values())
    before = read_json(path)["steps"] if path.exists() else 0
    steps = max((before, *logged, *asked))
    if steps > before and rank() == 0:
        write_json(path, {"steps": steps})
    return int(steps)


def set_aside(run: RunFolder, version: int, why: object) -> None:
    """Take a damaged version out of the way, so that it can be looked at and mined again: the first rank's work."""
    folder = version_dir(run.negatives, version)
    aside = folder.with_name(f"{folder.name}.damaged")
    _log.warning("negatives version %d is damaged and set aside as %s: %s", version, aside, why)
    shutil.rmtree(aside, ignore_errors=True)
    _quietly(os.rename, folder, aside)


def _quietly(remove: Callable[..., object], *arguments: object) -> None:
    try:
        remove(*arguments)
    except OSError as error:  # what is left over costs room and nothing else
        _log.warning("%s", error)
