"""How a job fails that a person set up rightly: one line of cause, exit code 1 or what `train.exit_codes` names."""

from __future__ import annotations

from pathlib import Path

from data_shards.atomic import read_json
from data_shards.errors import UserError
from train.exit_codes import EXIT_DIVERGED
from train.run_folder import RunFolder


class TrainingFailedError(RuntimeError):
    """A rank or the miner failed; the message begins with the first cause."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        """Keep the exit code beside the message.

        Args:
            message: for people.
            exit_code: what the command ends with, see `train.exit_codes`.
        """
        super().__init__(message)
        self.exit_code = exit_code


def failure_of(run: RunFolder, log: Path) -> UserError | TrainingFailedError:
    """Return what the run's `failure.json` says, ready to be raised.

    Args:
        run: whose ranks left the file.
        log: named in the message.
    """
    row = read_json(run.failure)
    if row["user_error"]:
        return UserError(row["cause"])
    code = row.get("exit_code", 1)
    # What the watchdog writes names the rank itself, and divergence is nobody's in particular.
    all_said = row["cause"].startswith("rank ") or code == EXIT_DIVERGED
    cause = row["cause"] if all_said else f"rank {row['rank']}: {row['cause']}"
    return TrainingFailedError(f"{cause}\n(log: {log})", exit_code=code)
