"""The smallest encoder and datasets that are still real ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter
from encoder.model import Encoder, EncoderSettings, ScratchConfig, scratch_encoder

TEXTS = [
    "read the raw data of a file",
    "sort a list of words in place",
    "open a socket and wait for the server",
    "parse the date, return the day",
    "x",
    "a long text about files, lists, sockets and dates that goes on and on until it has to be cut somewhere",
]


def tiny_encoder(*, dropout: float = 0.0, width: int = 16, seed: int = 0, **settings: Any) -> Encoder:
    """Return an encoder of two layers with a tokenizer trained on `TEXTS`."""
    scratch = ScratchConfig(layers=2, width=width, heads=2, vocab_size=160, dropout=dropout)
    return scratch_encoder(scratch, EncoderSettings(**{"max_tokens": 16, **settings}), TEXTS, seed=seed).eval()


def passage(name: str, text: str | None = None) -> Passage:
    """Return a passage whose text is its name, unless one is given."""
    return Passage(id=name, text=text if text is not None else f"passage {name}")


def pair(number: int, **changes: Any) -> Pair:
    """Return a pair of texts that no other pair has."""
    values: dict[str, Any] = {
        "query_id": f"q{number}",
        "query": f"query {number}",
        "positives": (passage(f"p{number}"),),
    }
    return Pair(**{**values, **changes})


def write_pairs(folder: Path, pairs: Iterable[Pair], samples_per_shard: int = 4) -> PairDataset:
    """Write training shards and open them."""
    with ShardWriter(folder, "pairs", samples_per_shard=samples_per_shard) as writer:
        for row in pairs:
            writer.add(row)
    return PairDataset(folder)


def write_corpus(folder: Path, passages: Iterable[Passage]) -> Path:
    """Write corpus shards."""
    with ShardWriter(folder, "corpus") as writer:
        for row in passages:
            writer.add(row)
    return folder
