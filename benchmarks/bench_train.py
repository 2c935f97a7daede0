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
from collections.abc import Callable, Iterator
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
from data_shards.beir import BeirFolder
from data_shards.docstrings import write_docstring_data
from data_shards.reader import PairDataset
from data_shards.samples import Pair
from data_shards.writer import ShardWriter
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from train.batches import BatchConfig, BatchLoader, StepBatch
from train.engine import EngineConfig, start_engine
from train.grad_cache import train_step
from train.objective import LossConfig, Objective
from train.schedule import OptimizerConfig

_RATE = 1e-4
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        data = _data(options.data, options.split, Path(folder))
        snapshot = _model(options, data, Path(folder))
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
    parser.add_argument("--steps", type=int, default=4, help="a round of one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _data(beir: Path | None, split: str, folder: Path) -> PairDataset:
    """Write the pairs of a split as shards; both sides read the same pairs in the same batches."""
    if beir is None:
        return PairDataset(write_docstring_data(folder / "docstrings").train)
    source = BeirFolder(beir)
    passages = {passage.id: passage for passage in source.corpus()}
    queries = source.queries()
    with ShardWriter(folder / "pairs", "pairs") as writer:
        for name, judged in source.qrels(split).items():
            positives = tuple(passages[passage] for passage, grade in judged.items() if grade > 0)
            if positives:
                writer.add(Pair(query_id=name, query=queries[name], positives=positives[:1]))
    return PairDataset(folder / "pairs")


def _model(options: argparse.Namespace, data: PairDataset, folder: Path) -> Path:
    if options.model:
        return Path(options.model)
    texts = [text for pair in data for text in (pair.query, pair.positives[0].content)]
    scratch = ScratchConfig(
        layers=options.layers,
        width=options.width,
        heads=max(2, options.width // 64),
        vocab_size=options.vocabulary,
    )
    encoder = scratch_encoder(scratch, EncoderSettings(max_tokens=options.max_tokens), texts, seed=0)
    save_snapshot(encoder, folder / "model")
    return folder / "model"


def _sides(
    options: argparse.Namespace, data: PairDataset, snapshot: Path, device: torch.device
) -> dict[str, Callable[[], float]]:
    ours = _ours(options, data, snapshot)
    theirs = {
        "sentence-transformers, plain": lambda model: MultipleNegativesRankingLoss(model),
        f"sentence-transformers, cached, mini-batch {options.mini_batch}": lambda model: (
            CachedMultipleNegativesRankingLoss(model, mini_batch_size=options.mini_batch)
        ),
        "sentence-transformers, cached, token budget": lambda model: CachedMultipleNegativesRankingLoss(
            model, mini_batch_size=options.batch, mini_batch_num_tokens=options.tokens_per_chunk
        ),
    }
    sides = {"ours, plain": ours(True), "ours, cached": ours(False)}
    logging.set_verbosity_error()
    return sides | {name: _theirs(options, data, snapshot, device, make) for name, make in theirs.items()}


def _ours(options: argparse.Namespace, data: PairDataset, snapshot: Path) -> Callable[[bool], Callable[[], float]]:
    """Return what makes a side of the trainer's own parts: loader with its thread, step, engine, optimiser."""

    def side(keep_graphs: bool) -> Callable[[], float]:
        encoder = load_encoder(snapshot).train()
        config = EngineConfig(precision=options.precision, attention=options.attention)
        engine = start_engine(encoder, config, OptimizerConfig(learning_rate=_RATE, max_grad_norm=0.0))
        objective = Objective(LossConfig(temperature=0.05), device=engine.device)
        batches = BatchConfig(
            batch_size=options.batch,
            query_max_tokens=options.max_tokens,
            tokens_per_chunk=options.tokens_per_chunk,
            chunk_cost_tokens=256,
        )
        order = data.order(batch_size=options.batch, seed=0)
        shaped = batches.on(engine.device, options.precision)
        loader = BatchLoader(dataset=data, order=order, encoder=encoder, config=shaped, rank=0, world=1)
        steps = itertools.count(0, options.steps)

        def one_round() -> float:
            first = next(steps)
            return _rate(options, lambda: _train(loader.steps(first, first + options.steps, None)))

        def _train(ready: Iterator[list[StepBatch]]) -> None:
            for parts in ready:
                train_step(engine, parts, objective, seed=0, keep_graphs=keep_graphs)
                engine.step(_RATE)

        return one_round

    return side


def _theirs(
    options: argparse.Namespace,
    data: PairDataset,
    snapshot: Path,
    device: torch.device,
    make: Callable[[SentenceTransformer], Any],
) -> Callable[[], float]:
    model = SentenceTransformer(str(snapshot), device=str(device)).train()
    loss = make(model)
    adamw = torch.optim.AdamW(model.parameters(), lr=_RATE, fused=True)
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
