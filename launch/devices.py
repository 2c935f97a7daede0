"""Who gets which devices of this machine: training ranks, and a miner that works beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from data_shards.errors import UserError
from launch.config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Environment variables; empty ones leave a process what the command itself sees."""

    ranks: dict[str, str] = field(default_factory=dict)
    miner: dict[str, str] = field(default_factory=dict)


def split_devices(config: RunConfig) -> Devices:
    """Give the first GPUs to the ranks and the rest to a miner that works while they train.

    Raises:
        UserError: the ranks leave none.
    """
    if config.refresh.way != "async" or not config.refresh.on or config.workers.address or not has_cuda():
        return Devices()
    visible = _visible_gpus()
    ranks = config.run.ranks_per_node
    if ranks >= len(visible):
        raise UserError(
            f'refresh.way = "async" needs a GPU for the miner, and run.ranks = {ranks} takes all {len(visible)}; '
            'lower run.ranks, set refresh.way = "phased", or name a Ray cluster as workers.address'
        )
    return Devices(
        ranks={"CUDA_VISIBLE_DEVICES": ",".join(visible[:ranks])},
        miner={"CUDA_VISIBLE_DEVICES": ",".join(visible[ranks:])},
    )


def threads_per_rank(config: RunConfig) -> int:
    """Return a rank's CPU threads: this machine's, without those of a miner that works at the same time.

    `OMP_NUM_THREADS`, where it is set, has the last word.
    """
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(wanted))
    threads = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)
    if config.refresh.on and config.refresh.way == "async" and not config.workers.address and not has_cuda():
        threads -= config.workers.count * config.workers.threads
    return max(1, threads // config.run.ranks_per_node)


def has_cuda() -> bool:
    """Whether this machine has a GPU that torch can use."""
    import torch

    return bool(torch.cuda.is_available())


def _visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
