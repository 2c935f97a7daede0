"""How fast negatives wear out: which of the last version's a new snapshot would take again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from data_shards.errors import UserError
from data_shards.negatives import NegativesVersion, published_versions
from data_shards.samples import Pair, id_hash
from index_build.candidates import Block
from index_build.filters import Float32s, Int64s, Verdict
from index_build.mining_parts import BLOCK_QUERIES, Stretch
from index_build.sieve import Sieve

_log = logging.getLogger(__name__)

MOST_QUERIES = 2_000
"""Asked about where the stretch has them, and so their vectors."""
_MOST_OTHERS = 500  # whose vectors have to be made

MakeBlock = Callable[[list[Pair], Float32s], Block]


def last_version(root: Path, version: int, dataset_id: str) -> NegativesVersion | None:
    """Open the newest version before this one; None where there is none that is whole."""
    older = [number for number in published_versions(root) if number < version]
    if not older:
        return None
    try:
        return NegativesVersion.open(root, older[-1], dataset_id)
    except UserError as error:
        _log.warning("negatives version %d is not compared with: %s", older[-1], error)
        return None


def still_hard(
    last: NegativesVersion,
    stretch: Stretch,
    queries: Float32s,
    sieve: Sieve,
    *,
    embed: Callable[[list[str]], Float32s],
    make_block: MakeBlock,
) -> float | None:
    """Return the share of the last version's negatives that are candidates now and pass the filters.

    Of queries of this stretch, up to `MOST_QUERIES`; where it has none of the last one's, of some of those.

    Args:
        last: the version before.
        stretch: what is mined for now.
        queries: its vectors.
        sieve: of the new snapshot; no teacher is asked.
        embed: queries to vectors, for those outside of the stretch.
        make_block: of pairs and their vectors.
    """
    before = _ordinals(last, stretch)
    again = np.intersect1d(before, stretch.ordinals, assume_unique=True)
    asked = _spread(again, MOST_QUERIES) if len(again) else _spread(before, _MOST_OTHERS)
    asked, pairs = stretch.train.sound_pairs(asked)
    if not pairs:
        return None
    if len(again):
        vectors = np.asarray(queries[np.searchsorted(stretch.ordinals, asked)])
    else:
        vectors = embed([pair.query for pair in pairs])
    hard = total = 0
    shards, rows = stretch.train.locate(asked)
    for start in range(0, len(pairs), BLOCK_QUERIES):
        block = make_block(pairs[start : start + BLOCK_QUERIES], vectors[start : start + BLOCK_QUERIES])
        judged = sieve.judge(block, _untimed, ask_teacher=False)
        kept = np.where(judged.verdicts == Verdict.KEPT, judged.rows, -1)
        for at in range(len(block.pairs)):
            stem = stretch.train.shard_stems[int(shards[start + at])]
            names = [id_hash(passage.id) for passage in last.negatives(stem, int(rows[start + at]))]
            now = sieve.ids(kept[at][kept[at] >= 0])
            hard += int(np.isin(names, now).sum())
            total += len(names)
    return hard / total if total else None


def _ordinals(last: NegativesVersion, stretch: Stretch) -> Int64s:
    """Return the pairs that a version has negatives for, sorted."""
    samples = [shard.samples for manifest in stretch.train.manifests for shard in manifest.shards]
    starts = dict(zip(stretch.train.shard_stems, np.cumsum([0, *samples])[:-1].tolist(), strict=True))
    found = [rows + starts[stem] for stem, rows in last.touched()]
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _spread(ordinals: Int64s, most: int) -> Int64s:
    """Return at most so many, evenly spread."""
    if len(ordinals) <= most:
        return ordinals
    return ordinals[np.linspace(0, len(ordinals) - 1, most).astype(np.int64)]


def _untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()
