"""Finds the text that ends the process that embeds it: by a segmentation fault, or by all memory at once.

No exception tells of such a text. But before each batch the process writes down, in a small file, which texts come
next. Who takes the work up after it knows whom to suspect, takes them by halves, and at last one by one. A text that
has ended two processes alone is given up; one that only stood beside it, or in the way of a signal, is not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import read_json
from data_shards.errors import UserError

_ALONE_AT_MOST = 2

Int64s = NDArray[np.int64]


@dataclass
class _Note:
    rows: list[int] = field(default_factory=list)
    """Of the batch that is being computed."""
    alone: dict[str, int] = field(default_factory=dict)
    """How often a text has been begun alone."""
    given_up: list[int] = field(default_factory=list)
    key: str = ""
    """Of the work: a note on other texts says nothing."""


class Suspicion:
    """The note of one unit of work. Without a file it suspects nobody and costs nothing."""

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        """Read what an earlier process left; what cannot be read says nothing.

        Args:
            path: the note; None keeps none.
            key: names the texts and the encoder.
        """
        self._path = path
        self._note = _Note(key=key)
        if path is not None and path.exists():
            with suppress(UserError, TypeError):
                found = _Note(**read_json(path))
                self._note = found if found.key == key else self._note
        self._suspects = self._note.rows
        if len(self._suspects) == 1 and self._note.alone.get(str(self._suspects[0]), 0) >= _ALONE_AT_MOST:
            self._note.given_up.append(self._suspects.pop())

    @property
    def given_up(self) -> dict[int, str]:
        """Texts that are not to be tried again, and why."""
        return dict.fromkeys(self._note.given_up, f"it ended {_ALONE_AT_MOST} worker processes, alone")

    def halves(self, rows: Int64s) -> list[Int64s]:
        """Return the suspects among some texts in two batches."""
        mine = np.intersect1d(rows, np.array(self._suspects, dtype=np.int64))
        return [half for half in np.array_split(mine, 2) if len(half)]

    def begin(self, rows: Int64s) -> None:
        """Write down which texts come next."""
        if self._path is None:
            return
        self._note.rows = rows.tolist()
        if len(rows) == 1:
            name = str(self._note.rows[0])
            self._note.alone[name] = self._note.alone.get(name, 0) + 1
        # Neither flushed nor renamed into place: it has to outlive a process, not a machine.
        self._path.write_text(json.dumps(asdict(self._note)), encoding="utf-8")

    def clear(self) -> None:
        """Remove the note: the work is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def suspects_in(path: Path) -> int:
    """Return how many texts a note suspects, whatever it is about; 0 where there is none."""
    try:
        return len(_Note(**read_json(path)).rows)
    except (UserError, TypeError):
        return 0
