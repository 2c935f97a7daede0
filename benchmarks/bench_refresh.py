"""A refresh of hard negatives at several sizes of the corpus: seconds by step, and the share of index and search.

    python -m benchmarks.bench_refresh [--data BEIR_DIR] [--sizes 5000 10000 20000] [--queries 5000] [--layers 2]
        [--width 128] [--max-tokens 256] [--workers 2] [--rounds 1] [--json]

A corpus of a size is made of the data's passages, repeated with a word changed in every five. The encoder is one from
nothing: its speed is that of a trained one. The margin is left open (a relative score of 1), so that the filters see
about as many candidates as with a trained one.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train_sides import random_model, shards_of
from data_shards.beir import BeirFolder
from data_shards.reader import PairDataset
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from index_build.index_config import IndexConfig
from index_build.mine import KnownPositives, MiningConfig, mine
from index_build.ray_pool import EmbedPool


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder, EmbedPool(workers=options.workers) as pool:
        place = Path(folder)
        train = shards_of(options.data, "train", place)
        snapshot = random_model(
            train,
            place,
            layers=options.layers,
            width=options.width,
            vocabulary=options.vocabulary,
            max_tokens=options.max_tokens,
        )
        known = KnownPositives(train)
        passages = list(_passages(train, options.data))
        for size in options.sizes:
            corpus = _corpus(place / f"corpus-{size}", passages, size)
            rows += [
                _refresh(options, pool, train, known, snapshot, corpus, place / f"{size}-{number}", size)
                for number in range(options.rounds)
            ]
    if options.json:
        print(json.dumps(rows))
    else:
        _show(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a BEIR folder; without it the standard library's docstrings")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 10_000, 20_000])
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _passages(train: PairDataset, data: Path | None) -> Iterator[Passage]:
    if data is not None:
        yield from BeirFolder(data).corpus()
        return
    seen = set()
    for pair in train:
        for passage in pair.positives:
            if passage.id not in seen:
                seen.add(passage.id)
                yield passage


def _corpus(folder: Path, passages: list[Passage], size: int) -> Path:
    with ShardWriter(folder, "corpus", samples_per_shard=2_500) as writer:
        for number in range(size):
            turn, at = divmod(number, len(passages))
            writer.add(passages[at] if not turn else _varied(passages[at], turn))
    return folder


def _varied(passage: Passage, turn: int) -> Passage:
    """Change a word in every five, so that the copy is no duplicate and as long."""
    die = random.Random(f"{passage.id} {turn}")
    words = [f"{word}{die.randrange(1000)}" if die.random() < 0.2 else word for word in passage.text.split()]
    return Passage(id=f"{passage.id}-{turn}", title=passage.title, text=" ".join(words))


def _refresh(
    options: argparse.Namespace,
    pool: EmbedPool,
    train: PairDataset,
    known: KnownPositives,
    snapshot: Path,
    corpus: Path,
    place: Path,
    size: int,
) -> dict[str, Any]:
    asked = np.linspace(0, len(train) - 1, min(options.queries, len(train))).astype(np.int64)
    report = mine(
        snapshot=snapshot,
        snapshot_step=0,
        pool=pool,
        train=train,
        known=known,
        ordinals=np.unique(asked),
        corpus=corpus,
        work_dir=place / "work",
        negatives_root=place / "negatives",
        version=1,
        from_step=0,
        to_step=1,
        config=MiningConfig(candidates="corpus", max_relative_score=1.0),
        index_config=IndexConfig(device="cpu"),
    )
    total = sum(report.seconds.values())
    searching = report.seconds["index"] + report.seconds["search"]
    return {
        "passages": size,
        "queries": report.queries,
        **report.seconds,
        "total": round(total, 2),
        "index_and_search_share": round(searching / total, 4),
        "ms_per_passage": round(1e3 * total / size, 3),
        "factory": report.index["factory"],
        "candidates_kept": report.filters["kept"],
    }


def _show(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in names]
    for line in (names, *([str(row[name]) for name in names] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
