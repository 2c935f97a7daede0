"""Embedding side by side with sentence-transformers' `encode` at its best batch size; and Ray over a bare loop.

    python -m benchmarks.bench_embed [--data BEIR_DIR] [--layers 2 --width 128] [--precision float32] [--json]
    python -m benchmarks.bench_embed --ray [--workers 1]

The texts: passages of the data, or without data made-up ones of 20 to 400 words. The encoder is a BERT of random
weights: what it says does not matter to its speed. Both sides load the same snapshot, take turns in one run, and give
the same vectors. In bfloat16 theirs has its weights in bfloat16, ours computes the matrix products in it. Besides
passages a second of wall time, passages a second of processor time are shown: other work on the machine disturbs them
less.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.side_by_side import Measured, in_turn, ratios, show
from data_shards.beir import BeirFolder
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from encoder.care import embed_with_care
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot

_THEIR_BATCHES = (8, 16, 32, 64, 128)
_SEARCHED = 128  # texts with which their batch size is chosen
_AGREE = {"float32": 1e-4, "bfloat16": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", type=int, default=3_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    texts = of_data(options.data, options.texts) if options.data else made_up(options.texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1 if options.ray else options.threads)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot"
        heads = max(2, options.width // 64)
        config = ScratchConfig(layers=options.layers, width=options.width, heads=heads, vocab_size=30_000)
        save_snapshot(scratch_encoder(config, EncoderSettings(max_tokens=256), texts, seed=0), snapshot)
        title = f"{options.data.name if options.data else '20 to 400 words'}: {len(texts):,} texts, "
        title += f"{options.layers} x {options.width}, {options.precision}, {device}"
        if options.ray:
            rows, answer = over_ray(Path(folder), snapshot, texts, options.workers, options.rounds)
        else:
            rows, answer = beside_theirs(snapshot, texts, options.precision, device, options.rounds)
    show(title, rows, answer, options.json)


def beside_theirs(
    snapshot: Path, texts: Sequence[str], precision: Any, device: str, rounds: int
) -> tuple[dict[str, str], dict[str, Any]]:
    """Measure both, ours with the care that a worker takes."""
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    theirs = SentenceTransformer(str(snapshot), device=device, model_kwargs={"torch_dtype": dtype})
    encoder = load_encoder(snapshot).to(device)
    budget = 32_768 if device == "cuda" else 4_096
    found: dict[str, Any] = {}

    def their_side(some: Sequence[str], batch: int) -> None:
        vectors = theirs.encode(list(some), batch_size=batch, convert_to_tensor=True, show_progress_bar=False)
        found["theirs"] = vectors.float().cpu().numpy()

    def our_side() -> None:
        done = embed_with_care(encoder, texts, side="passage", precision=precision, tokens_per_batch=budget)
        found["ours"], found["padding"] = done.vectors, 1 - done.tokens / done.slots

    drawn = random.Random(0).sample(list(texts), min(_SEARCHED, len(texts)))
    sizes = _THEIR_BATCHES if device == "cpu" else tuple(8 * size for size in _THEIR_BATCHES)
    speeds = in_turn({str(size): _timed(len(drawn), lambda size=size: their_side(drawn, size)) for size in sizes}, 1)
    best = max(sizes, key=lambda size: speeds[str(size)].median)
    clocks: dict[str, dict[str, list[float]]] = {"ours": {}, "theirs": {}}
    both = in_turn(
        {
            "ours": _timed(len(texts), our_side, clocks["ours"]),
            "theirs": _timed(len(texts), lambda: their_side(texts, best), clocks["theirs"]),
        },
        rounds,
    )
    apart = float(np.abs(found["ours"] - found["theirs"]).max())
    assert apart < _AGREE[precision], f"the two sides give other vectors: {apart}"
    by_cpu = {name: Measured(clock["cpu"][1:]) for name, clock in clocks.items()}
    ratio, cpu_ratio = ratios(both["ours"], both["theirs"]), ratios(by_cpu["ours"], by_cpu["theirs"])
    rows = {
        "Dipole, passages/s": both["ours"].spread(),
        f"sentence-transformers, batch {best}": both["theirs"].spread(),
        "ratio": _told(ratio),
        "ratio by processor time": _told(cpu_ratio),
        "padding": f"{found['padding']:.1%}",
        "vectors differ by at most": f"{apart:.1e}",
    }
    answer = {
        "ours": both["ours"].values,
        "theirs": both["theirs"].values,
        "their_batch": best,
        "ratio": ratio,
        "ratio_by_processor_time": cpu_ratio,
        "padding": found["padding"],
    }
    return rows, answer


def over_ray(
    folder: Path, snapshot: Path, texts: Sequence[str], workers: int, rounds: int
) -> tuple[dict[str, str], dict[str, Any]]:
    """Measure a pool of workers, all of `dipole embed` but its start, against a loop that only encodes."""
    from index_build.ray_pool import EmbedPool

    with ShardWriter(folder / "corpus", "corpus", samples_per_shard=max(len(texts) // (4 * workers), 1)) as writer:
        for number, text in enumerate(texts):
            writer.add(Passage(id=str(number), text=text))
    encoder = load_encoder(snapshot)
    runs = iter(range(1_000))
    with EmbedPool(workers=workers) as pool:

        def on_ray() -> None:
            pool.embed_corpus(snapshot, folder / "corpus", folder / f"set{next(runs)}")

        def bare() -> None:
            embed_with_care(encoder, texts, side="passage")

        both = in_turn({"ray": _timed(len(texts), on_ray), "bare": _timed(len(texts), bare)}, rounds)
    per_worker = Measured([value / workers for value in both["ray"].values])
    ratio = ratios(per_worker, both["bare"])
    rows = {
        f"each of {workers} workers on Ray, passages/s": per_worker.spread(),
        "bare loop of one thread": both["bare"].spread(),
        "ratio": _told(ratio),
    }
    return rows, {"ray": per_worker.values, "bare": both["bare"].values, "ratio": ratio, "workers": workers}


def of_data(folder: Path, count: int) -> list[str]:
    """Return passages spread over a BEIR folder."""
    texts = [passage.content for passage in BeirFolder(folder).corpus()]
    return random.Random(0).sample(texts, min(count, len(texts)))


def made_up(count: int) -> list[str]:
    """Return texts of 20 to 400 words of a vocabulary in which, as in any language, few are frequent."""
    dice = np.random.default_rng(0)
    lengths = dice.integers(20, 401, count).tolist()
    words = [np.minimum(dice.zipf(1.3, length), 20_000).tolist() for length in lengths]
    return [" ".join(f"w{number}" for number in text) for text in words]


def _timed(count: int, work: Callable[[], None], clocks: dict[str, list[float]] | None = None) -> Callable[[], float]:
    """Return what does the work and returns items a second; items a processor second go into `clocks`."""

    def measure() -> float:
        began, busy = time.perf_counter(), time.process_time()
        work()
        if clocks is not None:
            clocks.setdefault("cpu", []).append(count / (time.process_time() - busy))
        return count / (time.perf_counter() - began)

    return measure


def _told(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


if __name__ == "__main__":
    main()
