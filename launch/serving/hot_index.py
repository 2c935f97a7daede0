"""The index that is served: the current version, and the next one as soon as it is there and whole."""

from __future__ import annotations

import logging
import threading

from data_shards.errors import UserError
from index_build.search import Searcher
from launch.serving.measures import Measures

_log = logging.getLogger(__name__)


class HotIndex:
    """Holds a searcher and exchanges it in the background; whoever holds the old one goes on with it."""

    def __init__(self, searcher: Searcher, measures: Measures, *, look_every_s: float) -> None:
        """Begin with a searcher.

        Args:
            searcher: of the version that is current.
            measures: where exchanges are counted.
            look_every_s: seconds between two looks for a new version.
        """
        self._searcher = searcher
        self._measures = measures
        self._look_every_s = look_every_s
        self._refused = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hot-index", daemon=True)
        measures.version.set(searcher.version)

    @property
    def searcher(self) -> Searcher:
        """The searcher of this moment."""
        return self._searcher

    @property
    def refused(self) -> str:
        """Why the version that is current on disk is not served; empty where it is."""
        return self._refused

    def start(self) -> None:
        """Look for new versions from now on."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()

    def look(self) -> None:
        """Exchange the searcher if another version is current; one that is refused leaves the old one in place."""
        try:
            newer = self._searcher.newer()
        except UserError as error:
            if str(error) != self._refused:  # once, and not at every look
                _log.warning("version %d is served on: %s", self._searcher.version, error)
                self._measures.refused.inc()
            self._refused = str(error)
            return
        self._refused = ""
        if newer is not None:
            _log.info("version %d is served from now on, after version %d", newer.version, self._searcher.version)
            self._searcher = newer
            self._measures.version.set(newer.version)
            self._measures.swaps.inc()

    def _watch(self) -> None:
        while not self._closing.wait(self._look_every_s):
            try:
                self.look()
            except Exception:  # such as a disk that is gone for a moment: the next look may go well
                _log.exception("looking for a new version failed")
