"""The end of a run's metrics: what it is at, without reading all that it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 20


def last_rows(path: Path, most_bytes: int = _TAIL_BYTES) -> list[dict[str, Any]]:
    """Return the newest rows of a `metrics.jsonl`, oldest first; none where there is no file.

    Args:
        path: the file; it may be growing.
        most_bytes: how much of its end is read: a thousand steps or more.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most_bytes))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines if size <= most_bytes else lines[1:]:  # the first may be the end of one
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # empty, or being written
    return rows
