"""One training rank, as torchrun starts it: `python -m launch.train_worker RUN`."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

import torch.distributed as dist

from data_shards.errors import UserError
from launch.runs import load_job
from train.loop import train
from train.refresh import RefreshFailedError
from train.run_folder import RunFolder
from train.stops import die_with_parent, hold


def main(arguments: list[str]) -> int:
    """Train on this rank; the first rank to fail leaves the cause in the run folder."""
    die_with_parent()
    run = RunFolder(Path(arguments[0]))
    lock = hold(run.lock)  # outlives the command where that is killed: nobody resumes under a rank that is leaving
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|accelerate\.")
    try:
        code = train(load_job(run))
    except BaseException as error:
        _leave_cause(run, rank, error)
        raise
    if dist.is_initialized():
        dist.destroy_process_group()
    if lock is not None:
        lock.close()
    return code


def _leave_cause(run: RunFolder, rank: str, error: BaseException) -> None:
    """Write the failure down, unless another rank was first: what comes later is mostly its echo."""
    for_people = isinstance(error, UserError | RefreshFailedError)
    cause = str(error) if for_people else f"{type(error).__name__}: {error}"
    row = {
        "rank": int(rank),
        "cause": cause,
        "user_error": isinstance(error, UserError),
        "traceback": traceback.format_exc(),
    }
    try:
        with open(run.failure, "x", encoding="utf-8") as file:
            json.dump(row, file, indent=1)
    except FileExistsError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
