"""Peak memory of a cached step as the batch grows: a fixed chunk's, whatever the batch.

    python -m benchmarks.bench_batch_memory [--data BEIR_DIR] [--batches 256 1024 4096] [--layers 2] [--width 128]
        [--precision bfloat16] [--json]

Each batch size trains in a process of its own, on as many pairs as the largest batch has in three steps: how many
shapes of matrix products a run has met depends on the texts that it has seen, whatever the batch. Beside that peak
stands the one of the first three steps, in which smaller batches have met less, and what the process held before. On
a GPU it is the allocator's peak, on a CPU that of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.side_by_side import show
from benchmarks.train_sides import Ours, random_model, shards_of
from data_shards.reader import PairDataset

_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a BEIR folder; without it the standard library's docstrings")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # shards, model, batch, steps: a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(*options.one, precision=options.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = shards_of(options.data, options.split, Path(folder))
        model = random_model(data, Path(folder), layers=options.layers, width=options.width)
        pairs = _STEPS * max(options.batches)
        found = {
            batch: _in_a_process(data, model, batch, pairs // batch, options.precision) for batch in options.batches
        }
    _report(options, found)


def _report(options: argparse.Namespace, found: dict[int, dict[str, float]]) -> None:
    least, most = min(options.batches), max(options.batches)
    rows = {
        f"batch {batch}": f"{row['before_mib']:,.0f} MiB before, peak {row['peak_mib']:,.0f} MiB in "
        f"{row['steps']:.0f} steps, {row['early_peak_mib']:,.0f} MiB in {_STEPS}"
        for batch, row in found.items()
    }
    ratio, early_ratio = (found[most][peak] / found[least][peak] for peak in ("peak_mib", "early_peak_mib"))
    added = {batch: row["peak_mib"] - row["before_mib"] for batch, row in found.items()}
    rows[f"batch x{most // least}"] = (
        f"{ratio:.3f}x the peak after equally many pairs, {early_ratio:.3f}x after {_STEPS} steps; "
        f"what the steps add: {added[most] / added[least]:.2f}x"
    )
    title = f"cached steps of {options.layers} x {options.width}, {options.precision}"
    ratios = {
        "ratio": ratio,
        "ratio_in_equal_steps": early_ratio,
        "ratio_of_what_steps_add": added[most] / added[least],
    }
    show(title, rows, {"mib": found, **ratios}, options.json)


def _in_a_process(data: PairDataset, model: Path, batch: int, steps: int, precision: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_batch_memory", "--precision", precision]
    command += ["--one", data.location, str(model), str(batch), str(steps)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return row


def _measure(shards: str, model: str, batch: str, steps: str, *, precision: str) -> dict[str, Any]:
    """Train cached steps and return the memory before, at the peak, and at the peak of the first few."""
    torch.set_num_threads(1)
    data = PairDataset(shards)
    ours = Ours(data, Path(model), batch=int(batch), precision=precision, tokens_per_chunk=4096)
    before = _peak_mib()
    ours.train(_STEPS, keep_graphs=False)
    early = _peak_mib()
    ours.train(int(steps) - _STEPS, keep_graphs=False)
    return {"before_mib": before, "early_peak_mib": early, "peak_mib": _peak_mib(), "steps": int(steps)}


def _peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
