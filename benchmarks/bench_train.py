"""Training, pairs a second: our step against sentence-transformers' losses, same model, texts, batch and precision.

    python -m benchmarks.bench_train [--data BEIR_DIR] [--layers 2] [--width 128] [--batch 256] [--max-tokens 256]
        [--precision bfloat16] [--device cpu] [--threads 1] [--rounds 3] [--json]

Both sides read raw texts, tokenise, encode, score, differentiate and step with fused AdamW. Ours goes through the
trainer's own loader, step and engine, reading shards; theirs through its losses under the same autocast, in its best
of plain (one forward pass a side), cached by mini-batch, and cached by token budget.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import logging

from benchmarks.side_by_side import Measured, in_turn, ratios, show
from benchmarks.train_sides import RATE, Ours, random_model, shards_of
from data_shards.reader import PairDataset

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        data = shards_of(options.data, options.split, Path(folder))
        snapshot = Path(options.model) if options.model else _random_model(options, data, Path(folder))
        sides = _sides(options, data, snapshot, device)
        measured = in_turn(sides, options.rounds)
    _report(options, len(data), measured)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a BEIR folder; without it the standard library's docstrings")
    parser.add_argument("--split", default="train")
    parser.add_argument("--model", help="a local model instead of a random one")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--tokens-per-chunk", type=int, default=4096)
    parser.add_argument("--mini-batch", type=int, default=32, help="of sentence-transformers' cached loss")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="a round of one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _random_model(options: argparse.Namespace, data: PairDataset, folder: Path) -> Path:
    return random_model(
        data,
        folder,
        layers=options.layers,
        width=options.width,
        vocabulary=options.vocabulary,
        max_tokens=options.max_tokens,
    )


def _sides(
    options: argparse.Namespace, data: PairDataset, snapshot: Path, device: torch.device
) -> dict[str, Callable[[], float]]:
    theirs = {
        "sentence-transformers, plain": lambda model: MultipleNegativesRankingLoss(model),
        f"sentence-transformers, cached, mini-batch {options.mini_batch}": lambda model: (
            CachedMultipleNegativesRankingLoss(model, mini_batch_size=options.mini_batch)
        ),
        "sentence-transformers, cached, token budget": lambda model: CachedMultipleNegativesRankingLoss(
            model, mini_batch_size=options.batch, mini_batch_num_tokens=options.tokens_per_chunk
        ),
    }
    sides = {
        "ours, plain": _ours(options, data, snapshot, True),
        "ours, cached": _ours(options, data, snapshot, False),
    }
    logging.set_verbosity_error()
    return sides | {name: _theirs(options, data, snapshot, device, make) for name, make in theirs.items()}


def _ours(options: argparse.Namespace, data: PairDataset, snapshot: Path, keep_graphs: bool) -> Callable[[], float]:
    trainer = Ours(
        data,
        snapshot,
        batch=options.batch,
        precision=options.precision,
        tokens_per_chunk=options.tokens_per_chunk,
        attention=options.attention,
    )
    return lambda: _rate(options, lambda: trainer.train(options.steps, keep_graphs=keep_graphs))


def _theirs(
    options: argparse.Namespace,
    data: PairDataset,
    snapshot: Path,
    device: torch.device,
    make: Callable[[SentenceTransformer], Any],
) -> Callable[[], float]:
    model = SentenceTransformer(str(snapshot), device=str(device)).train()
    loss = make(model)
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    order = data.order(batch_size=options.batch, seed=0)
    steps = itertools.count(0)

    def one_step() -> None:
        pairs = data.pairs(order.batch(next(steps)))
        texts = [pair.query for pair in pairs], [pair.positives[0].content for pair in pairs]
        features = [
            {name: value.to(device) if hasattr(value, "to") else value for name, value in made.items()}
            for made in map(model.preprocess, texts)
        ]
        with torch.autocast(device.type, dtype=_DTYPES.get(options.precision), enabled=options.precision in _DTYPES):
            value = loss(features, None)
        value.backward()
        adamw.step()
        adamw.zero_grad()

    return lambda: _rate(options, lambda: [one_step() for _ in range(options.steps)])


def _rate(options: argparse.Namespace, work: Callable[[], object]) -> float:
    """Return pairs a second; of CPU time where that is the device, since what else the machine does is not ours."""
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    began = clock()
    work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return float(options.batch * options.steps / (clock() - began))


def _report(options: argparse.Namespace, pairs: int, measured: dict[str, Measured]) -> None:
    peers = {name: side for name, side in measured.items() if not name.startswith("ours")}
    cached = {name: side for name, side in peers.items() if "cached" in name}
    best, best_cached = (max(group, key=lambda name: group[name].median) for group in (peers, cached))
    found = {
        "plain over their best": ratios(measured["ours, plain"], measured[best]),
        "cached over their best cached": ratios(measured["ours, cached"], measured[best_cached]),
        "our plain over our cached": ratios(measured["ours, plain"], measured["ours, cached"]),
    }
    rows = {name: f"{side.spread()} pairs/s" for name, side in measured.items()}
    rows |= {name: f"{row['median']:.2f}x ({row['least']:.2f} to {row['most']:.2f})" for name, row in found.items()}
    name = options.data.name if options.data else "docstrings"
    title = (
        f"{name}: {pairs:,} pairs, batch {options.batch}, {options.max_tokens} tokens at most, {options.precision}, "
        f"{options.model or f'{options.layers} x {options.width}'}, {options.device}, {options.threads} threads"
    )
    sides = {name: side.values for name, side in measured.items()}
    show(title, rows, {"pairs_per_s": sides, "ratios": found}, options.json)


if __name__ == "__main__":
    main()
