"""Follows log files that other machines write, until there will be no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_POLL_S = 1.0
_ASK_EVERY_S = 5.0  # a cluster has other things to do
_BLOCK_CHARS = 1 << 20


def follow(logs: Callable[[], Sequence[Path]], is_over: Callable[[], bool], *, wait: bool) -> Iterator[str]:
    """Yield text as it is written, the files one after another.

    Args:
        logs: the files by now, oldest first; more may come.
        is_over: whether nothing more will be written.
        wait: whether to go on until then; else what is there is all.
    """
    read: dict[Path, int] = {}
    over, asked = not wait, 0.0
    while True:
        if wait and time.monotonic() - asked >= _ASK_EVERY_S:
            over, asked = is_over(), time.monotonic()  # before reading, so that the last lines are read after the end
        for path in logs():
            yield from _new_text(path, read)
        if over:
            return
        time.sleep(_POLL_S)


def _new_text(path: Path, read: dict[Path, int]) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        file.seek(read.get(path, 0))
        while text := file.read(_BLOCK_CHARS):
            read[path] = file.tell()
            yield text
