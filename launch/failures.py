"""How a job fails that a person set up rightly: one line of cause, exit code 1."""

from __future__ import annotations


class TrainingFailedError(RuntimeError):
    """A rank or the miner failed; the message begins with the first cause."""
