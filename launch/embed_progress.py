"""How an embedding goes on: passages a second, the share of padding, the time left. A bar, or now and then a line."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from index_build.corpus_job import Work

_log = logging.getLogger(__name__)

_LABEL = "embedding"
_LINE_EVERY_S = 30.0


class Pace:
    """Passages a second since the first call: what was done before does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the clock."""
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self.done = self.total = 0

    def step(self, done: int, total: int) -> None:
        """Hear how many passages are done."""
        self._first = self._first or (self._clock(), done)
        self.done, self.total = done, total

    @property
    def seconds(self) -> float:
        """Since the first call."""
        return self._clock() - self._first[0] if self._first else 0.0

    @property
    def per_s(self) -> float:
        """Passages a second."""
        return (self.done - self._first[1]) / self.seconds if self._first and self.seconds > 0 else 0.0

    def line(self, padding_share: float) -> str:
        """Say it in words."""
        words = f"{self.done:,} of {self.total:,} passages, {self.per_s:,.0f}/s, {padding_share:.1%} padding"
        if self.done < self.total and self.per_s > 0:
            words += f", {_in_words((self.total - self.done) / self.per_s)} left"
        return words


@contextmanager
def embed_progress(work: Callable[[], Work]) -> Iterator[tuple[Callable[[int, int], None], Pace]]:
    """Yield a callback `(done, total)` and the pace that it sets.

    Args:
        work: returns what is computed so far.
    """
    pace = Pace()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        rate = TextColumn("{task.fields[rate]}")
        with Progress(*columns, TimeRemainingColumn(), rate, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(_LABEL, total=None, rate="")

            def show(done: int, total: int) -> None:
                pace.step(done, total)
                told = f"{pace.per_s:,.0f}/s · {work().padding_share:.1%} padding"
                bars.update(task, completed=done, total=total, rate=told)

            yield show, pace
        return
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        pace.step(done, total)
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            _log.info("%s: %s", _LABEL, pace.line(work().padding_share))

    yield tell, pace
    _log.info("%s: %s", _LABEL, pace.line(work().padding_share))


def _in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
