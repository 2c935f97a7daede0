"""The global order: which samples the n-th optimiser step consumes, on however many ranks.

An epoch's permutation is computed, never stored: a Feistel network over pairs (left, right) of numbers below
`side`, with side * side >= samples, is a bijection of [0, side * side); walking on until the value is below `samples`
("cycle walking") makes it one of [0, samples). So any step is found at once, in memory that does not grow with the
dataset, and resuming needs no replay.

The mixing is our own, since an order must outlive the random streams of any library's version.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), their generalised Feistel cipher; Steele,
Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014), for the mixing constants.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError

_ROUNDS = 8  # four make it pseudo-random for large domains; small ones need more


@dataclass(frozen=True, kw_only=True)
class GlobalOrder:
    """The endless sequence of global batches, a pure function of these four fields.

    Epoch e visits every sample once, in a permutation of its own; epochs follow one another without a seam. Where
    the batch size does not divide the dataset, a batch spans two epochs (or more, when it is larger than the
    dataset): no sample is ever dropped, and a step is always a full batch. Such a batch may hold a sample twice.
    """

    dataset_id: str
    """Of the manifest: other content, other order."""
    samples: int
    """In the dataset."""
    batch_size: int
    """Pairs that all ranks together consume in one step."""
    seed: int
    """Of the run."""

    def __post_init__(self) -> None:
        """Refuse an empty dataset or batch."""
        if self.samples < 1:
            raise UserError(f"the dataset has {self.samples} samples, wanted at least 1; import some first")
        if self.batch_size < 1:
            raise UserError(f"batch.batch_size is {self.batch_size}, wanted at least 1")

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every sample is consumed once."""
        return self.samples / self.batch_size

    def epoch(self, step: int) -> float:
        """Return how many epochs are behind when a step begins."""
        return step * self.batch_size / self.samples

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the ordinals of a step's global batch, counted from step 0."""
        return self._at(step * self.batch_size, (step + 1) * self.batch_size)

    def rank_slice(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return one rank's part of a step's global batch: slices in rank order make up the batch.

        Raises:
            UserError: the batch does not divide over the ranks; the message proposes sizes that do.
        """
        check_batch_divides(self.batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        share = self.batch_size // world_size
        begin = step * self.batch_size + rank * share
        return self._at(begin, begin + share)

    def stretch(self, from_step: int, to_step: int) -> NDArray[np.int64]:
        """Return the ordinals that the steps from one up to, not including, another consume: sorted, each once."""
        begin, end = from_step * self.batch_size, max(from_step, to_step) * self.batch_size
        if end - begin >= 2 * self.samples - 1:  # holds a whole epoch, wherever it begins
            return np.arange(self.samples, dtype=np.int64)
        return np.unique(self._at(begin, end))

    def _at(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the ordinals at positions of the endless stream, epoch by epoch."""
        if begin < 0:
            raise ValueError(f"position {begin} is before the first step")
        parts: list[NDArray[np.int64]] = []
        while begin < end:
            epoch, first = divmod(begin, self.samples)
            count = min(end - begin, self.samples - first)
            indices = np.arange(first, first + count, dtype=np.uint64)
            parts.append(permute(indices, self.samples, self._round_keys(epoch)))
            begin += count
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _round_keys(self, epoch: int) -> NDArray[np.uint64]:
        identity = f"{self.dataset_id}\n{self.seed}\n{epoch}".encode()
        digest = hashlib.blake2b(identity, digest_size=8 * _ROUNDS).digest()
        return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def check_batch_divides(batch_size: int, world_size: int) -> None:
    """Refuse a global batch that does not divide over the ranks.

    Raises:
        UserError: it does not; the message proposes the nearest sizes that do.
    """
    if world_size < 1:
        raise ValueError(f"world size {world_size}")
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        sizes = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise UserError(
            f"global batch {batch_size} does not divide over {world_size} ranks; set batch.batch_size to {sizes}"
        )


def permute(indices: NDArray[np.uint64], samples: int, round_keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Map indices below `samples` to where a keyed permutation of [0, samples) takes them."""
    side = np.uint64(math.isqrt(samples - 1) + 1)
    values = _feistel(indices, side, round_keys)
    # The domain exceeds `samples` by less than two sides, so few values walk, and not far.
    while len(outside := np.flatnonzero(values >= samples)):
        values[outside] = _feistel(values[outside], side, round_keys)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], side: np.uint64, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    left, right = values // side, values % side
    for key in round_keys:
        left, right = right, (left + _mix(right + key) % side) % side
    joined: NDArray[np.uint64] = left * side + right
    return joined


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter 64 bits over 64 bits (the finaliser of SplitMix64); products wrap, as they should."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
