"""Whether mined negatives earn their place: four ways to train, the same otherwise, over several seeds.

    python -m benchmarks.bench_negatives --data BEIR_DIR [--config configs/tldr.toml] [--seeds 3] [--out DIR]
                                         [--arms in-batch once phased async] [--json] [--section.field=value …]

in-batch: no mined negatives. once: one refresh. phased, async: as the config says. Each run trains by the user's
command and is evaluated on the test split once, at its end; the seed draws initial weights, order and dropout. A
finished run is kept in OUT/results.jsonl and not done again, so an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import show

_OFF = ["first_step=0", "first_epochs=0", "first_pairs=0", "every_steps=0", "every_epochs=0", "every_pairs=0"]
_ONCE = _OFF[3:]
ARMS = {
    "in-batch": [f"--refresh.{setting}" for setting in [*_OFF, "flat_steps=0", "warm_up=none"]],
    "once": [f"--refresh.{setting}" for setting in [*_ONCE, "flat_steps=0"]],
    "phased": ["--refresh.way=phased"],
    "async": ["--refresh.way=async"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/tldr.toml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/negatives"))
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pairs, corpus = (imported(kind, options.data, options.out) for kind in ("pairs", "corpus"))
    data = [f"--data.pairs={pairs}", f"--data.corpus={corpus}", f"--dev.data={options.data}"]
    done = finished(options.out / "results.jsonl")
    for seed in range(options.seeds):
        for arm in options.arms:
            if (arm, seed) not in done:
                settings = [*data, f"--run.seed={seed}", *overrides, *ARMS[arm]]
                done[arm, seed] = train_and_test(options, arm, seed, settings)
    found = {arm: [done[arm, seed] for seed in range(options.seeds)] for arm in options.arms}
    show(
        f"{options.data.name}: nDCG@10 on test over {options.seeds} seeds, {options.config}",
        {arm: line(rows, found.get("in-batch")) for arm, rows in found.items()},
        {"arms": found},
        options.json,
    )


def train_and_test(options: argparse.Namespace, arm: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """Train one arm with one seed and return what the table needs of it; it is appended to the results."""
    run = options.out / f"{arm}-{seed}"
    began, used = time.monotonic(), processor_s()
    resume = ["--resume"] if (run / "run.json").exists() else []
    dipole("train", options.config, "--out", run, *settings, *resume)
    seconds, used = time.monotonic() - began, processor_s() - used
    tested = dipole("evaluate", "--model", run / "snapshots/final", "--data", options.data, "--split", "test")
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    row = {
        "arm": arm,
        "seed": seed,
        "ndcg@10": tested["metrics"]["model"]["ndcg@10"],
        "dev": [row["ndcg@10"] for row in rows if row["event"] == "dev"][-1],
        "seconds": None if resume else seconds,
        "processor_s": None if resume else used,
        "versions": sum(row["event"] == "refresh" for row in rows),
    }
    with open(options.out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def processor_s() -> float:
    """Return the processor time of all processes that were started and waited for; others slow it little."""
    times = os.times()
    return times.children_user + times.children_system


def imported(kind: str, data: Path, out: Path) -> Path:
    """Import the training pairs or the corpus, unless that is done."""
    place = out / kind
    if not (place / "manifest.json").exists():
        split = ["--split", "train"] if kind == "pairs" else []
        dipole("shards", kind, "--input", data, "--out", place, *split)
    return place


def finished(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the results that are there."""
    rows = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    return {(row["arm"], row["seed"]): row for row in rows}


def line(rows: list[dict[str, Any]], base: list[dict[str, Any]] | None) -> str:
    """Return mean and spread of an arm, its gain over in-batch seed by seed, and the time that it took."""
    values = [100 * row["ndcg@10"] for row in rows]
    text = f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    if base is not None and rows is not base:
        gains = [100 * (row["ndcg@10"] - other["ndcg@10"]) for row, other in zip(rows, base, strict=True)]
        text += f", {statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f}) over in-batch"
    for name, what in (("seconds", "s"), ("processor_s", "s of the processor")):
        taken = [row[name] for row in rows if row.get(name) is not None]
        text += f", {statistics.mean(taken):.0f} {what}" if taken else ""
    return text


def dipole(*arguments: object) -> dict[str, Any]:
    """Run the user's command and return what it answers."""
    command = [str(Path(sys.executable).with_name("dipole")), *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
