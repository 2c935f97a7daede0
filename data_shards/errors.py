"""The two exceptions that cross room borders.

`UserError` is for what a person can mend: the front door prints its message as one line and exits 2.
Everything else keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """A mistake in the input or the config; the message says what was wanted, what came, what to change."""


class ShardCorruptError(UserError):
    """A shard does not hold what its sidecar, its manifest or the tar format promise."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        """Name the place.

        Args:
            path: the shard.
            offset: byte offset of the first damaged header or payload.
            what: what was expected there, and what came.
        """
        super().__init__(f"{path} at byte {offset}: {what}")
        self.path = path
        self.offset = offset
        self.what = what

    def __reduce__(self) -> tuple[type[ShardCorruptError], tuple[Path, int, str]]:
        """Rebuild from the three arguments: Ray sends exceptions between processes."""
        return type(self), (self.path, self.offset, self.what)


class DamagedVersionError(UserError):
    """A negatives version is there, and its manifest is not what was written: nobody may train on it."""
