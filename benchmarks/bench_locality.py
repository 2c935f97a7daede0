"""How much of a remote dataset a node fetches in an epoch, on 1, 2, 4 and 8 simulated nodes.

    python -m benchmarks.bench_locality [--shards 256] [--samples-per-shard 200] [--cache-shards 24] [--json]

Each node has a cache of its own that holds few shards, and reads its slice of every global batch of one epoch from an
object store (fsspec's, in memory). Told are the bytes fetched as a share of the dataset, and how many shards were
fetched more than once.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import fsspec

from benchmarks.bench_read import write
from benchmarks.side_by_side import show
from data_shards.reader import PairDataset
from data_shards.storage import CacheConfig

_BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=256)
    parser.add_argument("--samples-per-shard", type=int, default=200)
    parser.add_argument("--cache-shards", type=int, default=160, help="that a cache of one node alone holds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pairs"
        write(folder, options.shards * options.samples_per_shard, shards=options.shards)
        store = fsspec.filesystem("memory")
        store.put(str(folder), "/bench", recursive=True)
        size = sum(path.stat().st_size for path in folder.glob("*.tar"))
        shares = {}
        for nodes in (1, 2, 4, 8):
            budget = options.cache_shards * size / options.shards / nodes
            shares[nodes] = [
                fetched(Path(scratch) / f"{nodes}-{node}", node, nodes, budget) / size for node in range(nodes)
            ]
    rows = {
        f"{nodes} nodes": f"each fetches {sum(found) / nodes:.3f} of the bytes (most {max(found):.3f}; "
        f"1/nodes is {1 / nodes:.3f})"
        for nodes, found in shares.items()
    }
    show(
        f"One epoch of {options.shards} shards, {size / 2**20:.0f} MiB, batches of {_BATCH}",
        rows,
        {"share": shares},
        options.json,
    )


def fetched(cache: Path, node: int, nodes: int, budget_bytes: float) -> float:
    """Read one epoch as one node and return the bytes of tars that it fetched."""
    config = CacheConfig(dir=str(cache), budget_gib=budget_bytes / 2**30, prefetch_threads=0)
    dataset = PairDataset("memory://bench", cache=config)
    order = dataset.order(batch_size=_BATCH, seed=0)
    for step in range(int(order.steps_per_epoch)):
        dataset.pairs(order.rank_slice(step, node, nodes))
    return dataset.fetched.bytes


if __name__ == "__main__":
    main()
