"""One training rank, as torchrun starts it: `python -m launch.train_worker RUN`, and `RUN adapt` for that stage."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import torch.distributed as dist

from launch.runs import load_job
from train.adapt import adapt
from train.first_cause import leave_error
from train.loop import train
from train.run_folder import RunFolder
from train.stops import die_with_parent, hold


def main(arguments: list[str]) -> int:
    """Train on this rank; the first rank to fail leaves the cause in the run folder."""
    die_with_parent()
    run = RunFolder(Path(arguments[0]))
    lock = hold(run.lock)  # outlives the command where that is killed: nobody resumes under a rank that is leaving
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|accelerate\.")
    try:
        # Each stage has processes of its own: Accelerate and DeepSpeed keep what they once set up.
        stage = adapt if arguments[1:] == ["adapt"] else train
        code = stage(load_job(run))
    except BaseException as error:
        logging.getLogger(__name__).exception("this rank ends")
        # The loop has said so before, unless it never began.
        return leave_error(run, error, rank=rank, world=world)
    if dist.is_initialized():
        dist.destroy_process_group()
    if lock is not None:
        lock.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
