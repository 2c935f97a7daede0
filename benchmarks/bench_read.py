"""Reading training samples in one process, against webdataset; and what a resume costs.

    python benchmarks/bench_read.py [--samples 100000] [--rounds 5] [--json]

Both sides end with a decoded sample (webdataset: a dictionary; Dipole: a checked `Pair`). Dipole reads forward, as an
import or a scan does, and in the global order, as training does: shuffled over 64 lanes, every sample verified by
its checksum.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import webdataset

from benchmarks.side_by_side import in_turn, ratios, show
from data_shards.order import GlobalOrder, OrderSource
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter

_BATCH = 1024
_WORDS = ("shard", "query", "index", "vector", "passage", "gradient", "negative", "temperature", "recall", "über")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pairs"
        write(folder, options.samples)
        sides = {
            "webdataset": lambda: rate(webdataset_samples(folder)),
            "dipole, forward": lambda: rate(iter(PairDataset(folder))),
            "dipole, global order": lambda: rate(in_global_order(folder, options.samples)),
        }
        found = in_turn(sides, options.rounds)
    resume_s = statistics_of_resume()
    against = {name: ratios(found[name], found["webdataset"]) for name in sides if name != "webdataset"}
    rows = {f"{name}, samples/s": measured.spread() for name, measured in found.items()}
    rows |= {
        f"{name} / webdataset": f"{ratio['median']:.1f} ({ratio['least']:.1f} to {ratio['most']:.1f})"
        for name, ratio in against.items()
    }
    rows["first batch of a resume at sample 10,000,000"] = f"{resume_s * 1000:.1f} ms"
    answer = {
        "samples": options.samples,
        "samples_per_s": {name: measured.values for name, measured in found.items()},
        "ratio": against,
        "resume_s": resume_s,
    }
    show(f"Reading {options.samples:,} samples of about a kilobyte, one process", rows, answer, options.json)


def write(folder: Path, samples: int, shards: int = 4) -> None:
    """Write pairs of a few hundred characters."""
    draw = np.random.default_rng(0)
    with ShardWriter(folder, "pairs", samples_per_shard=-(-samples // shards)) as writer:
        for number in range(samples):
            query, positive, negative = (
                " ".join(_WORDS[at] for at in draw.integers(0, len(_WORDS), length)) for length in (8, 60, 40)
            )
            passages = [Passage(id=f"p{number}", title="t", text=positive), Passage(id=f"n{number}", text=negative)]
            writer.add(
                Pair(
                    query_id=f"q{number}", query=query, positives=(passages[0],), negatives=(passages[1],), source="s"
                )
            )


def webdataset_samples(folder: Path) -> Iterator[object]:
    """Read as webdataset's users do."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return iter(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


def in_global_order(folder: Path, samples: int) -> Iterator[Pair]:
    """Read one epoch of global batches."""
    dataset = PairDataset(folder)
    order = dataset.order(batch_size=_BATCH, seed=0)
    for step in range(samples // _BATCH):
        yield from dataset.pairs(order.batch(step))


def rate(samples: Iterator[object]) -> float:
    """Return samples a second."""
    began = time.perf_counter()
    count = sum(1 for _ in samples)
    return count / (time.perf_counter() - began)


def statistics_of_resume() -> float:
    """Return the seconds from nothing to the ordinals of the batch at sample 10 million of 100 million."""
    began = time.perf_counter()
    source = OrderSource(dataset_id="sha256:0", shard_samples=(65_536,) * 1526)
    GlobalOrder(sources=[source], batch_size=_BATCH, seed=0).batch(10_000_000 // _BATCH)
    return time.perf_counter() - began


Measure = Callable[[], float]

if __name__ == "__main__":
    main()
