"""Building an index within a memory budget, against plain FAISS with the same factory.

    python -m benchmarks.bench_index --sizes 10000 100000 1000000 --memory-gib 1

Vectors are 384 long, in random clusters. Each side runs in a process of its own, whose peak memory is the kernel's
figure (`ru_maxrss`, mapped files included). Plain FAISS reads the same files, trains, adds and writes; it is run once
as `index.train(all)` does it (FAISS takes 256 rows a list of what it is given) and once on as many rows as ours. Ours
also verifies the embedding set, writes ids and checksums, and calibrates; only calibrating is left out of its
vectors a second, and told beside them. Processor seconds stand beside those of the clock: they tell more where others
use the machine too. Each side is told on stderr as soon as it is done.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import machine, show

DIM = 384
_PART_ROWS = 50_000
_SIDES = ("dipole", "faiss, our sample", "faiss")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--memory-gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1, help="of each size; the median counts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=4, metavar=("SIDE", "SET", "OUT", "TOLD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, vectors, out, told = arguments.child
        print(json.dumps(_child(side, Path(vectors), Path(out), json.loads(told))))
        return
    rows: dict[str, str] = {}
    answer: dict[str, Any] = {}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            answer[str(size)] = found = _measure(size, Path(folder), arguments.memory_gib, arguments.rounds)
        for name, value in _lines(found):
            rows[f"{size:,} {name}"] = value
    show(f"Index of {DIM} dimensions, budget {arguments.memory_gib:g} GiB; {machine()}", rows, answer, arguments.json)


def write_set(folder: Path, rows: int) -> None:
    """Write an embedding set of random clusters: as many as the square root of the rows."""
    from data_shards.samples import Passage
    from index_build.embedding_part import Provenance, write_part
    from index_build.embedding_set import publish_set

    random = np.random.default_rng(0)
    centres = random.normal(size=(max(16, int(rows**0.5)), DIM)).astype(np.float32)
    records = []
    for number, first in enumerate(range(0, rows, _PART_ROWS)):
        count = min(_PART_ROWS, rows - first)
        found = centres[random.integers(0, len(centres), count)]
        found += 0.8 * random.normal(size=(count, DIM)).astype(np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        passages = [Passage(id=f"passage-{first + row}", text=f"text {first + row}") for row in range(count)]
        by = Provenance(snapshot_hash="sha256:0", precision="float32", shard=f"{number}", shard_sha256="0")
        records.append(write_part(folder, number, found, passages, by))
    publish_set(
        folder, records, snapshot={"path": "-", "hash": "sha256:0"}, corpus={"path": "-", "dataset_id": "sha256:0"}
    )


def _measure(size: int, folder: Path, memory_gib: float, rounds: int) -> dict[str, Any]:
    write_set(folder / "set", size)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in _SIDES}
    told: dict[str, Any] = {"memory_gib": memory_gib}
    for number in range(rounds):
        for side in _SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_index", "--child", side]
            command += [str(folder / "set"), str(folder / f"out-{number}-{_SIDES.index(side)}"), json.dumps(told)]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            found[side].append(json.loads(output.strip().splitlines()[-1]))
            print(f"{size:,} {side}: {json.dumps(found[side][-1])}", file=sys.stderr, flush=True)
            told |= {name: found[side][-1][name] for name in ("factory", "trained") if side == "dipole"}
    middle = {side: sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2] for side, runs in found.items()}
    ratios = {
        f"{side}, {what}": round(middle[side][key] / middle["dipole"][key], 3)
        for side in _SIDES[1:]
        for what, key in (("by the clock", "seconds"), ("by the processor", "cpu_seconds"))
    }
    return {**middle, "ratios": ratios, "all": found}


def _child(side: str, vectors: Path, out: Path, told: dict[str, Any]) -> dict[str, Any]:
    row = _ours(vectors, out, told["memory_gib"]) if side == "dipole" else _plain(vectors, out, told, side)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {**row, "vectors_per_s": round(row["rows"] / row["seconds"]), "peak_gib": round(peak, 3)}


def _ours(vectors: Path, out: Path, memory_gib: float) -> dict[str, Any]:
    from index_build import index
    from index_build.embedding_set import EmbeddingSet
    from index_build.index_config import IndexConfig

    cpu: dict[str, float] = {}
    clock = index.timed

    @contextmanager
    def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
        began = time.process_time()
        with clock(seconds, step):
            yield
        cpu[step] = time.process_time() - began

    index.timed = timed
    begin, cpu_begin = time.perf_counter(), time.process_time()
    made = index.build_index(EmbeddingSet.open(vectors), out, IndexConfig(memory_gib=memory_gib))
    whole = time.perf_counter() - begin
    return {
        "rows": made.ntotal,
        "seconds": whole - made.seconds["calibrate"],
        "cpu_seconds": time.process_time() - cpu_begin - cpu["calibrate"],
        "steps": {**made.seconds, "whole": round(whole, 2)},
        "factory": made.factory,
        "trained": made.training.get("rows", 0),
        "search": made.search,
        "recall": made.recall.value,
        "interval": [made.recall.low, made.recall.high],
        "latency_ms": made.latency_ms["median"],
        "queries_per_s": made.queries_per_s,
    }


def _plain(vectors: Path, out: Path, told: dict[str, Any], side: str) -> dict[str, Any]:
    import faiss

    begin, cpu_begin = time.perf_counter(), time.process_time()
    parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(vectors.glob("part-*.npy"))]
    rows = np.concatenate([part.astype(np.float32) for part in parts])
    index = faiss.index_factory(rows.shape[1], told["factory"], faiss.METRIC_INNER_PRODUCT)
    sample = rows
    if side == "faiss, our sample":
        sample = rows[np.random.default_rng(0).permutation(len(rows))[: told["trained"]]]
    index.train(sample)
    trained = time.perf_counter() - begin
    index.add(rows)
    faiss.write_index(index, str(out))
    seconds = time.perf_counter() - begin
    cpu = time.process_time() - cpu_begin
    return {
        "rows": index.ntotal,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "steps": {"train": trained, "rest": seconds - trained},
    }


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for side in _SIDES:
        row = found[side]
        lines.append(
            (
                side,
                f"{row['vectors_per_s']:,} vectors/s, {row['seconds']:.2f} s, processor {row['cpu_seconds']:.2f} s, "
                f"peak {row['peak_gib']:.2f} GiB",
            )
        )
    ours = found["dipole"]
    low, high = ours["interval"]
    lines += [(f"ratio to {side}", f"{ratio:.2f}") for side, ratio in found["ratios"].items()]
    lines.append(
        ("recall@10", f"{ours['recall']:.3f} ({low:.3f} to {high:.3f}), {ours['factory']}, {ours['search']}")
    )
    lines.append(("search", f"{ours['latency_ms']:.3g} ms a query, {ours['queries_per_s']:,.0f} queries/s"))
    lines.append(("steps", ", ".join(f"{name} {taken:.2f}" for name, taken in ours["steps"].items())))
    return lines


if __name__ == "__main__":
    main()
