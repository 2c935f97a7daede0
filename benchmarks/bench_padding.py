"""How much of a batch is padding, on real texts of uneven length.

    python -m benchmarks.bench_padding [--data BEIR_DIR] [--split train] [--json]

The split's pairs (without data: made-up ones, their lengths log-normal) are cut into chunks as training does it, for
batches and token budgets of several sizes, and as most trainers do it: each mini-batch of 32 in the order it came,
padded to its longest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.side_by_side import show
from data_shards.beir import BeirFolder
from data_shards.collate import CHUNK_COST
from data_shards.packing import chunks_by_tokens
from encoder.tokenizer import train_wordpiece

_BATCHES = 20
_MINI_BATCH = 32

Int64s = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    queries, passages = lengths(options.data, options.split) if options.data else made_up_lengths()
    draw = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for batch in (128, 256, 1024):
        drawn = [draw.choice(len(queries), batch, replace=False) for _ in range(_BATCHES)]
        sides = [side[rows] for rows in drawn for side in (queries, passages)]
        plain = [[np.arange(at, at + _MINI_BATCH) for at in range(0, batch, _MINI_BATCH)] for _ in sides]
        found[f"batch {batch}, mini-batches of {_MINI_BATCH}"] = padding(sides, plain)
        for budget in (2048, 8192):
            cut = [chunks_by_tokens(side, budget, CHUNK_COST) for side in sides]
            found[f"batch {batch}, budget {budget}"] = padding(sides, cut)
    rows = {name: f"{row['padding']:6.1%} padding, {row['chunks']:5.1f} chunks" for name, row in found.items()}
    show(
        f"{options.data.name if options.data else 'made up'}: {len(queries):,} pairs",
        rows,
        {"padding": found},
        options.json,
    )


def made_up_lengths() -> tuple[Int64s, Int64s]:
    """Return lengths of 20,000 pairs, spread as those of many corpora are."""
    draw = np.random.default_rng(0)
    query, passage = draw.lognormal(2.4, 0.5, 20_000), draw.lognormal(4.4, 0.6, 20_000)
    return np.clip(query, 3, 48).astype(np.int64), np.clip(passage, 5, 256).astype(np.int64)


def lengths(data: Path, split: str) -> tuple[Int64s, Int64s]:
    """Return the tokens of each pair's query (at most 48) and passage (at most 256)."""
    beir = BeirFolder(data)
    corpus = {passage.id: passage.content for passage in beir.corpus()}
    texts, qrels = beir.queries(), beir.qrels(split)
    pairs = [(query, passage) for query, judged in qrels.items() for passage in judged if passage in corpus]
    tokenizer = train_wordpiece(corpus.values(), vocab_size=8192, max_tokens=1 << 20)

    def count(found: list[str], most: int) -> Int64s:
        return np.array([min(most, len(ids)) for ids in tokenizer(found)["input_ids"]], dtype=np.int64)

    return count([texts[query] for query, _ in pairs], 48), count([corpus[passage] for _, passage in pairs], 256)


def padding(sides: list[Int64s], cuts: list[list[Int64s]]) -> dict[str, float]:
    """Return the share of padding, and the chunks a batch (queries and passages together)."""
    tokens = sum(int(side.sum()) for side in sides)
    padded = sum(len(rows) * int(side[rows].max()) for side, cut in zip(sides, cuts, strict=True) for rows in cut)
    return {"padding": 1 - tokens / padded, "chunks": 2 * sum(map(len, cuts)) / len(sides)}


if __name__ == "__main__":
    main()
