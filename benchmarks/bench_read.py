"""Reading training samples, against webdataset; two processes; a resume; memory over many samples.

    python -m benchmarks.bench_read [--samples 100000] [--rounds 5] [--memory-samples 10000000] [--json]

Both sides end with a decoded sample (webdataset: a dictionary; Dipole: a checked `Pair`), and read forward or
shuffled: webdataset through `.shuffle(5000)`, Dipole in the global order, as training does, over 64 lanes. Dipole
verifies every sample by its checksum. Two processes read half of every batch each.

One pass is timed by two clocks. Where other work shares the core, a second of the wall holds what that work leaves,
and a second of the process's CPU time is the fairer one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset

from benchmarks.side_by_side import Measured, in_turn, ratios, show
from data_shards.order import GlobalOrder, OrderSource
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter

_BATCH = 1024
_WORDS = ("shard", "query", "index", "vector", "passage", "gradient", "negative", "temperature", "recall", "über")
_AGAINST = {
    "dipole, forward": "webdataset, forward",
    "dipole, global order": "webdataset, shuffled",
    "dipole, two processes": "dipole, global order",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-samples", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pairs"
        write(folder, options.samples)
        cpu: defaultdict[str, list[float]] = defaultdict(list)
        sides = {
            "webdataset, forward": lambda: rate(webdataset_samples(folder), cpu["webdataset, forward"]),
            "webdataset, shuffled": lambda: rate(
                webdataset_samples(folder, shuffle=5000), cpu["webdataset, shuffled"]
            ),
            "dipole, forward": lambda: rate(iter(PairDataset(folder)), cpu["dipole, forward"]),
            "dipole, global order": lambda: rate(
                in_global_order(folder, options.samples), cpu["dipole, global order"]
            ),
            "dipole, two processes": lambda: two_processes(folder, options.samples),
        }
        found = in_turn(sides, options.rounds)
        found_cpu = {name: Measured(values[1:]) for name, values in cpu.items()}
        resident = memory(folder, options.memory_samples)
    against = {name: ratios(found[name], found[other]) for name, other in _AGAINST.items()}
    against_cpu = {
        name: ratios(found_cpu[name], found_cpu[other]) for name, other in _AGAINST.items() if name in found_cpu
    }
    resume_s = resume_seconds()
    answer = {
        "samples": options.samples,
        "samples_per_s": {name: measured.values for name, measured in found.items()},
        "ratio": against,
        "samples_per_cpu_s": {name: measured.values for name, measured in found_cpu.items()},
        "ratio_cpu": against_cpu,
        "resume_s": resume_s,
        "resident_mib": resident,
    }
    rows = (
        table(found, against, "samples/s")
        | table(found_cpu, against_cpu, "samples/CPU s")
        | {
            "a resume at sample 10,000,000 of 100,000,000": f"{resume_s * 1000:.1f} ms to its first batch",
            f"memory over {options.memory_samples:,} samples": ", ".join(f"{mib:.0f}" for mib in resident) + " MiB",
        }
    )
    show(f"Reading {options.samples:,} samples of about a kilobyte", rows, answer, options.json)


def table(found: dict[str, Measured], against: dict[str, dict[str, float]], unit: str) -> dict[str, str]:
    """Return the lines for people: median (least to most)."""
    rows = {f"{name}, {unit}": measured.spread() for name, measured in found.items()}
    for name, ratio in against.items():
        rows[f"{name} / {_AGAINST[name]}, {unit}"] = (
            f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        )
    return rows


def write(folder: Path, samples: int, shards: int = 4) -> None:
    """Write pairs of a few hundred characters."""
    draw = np.random.default_rng(0)
    with ShardWriter(folder, "pairs", samples_per_shard=-(-samples // shards)) as writer:
        for number in range(samples):
            query, positive, negative = (
                " ".join(_WORDS[at] for at in draw.integers(0, len(_WORDS), length)) for length in (8, 60, 40)
            )
            writer.add(
                Pair(
                    query_id=f"q{number}",
                    query=query,
                    positives=(Passage(id=f"p{number}", title="t", text=positive),),
                    negatives=(Passage(id=f"n{number}", text=negative),),
                    source="s",
                )
            )


def webdataset_samples(folder: Path, shuffle: int = 0) -> Iterator[object]:
    """Read as webdataset's users do."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls) if shuffle else False, seed=0, empty_check=False)
    return iter((dataset.shuffle(shuffle) if shuffle else dataset).decode())


def in_global_order(folder: Path, samples: int, rank: int = 0, world_size: int = 1) -> Iterator[Pair]:
    """Read a rank's part of the global batches that hold so many samples together."""
    dataset = PairDataset(folder)
    order = dataset.order(batch_size=_BATCH, seed=0)
    for step in range(samples // _BATCH):
        yield from dataset.pairs(order.rank_slice(step, rank, world_size))


def rate(samples: Iterator[object], per_cpu_s: list[float]) -> float:
    """Return samples a second, and append samples a second of this process's CPU time."""
    began, cpu_began = time.perf_counter(), time.process_time()
    count = sum(1 for _ in samples)
    per_cpu_s.append(count / (time.process_time() - cpu_began))
    return count / (time.perf_counter() - began)


def two_processes(folder: Path, samples: int) -> float:
    """Return the samples a second of two processes together: the sum of what each reaches beside the other."""
    context = multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(2), context.SimpleQueue()
    workers = [context.Process(target=_read_half, args=(folder, samples, rank, ready, rates)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return float(rates.get() + rates.get())


def _read_half(folder: Path, samples: int, rank: int, ready: Any, rates: Any) -> None:
    ready.wait()
    rates.put(rate(in_global_order(folder, 2 * samples, rank, 2), []))


def memory(folder: Path, samples: int) -> list[float]:
    """Return this process's memory in MiB after each tenth of so many samples, epoch after epoch."""
    process, resident = psutil.Process(), []
    stream = in_global_order(folder, samples)
    for _ in range(10):
        for _ in itertools.islice(stream, samples // 10):
            pass
        resident.append(process.memory_info().rss / 2**20)
    return resident


def resume_seconds() -> float:
    """Return the seconds from nothing to the ordinals of the batch at sample 10 million of 100 million."""
    began = time.perf_counter()
    source = OrderSource(dataset_id="sha256:0", shard_samples=(65_536,) * 1526)
    GlobalOrder(sources=[source], batch_size=_BATCH, seed=0).batch(10_000_000 // _BATCH)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
