"""Fetching in the background what will be read next; the newest request replaces what is not begun of the last."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable

from data_shards.remote.transfer import Wanted


class Prefetcher:
    """A few threads and a list; the threads start with the first request and end with the process."""

    def __init__(self, fetch: Callable[[Wanted], None], threads: int) -> None:
        """Name the work.

        Args:
            fetch: called in a thread, once a file; raises nothing.
            threads: at most so many at once; 0 fetches nothing ahead.
        """
        self._fetch = fetch
        self._threads = threads
        self._start_over()

    def ask(self, wanted: Iterable[Wanted]) -> None:
        """Fetch these next, in this order, and no others but those already begun."""
        if self._pid != os.getpid():
            self._start_over()
        with self._changed:
            self._waiting.clear()
            self._waiting.extend(wanted)
            while len(self._started) < min(self._threads, len(self._waiting)):
                # Daemons: a fetch that hangs must not hold up the end of the process.
                thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
                self._started.append(thread)
                thread.start()
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Drop what is not begun, and wait a little for what is."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._started:
            thread.join(timeout_s)

    def _start_over(self) -> None:
        """Begin without threads: a forked child has none of its parent's, and its locks may be held for ever."""
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[Wanted] = deque()
        self._started: list[threading.Thread] = []
        self._closed = False

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                wanted = self._waiting.popleft()
            self._fetch(wanted)
