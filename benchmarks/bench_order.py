"""How well the global order shuffles, against a permutation of everything and against webdataset's way.

    python -m benchmarks.bench_order [--shards 512] [--samples-per-shard 2000] [--batch 1024] [--json]

Three numbers of one epoch, for each order:
  shards a batch       different shards in a batch: the more, the less a batch is of one kind
  same-shard pairs     pairs of a batch's samples that come from one shard, against chance (1 is a fair shuffle)
  drift                correlation of a sample's place in the file with its place in the epoch (0 is a fair shuffle)
webdataset: shards in random order, `.shuffle(5000)`, one process.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.side_by_side import show
from data_shards.order import GlobalOrder, OrderConfig, OrderSource

_BUFFER = 5000
_BATCHES = 200

Int64s = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=512)
    parser.add_argument("--samples-per-shard", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = (options.samples_per_shard,) * options.shards
    streams = {f"dipole, {lanes} lanes": lanes_stream(sizes, options.batch, lanes) for lanes in (16, 64, 256)}
    streams["webdataset"] = webdataset_stream(sizes)
    streams["permutation"] = np.random.default_rng(0).permutation(sum(sizes))
    found = {name: quality(stream, options.samples_per_shard, options.batch) for name, stream in streams.items()}
    rows = {
        name: f"{values['shards']:7.1f} shards a batch, same-shard pairs {values['same_shard']:5.2f} of chance, "
        f"drift {values['drift']:+.3f}"
        for name, values in found.items()
    }
    show(f"One epoch of {options.shards} shards, batches of {options.batch}", rows, {"quality": found}, options.json)


def lanes_stream(sizes: tuple[int, ...], batch: int, lanes: int) -> Int64s:
    """Return an epoch in the global order."""
    source = OrderSource(dataset_id="sha256:0", shard_samples=sizes)
    order = GlobalOrder(sources=[source], batch_size=batch, seed=0, config=OrderConfig(lanes=lanes))
    return np.concatenate([order.batch(step) for step in range(int(order.steps_per_epoch))])


def webdataset_stream(sizes: tuple[int, ...]) -> Int64s:
    """Return an epoch as `.shuffle()` gives it: for each sample that comes, a random one leaves a buffer."""
    return np.fromiter(_buffered(sizes), dtype=np.int64)


def _buffered(sizes: tuple[int, ...]) -> Iterator[int]:
    draw = random.Random(0)
    shards = list(range(len(sizes)))
    draw.shuffle(shards)
    buffer: list[int] = []
    for shard in shards:
        for row in range(sizes[shard]):
            buffer.append(sum(sizes[:shard]) + row)
            if len(buffer) >= _BUFFER:
                at = draw.randrange(len(buffer))
                buffer[at], buffer[-1] = buffer[-1], buffer[at]
                yield buffer.pop()
    draw.shuffle(buffer)
    yield from buffer


def quality(stream: Int64s, samples_per_shard: int, batch: int) -> dict[str, float]:
    """Return the three numbers; see the top of the file."""
    batches = stream[: len(stream) // batch * batch].reshape(-1, batch) // samples_per_shard
    picked = batches[:: max(1, len(batches) // _BATCHES)]
    counts = [np.unique(row, return_counts=True)[1] for row in picked]
    same = float(np.mean([(found * (found - 1)).sum() for found in counts]))
    chance = batch * (batch - 1) * (samples_per_shard - 1) / (len(stream) - 1)
    drift = float(np.corrcoef(np.arange(len(stream)), stream)[0, 1])
    return {"shards": float(np.mean([len(found) for found in counts])), "same_shard": same / chance, "drift": drift}


if __name__ == "__main__":
    main()
