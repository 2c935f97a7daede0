"""Embedding on a cluster of two nodes, one of which is killed: the set comes out as on one that nothing disturbed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import save_snapshot
from index_build.embedding_part import part_files
from index_build.embedding_set import EmbeddingSet

pytestmark = pytest.mark.ray

SHARDS, PER_SHARD = 30, 100
TIMEOUT_S = 240

# In a process of its own: Ray reads how it is to authenticate when it is imported, and once.
CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=2)
raylet = node.all_processes["raylet"][0].process.pid
print(cluster.address, raylet, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""
DRIVER = """
import sys
from pathlib import Path
from index_build.ray_pool import EmbedPool
snapshot, corpus, out = map(Path, sys.argv[1:4])
# One of three workers has a place on the node that stays.
with EmbedPool(workers=3, address=sys.argv[4], start_timeout_s=60) as pool:
    pool.embed_corpus(snapshot, corpus, out)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a snapshot, slow enough that a kill finds something to hit."""
    place = tmp_path_factory.mktemp("two_nodes")
    with ShardWriter(place / "corpus", "corpus", samples_per_shard=PER_SHARD) as writer:
        for k in range(SHARDS * PER_SHARD):
            writer.add(Passage(id=f"p{k}", title=f"title {k}", text=f"word{k % 97} word{k % 89} " * 20))
    config = ScratchConfig(layers=2, width=128, heads=2, vocab_size=300)
    encoder = scratch_encoder(config, EncoderSettings(max_tokens=96), [f"word{k} title" for k in range(100)], seed=0)
    save_snapshot(encoder, place / "snapshot")
    return place


@pytest.fixture
def environment() -> dict[str, str]:
    """What both sides of a cluster have to know."""
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **ray}


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The address of a cluster, and the process id of its second node's raylet."""
    command = [sys.executable, "-c", CLUSTER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline().split()
    family = psutil.Process(process.pid).children(recursive=True)
    try:
        assert len(line) == 2, f"the cluster did not start: {line}"
        yield line[0], int(line[1])
    finally:
        process.communicate("\n", timeout=TIMEOUT_S)
        for child in psutil.wait_procs(family, timeout=10)[1]:
            child.kill()


def test_a_node_is_killed_and_the_set_is_whole(
    place: Path, cluster: tuple[str, int], environment: dict[str, str]
) -> None:
    """Invariant 5. The node goes with its workers; what they had not finished is done by the others."""
    address, raylet = cluster
    out = place / "set"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(place / "snapshot"), str(place / "corpus"), str(out), address],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not (done(out) and has_worker(raylet)):
        assert driver.poll() is None, "all was done before a worker came up on that node: the corpus is too small"
        assert time.monotonic() < deadline, "no part was done"
        time.sleep(0.02)
    for process in (psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)):
        os.kill(process.pid, signal.SIGKILL)  # as when the machine goes: none of them says a word
    _, errors = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, errors
    assert "died while embedding" in errors or "was lost while it started" in errors
    found = EmbeddingSet.open(out)
    found.verify()
    assert found.ids == [f"p{k}" for k in range(SHARDS * PER_SHARD)]
    assert np.isfinite(found.gather(np.arange(found.rows))).all()


def has_worker(raylet: int) -> bool:
    try:
        return any("EmbedWorker" in " ".join(each.cmdline()) for each in psutil.Process(raylet).children())
    except psutil.Error:
        return False


def done(out: Path) -> int:
    return sum(part_files(out, number).done.exists() for number in range(SHARDS))
