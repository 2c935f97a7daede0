"""Which of the kept candidates become negatives: a die keyed by query and version, the same whatever their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_shards.cleaning.words import mix
from index_build.filters import Bytes, Int64s, Verdict
from index_build.mining_config import Sampling

Float64s = NDArray[np.float64]
UInts = NDArray[np.uint64]

# Axes: Q queries of a block, K candidates of each, W negatives wanted of each.


def query_keys(names: Sequence[str]) -> UInts:
    """Return a key for each name: uint64 [Q]."""
    digests = b"".join(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def preference(
    id_hashes_QK: Int64s,
    kept_QK: NDArray[np.bool_],
    scores_QK: NDArray[np.floating],
    keys_Q: UInts,
    *,
    sampling: Sampling,
    temperature: float,
) -> Int64s:
    """Rank one source's candidates by how a weighted die without replacement falls.

    Args:
        id_hashes_QK: of the candidates, best first.
        kept_QK: which of them may be drawn.
        scores_QK: what `score` weighs by.
        keys_Q: see `query_keys`.
        sampling: `uniform`, or by `rank`, by `score`, or `nearest`: no die.
        temperature: of `score`.

    Returns:
        int64 [Q, K]: 0 for the first to take, 1 for the next, …; those that are not kept come last.

    Source: Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them" (2019): the largest of log-weights
    with Gumbel noise are a sample without replacement.
    """
    ranks = np.cumsum(kept_QK, axis=1)  # from 1, among those that are kept
    wish = -ranks.astype(np.float64) if sampling == "nearest" else _gumbel(id_hashes_QK, keys_Q)
    if sampling == "rank":
        wish = wish - np.log(np.maximum(ranks, 1))
    elif sampling == "score":
        wish = wish + np.where(kept_QK, scores_QK, 0.0).astype(np.float64) / temperature
    order = np.argsort(np.where(kept_QK, -wish, np.inf), axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return places


def take_turns(places: Sequence[Int64s], kept: Sequence[NDArray[np.bool_]]) -> Int64s:
    """Join the sources: the first choice of each, then the second of each, …

    Args:
        places: of each source, [Q, K of it], see `preference`.
        kept: of each source, which may be drawn.

    Returns:
        [Q, all K]: positions in the sources' candidates set side by side, the first to take first.
    """
    turns = [place * len(places) + number for number, place in enumerate(places)]
    joined = np.concatenate(
        [np.where(may, turn, np.iinfo(np.int64).max) for turn, may in zip(turns, kept, strict=True)], 1
    )
    return np.argsort(joined, axis=1, kind="stable")


class Taker:
    """Takes the first of each query's candidates that are kept, and no passage too often."""

    def __init__(self, wanted: int, per_passage_max: int) -> None:
        """Begin a version.

        Args:
            wanted: negatives of a query, at most.
            per_passage_max: queries of the version that a passage is a negative of, at most; 0 for any number.
        """
        self._wanted, self._most = wanted, per_passage_max
        self._used: dict[int, int] = {}

    def take(self, order_QK: Int64s, rows_QK: Int64s, verdicts_QK: Bytes) -> Int64s:
        """Choose; passages passed over for being used up get their verdict, in place.

        Returns:
            [Q, W] positions of the chosen, in the order of `order_QK`; -1 where there are fewer.
        """
        kept = np.take_along_axis(verdicts_QK, order_QK, axis=1) == Verdict.KEPT
        if self._most:
            return self._take_sparingly(order_QK, rows_QK, verdicts_QK, kept)
        first = np.argsort(~kept, axis=1, kind="stable")[:, : self._wanted]
        chosen = np.full((len(order_QK), self._wanted), -1, dtype=np.int64)
        found = np.where(np.take_along_axis(kept, first, 1), np.take_along_axis(order_QK, first, 1), -1)
        chosen[:, : found.shape[1]] = found
        return chosen

    def _take_sparingly(
        self, order_QK: Int64s, rows_QK: Int64s, verdicts_QK: Bytes, kept: NDArray[np.bool_]
    ) -> Int64s:
        chosen = np.full((len(order_QK), self._wanted), -1, dtype=np.int64)
        for query, (order, may) in enumerate(zip(order_QK, kept, strict=True)):
            count = 0
            for place in order[may].tolist():
                if count == self._wanted:
                    break
                row = int(rows_QK[query, place])
                if self._used.get(row, 0) >= self._most:
                    verdicts_QK[query, place] = Verdict.OVERUSED
                    continue
                self._used[row] = self._used.get(row, 0) + 1
                chosen[query, count] = place
                count += 1
        return chosen


def _gumbel(id_hashes_QK: Int64s, keys_Q: UInts) -> Float64s:
    lots = mix(mix(id_hashes_QK.view(np.uint64)) ^ keys_Q[:, None])
    uniform = ((lots >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: Float64s = -np.log(-np.log(uniform))
    return noise
