"""Invariant 4, *all ranks use the same version at the same step, and a version is seen whole or not at all*.

Four ranks, each slow at other moments, while versions are published, late, twice or damaged. Each rank's reading of a
version is a thread of its own, so without agreement they would take it at different steps.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import train.arrivals
from data_shards.atomic import read_json
from data_shards.negatives import NegativesVersion, published_versions, version_dir
from tests.distributed.ranks import run_ranks
from tests.unit.negatives_helper import DATASET, publish
from train.arrivals import Arrivals
from train.collectives import barrier, rank, sum_over_ranks, world_size
from train.negatives_plan import NegativesPlan
from train.run_folder import RunFolder

pytestmark = pytest.mark.distributed
STEPS, DEPTH = 60, 2


class SlowAt:
    """Opens versions as slowly as the dice of a rank fall."""

    def __init__(self, dice: random.Random) -> None:
        self._dice, self._open = dice, NegativesVersion.open

    def __call__(self, *arguments: Any) -> NegativesVersion:
        time.sleep(self._dice.uniform(0, 0.3))
        return self._open(*arguments)


def _train(folder: Path) -> list[int]:
    """Take steps of random length, as the loop does, and return the version of each."""
    dist.init_process_group("gloo")
    run, dice = RunFolder(folder), random.Random(rank())
    train.arrivals._LOOK_EVERY_S = 0.01
    plan = NegativesPlan(run, DATASET)
    arrivals = Arrivals(run, DATASET, lead=rank() == 0, world=world_size())
    NegativesVersion.open = SlowAt(dice)  # type: ignore[method-assign]
    publisher = threading.Thread(target=_publish, args=(run,))
    if rank() == 0:
        publisher.start()
    seen = []
    for step in range(STEPS):
        version = plan.at(step)
        seen.append(version.manifest.version if version else 0)
        time.sleep(dice.uniform(0, 0.04))
        said = sum_over_ranks(torch.tensor(arrivals.say(plan.newest, 9), dtype=torch.float64)).tolist()
        if (taken := arrivals.hear(said)) is not None:
            plan.take(taken, step + DEPTH + 2, write=rank() == 0)
    arrivals.close()
    if rank() == 0:
        publisher.join()
    barrier()
    return seen


def _publish(run: RunFolder) -> None:
    """Version 1 comes in order, 2 is damaged, 5 comes late, and 3 after it; 2 comes again, too late as well."""
    stretch = {"from_step": 0, "to_step": 1000}
    publish(run, 1, **stretch)
    time.sleep(0.5)
    shard = publish(run, 2, **stretch) / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    deadline = time.monotonic() + 10
    while 2 in published_versions(run.negatives) and time.monotonic() < deadline:
        time.sleep(0.02)
    publish(run, 5, **stretch)
    time.sleep(0.2)
    publish(run, 3, **stretch)
    publish(run, 2, **stretch)


def test_all_ranks_use_the_same_version_at_the_same_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    seen = run_ranks(_train, 4, tmp_path, run.root)
    assert seen[0] == seen[1] == seen[2] == seen[3]
    order = list(dict.fromkeys(seen[0]))
    assert order == [0, 1, 5], "the damaged version was taken, or an old one after a newer"
    assert version_dir(run.negatives, 2).with_name("v000002.damaged").exists()
    written = [(row["from_step"], row["version"]) for row in read_json(run.negatives / "uses.json")]
    assert written == [(seen[0].index(version), version) for version in (1, 5)]
