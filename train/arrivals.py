"""How ranks agree on a version that arrives while they train, without a collective of their own.

Three numbers travel in the sum that every step makes anyway. The first rank names a version that it sees published;
every rank opens it beside the step, and says when it has read it whole. When all have, all take it at the same step.
When one finds it damaged, none takes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from data_shards.negatives import NegativesVersion, published_versions
from train.negatives_plan import set_aside
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_SEEN_WITHIN_S = 120.0
"""How long a folder that one machine sees may take to appear on another."""

WORDS = 3
"""How many numbers a rank says in a step."""


class Arrivals:
    """One rank's side of the agreement."""

    def __init__(self, run: RunFolder, dataset_id: str, *, lead: bool, world: int) -> None:
        """Listen for versions of a run.

        Args:
            run: where they are published.
            dataset_id: whose rows they must name.
            lead: whether this is the first rank.
            world: ranks.
        """
        self._run, self._dataset_id, self._lead, self._world = run, dataset_id, lead, world
        self._next_look = 0.0
        self._candidate = 0
        self._opening: Future[NegativesVersion] | None = None
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, "negatives")

    def say(self, newest: int, asked: int) -> tuple[float, float, float]:
        """Return what this rank says in a step's sum.

        Args:
            newest: the newest version that was taken.
            asked: the newest that was asked for; one beyond it is of a life that came further than this one.
        """
        if self._opening is not None and self._opening.done():
            failed = self._opening.exception() is not None
            return 0, not failed, failed
        return self._look(newest, asked), 0, 0

    def hear(self, said: Sequence[float]) -> NegativesVersion | None:
        """Take what all ranks have said; return a version once every rank has it."""
        proposed, ready, failed = said
        if failed and self._opening is not None:
            self._reject(self._opening)
        elif ready == self._world and self._opening is not None:
            version = self._opening.result()
            self._candidate, self._opening = 0, None
            return version
        elif proposed and not self._candidate:
            self._candidate = int(proposed)
            self._opening = self._thread.submit(self._read, self._candidate)
        return None

    def close(self) -> None:
        """Give up what is being opened."""
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _look(self, newest: int, asked: int) -> int:
        if not self._lead or self._candidate or time.monotonic() < self._next_look:
            return 0
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        return max((v for v in published_versions(self._run.negatives) if newest < v <= asked), default=0)

    def _read(self, version: int) -> NegativesVersion:
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while version not in published_versions(self._run.negatives) and time.monotonic() < deadline:
            if self._closing.wait(0.1):
                break
        return NegativesVersion.open(self._run.negatives, version, self._dataset_id)

    def _reject(self, opening: Future[NegativesVersion]) -> None:
        error = opening.exception() if opening.done() else None
        why = error or "another rank cannot read it"
        if self._lead:
            set_aside(self._run, self._candidate, why)
        else:
            _log.warning("negatives version %d is not taken: %s", self._candidate, why)
        self._candidate, self._opening = 0, None
