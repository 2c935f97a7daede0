"""Peak memory of a cached step as the batch grows: a fixed chunk's, whatever the batch.

    python -m benchmarks.bench_batch_memory [--data BEIR_DIR] [--batches 256 1024 4096] [--layers 2] [--width 128]
        [--precision bfloat16] [--json]

Each batch size trains a few steps in a process of its own; what the process held before the first step is told apart
from what the steps add. On a GPU it is the allocator's peak, on a CPU that of the process.
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
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # shards, model, batch: a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(*options.one, precision=options.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = shards_of(options.data, options.split, Path(folder))
        model = random_model(data, Path(folder), layers=options.layers, width=options.width)
        found = {batch: _in_a_process(data, model, batch, options.precision) for batch in options.batches}
    first, last = found[options.batches[0]], found[options.batches[-1]]
    rows = {
        f"batch {batch}": f"{row['before_mib']:,.0f} MiB before, peak {row['peak_mib']:,.0f} MiB"
        for batch, row in found.items()
    }
    ratio = last["peak_mib"] / first["peak_mib"]
    added = (last["peak_mib"] - last["before_mib"]) / (first["peak_mib"] - first["before_mib"])
    rows[f"batch x{options.batches[-1] // options.batches[0]}"] = (
        f"{ratio:.3f}x the peak; what the steps add: {added:.2f}x"
    )
    title = f"cached steps of {options.layers} x {options.width}, {options.precision}"
    show(title, rows, {"mib": found, "ratio": ratio, "ratio_of_what_steps_add": added}, options.json)


def _in_a_process(data: PairDataset, model: Path, batch: int, precision: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_batch_memory", "--precision", precision]
    command += ["--one", data.location, str(model), str(batch)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return row


def _measure(shards: str, model: str, batch: str, *, precision: str) -> dict[str, Any]:
    """Train a few cached steps and return the memory before and at the peak."""
    torch.set_num_threads(1)
    data = PairDataset(shards)
    ours = Ours(data, Path(model), batch=int(batch), precision=precision, tokens_per_chunk=4096)
    before = _peak_mib()
    ours.train(_STEPS, keep_graphs=False)
    return {"before_mib": before, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
