"""What was skipped because it is damaged: counted, and written down where a person will look."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from threading import Lock

from data_shards.errors import ShardCorruptError, UserError

_LOGGED_PLACES = 10

_log = logging.getLogger(__name__)


class Quarantine:
    """A JSONL file of damages, a line each: shard, offset, row (null for a whole shard), reason.

    A process that goes on with an earlier one's file adds only what is not in it.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; it is made with the first damage."""
        self.path = path
        self.places = 0
        """Different places that this process found damaged."""
        self._known: set[tuple[str, int | None]] = set()
        self._written: set[tuple[str, int | None]] | None = None
        self._lock = Lock()

    def add(self, error: ShardCorruptError, row: int | None = None) -> bool:
        """Write a damage down, the first time it is met; later epochs meet it again.

        Args:
            error: what is wrong, and where.
            row: of the sample in its shard; None where all of the shard is out of reach.

        Returns:
            Whether this process meets it for the first time.

        Raises:
            UserError: the file cannot be written.
        """
        place = (str(error.path), row)
        with self._lock:
            if place in self._known:
                return False
            try:
                self._write(place, error)
            except OSError as failure:
                raise UserError(
                    f"{self.path} cannot be written ({failure.strerror or failure}), so that {error} would be lost "
                    "silently; make room, or choose another place"
                ) from None
            self._known.add(place)
            self.places += 1
            if self.places <= _LOGGED_PLACES:
                more = f"; further ones are only in {self.path}" if self.places == _LOGGED_PLACES else ""
                _log.warning("skipped: %s%s", error, more)
            return True

    def _write(self, place: tuple[str, int | None], error: ShardCorruptError) -> None:
        if self._written is None:
            self._written = _places_in(self.path)
        if place in self._written:
            return
        line = {"shard": str(error.path), "offset": error.offset, "row": place[1], "reason": error.what}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            # An earlier process may have been killed in the middle of a line.
            begin = b"\n" if file.tell() and not _ends_a_line(self.path) else b""
            file.write(begin + json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _places_in(path: Path) -> set[tuple[str, int | None]]:
    places: set[tuple[str, int | None]] = set()
    if path.is_file():
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    places.add((row["shard"], row["row"]))
                except (ValueError, KeyError, TypeError):
                    continue  # half a line
    return places


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
