"""Progress bars on stderr, and only where a person is watching."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)
_WORTH_A_LINE_S = 1.0


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback `(done, total)`: a bar on a terminal, elsewhere one line at the end of what took long."""
    if not sys.stderr.isatty():
        last = (0, 0)

        def remember(done: int, total: int) -> None:
            nonlocal last
            last = (done, total)

        began = time.monotonic()
        yield remember
        if time.monotonic() - began > _WORTH_A_LINE_S:
            _log.info("%s: %s of %s", label, *last)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
