"""A rank of a run in which one meets with an accident: `python -m tests.distributed.endangered_rank RUN ACCIDENT`.

Started by torchrun. It trains nothing, but goes through steps and collectives as the loop does, watched as it is.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from train.first_cause import leave_error
from train.run_folder import RunFolder
from train.stops import StopFlag
from train.watchdog import Watchdog, WatchdogConfig

VICTIM, STEP = 1, 5
TIMEOUT_S, BEAT_S = 3.0, 0.3


def _accident(kind: str) -> None:
    match kind:
        case "sleep":
            time.sleep(600)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ZeroDivisionError("division by zero")
        case "slow":
            time.sleep(2 * TIMEOUT_S)


def _train(watchdog: Watchdog, rank: int, kind: str) -> None:
    for step in range(STEP + 4):
        watchdog.phase("forward", step, allow_s=5 * TIMEOUT_S if kind == "slow" and rank == VICTIM else None)
        time.sleep(0.02)
        if step == STEP and rank == VICTIM:
            _accident(kind)
        watchdog.phase("gradients", step)
        dist.all_reduce(torch.ones(4))


def main(run: RunFolder, kind: str) -> int:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = WatchdogConfig(timeout_s=TIMEOUT_S, beat_every_s=BEAT_S)
    watchdog = Watchdog(run, config, rank=rank, world=world)
    watchdog.start()
    StopFlag()  # torchrun asks the others to stop as soon as it sees one dead: a real rank does not die of that
    dist.init_process_group("gloo")
    (run.root / f"pid-{rank}").write_text(str(os.getpid()))
    try:
        _train(watchdog, rank, kind)
    except BaseException as error:
        return leave_error(run, error, rank=rank, world=world)
    finally:
        watchdog.close()
    dist.destroy_process_group()
    (run.root / f"done-{rank}").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(RunFolder(Path(sys.argv[1])), sys.argv[2]))
