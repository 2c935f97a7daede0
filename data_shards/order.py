"""The global order: which samples the n-th optimiser step consumes, on however many ranks.

Every step is computed from its number alone, so a resumed run looks it up at once and nothing is replayed. What is
where: `permutation` shuffles, `lanes` makes a dataset's stream out of it, `mixture` deals the slots of a batch out to
several datasets, `spread` keeps shared positives apart; this file puts them together and shares a batch out to ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from data_shards.lanes import Lanes
from data_shards.mixture import Mixture
from data_shards.spread import spread_positives

_BLOCK_STEPS = 16  # batches among which shared positives are spread
_BLOCKS_KEPT = 4

Int64s = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """How the training pairs are put in order; part of what a run can only be resumed with unchanged."""

    lanes: int = 64
    """Streams of shards that a batch is drawn from: more mix better, fewer keep fewer shards open. At least as many
    as nodes. Where they nearly divide the batch, the nearest divisor is taken."""
    mixing: Literal["pairs", "batches"] = "pairs"
    """With several datasets: every batch holds pairs of all of them, or each batch is of one."""
    spread_positives: bool = True
    """Keep pairs that share a positive out of one batch where that can be done."""

    def __post_init__(self) -> None:
        """Check the count."""
        if self.lanes < 1:
            raise UserError(f"order.lanes must be at least 1, came {self.lanes}")


@dataclass(frozen=True, kw_only=True)
class OrderSource:
    """One dataset, as the order sees it."""

    dataset_id: str
    """Of the manifest: other content, other order."""
    shard_samples: tuple[int, ...]
    """How many samples each shard holds."""
    weight: float = 1.0
    """Its share of the pairs, against the other sources' weights."""


class GlobalOrder:
    """The endless sequence of global batches, a pure function of (sources, batch size, seed, config).

    Each source is visited epoch by epoch, every sample once in each, in an order of its own. Epochs follow one
    another without a seam: where the batch size does not divide the dataset, a batch spans two epochs (or more, when
    it is larger than the dataset). No sample is ever dropped, and a step is always a full batch.

    Ordinals count through the sources one after another.
    """

    def __init__(
        self,
        *,
        sources: Sequence[OrderSource],
        batch_size: int,
        seed: int,
        config: OrderConfig | None = None,
        positives: Callable[[Int64s], Int64s] | None = None,
    ) -> None:
        """Keep what the order is a function of.

        Args:
            sources: at least one.
            batch_size: pairs that all ranks together consume in one step.
            seed: of the run.
            config: lanes, mixing, spreading.
            positives: hash of each sample's positive; None leaves shared positives where they are.

        Raises:
            UserError: a dataset or the batch is empty.
        """
        if batch_size < 1:
            raise UserError(f"batch.batch_size is {batch_size}, wanted at least 1")
        if not all(sum(source.shard_samples) for source in sources):
            raise UserError("the dataset has 0 samples, wanted at least 1; import some first")
        self.batch_size = batch_size
        self.config = config or OrderConfig()
        lanes = _lanes(batch_size, self.config.lanes)
        self._streams = [
            Lanes(
                # A dataset that is named twice gets two orders.
                dataset_id=f"{source.dataset_id}#{number}" if number else source.dataset_id,
                shard_samples=source.shard_samples,
                lanes=lanes,
                seed=seed,
            )
            for number, source in enumerate(sources)
        ]
        self.lanes = lanes
        """Of each source."""
        self._mixture = Mixture([source.weight for source in sources])
        self._begins = np.cumsum([0, *(stream.samples for stream in self._streams)])
        self.samples = int(self._begins[-1])
        """In all sources."""
        self._positives = positives if self.config.spread_positives else None
        self._blocks: dict[int, Int64s] = {}
        described = [asdict(self.config), batch_size, seed, *(asdict(source) for source in sources)]
        self.identity = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        """Hash of all that the order is a function of; a checkpoint carries it."""

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many pairs are consumed as the sources hold together."""
        return self.samples / self.batch_size

    def epoch(self, step: int) -> float:
        """Return how many epochs are behind when a step begins."""
        return step * self.batch_size / self.samples

    def batch(self, step: int) -> Int64s:
        """Return the ordinals of a step's global batch, counted from step 0."""
        if step < 0:
            raise ValueError(f"step {step} is before the first")
        if self._positives is None:
            whole: Int64s = self._draw(step, step + 1)[0].ravel()
            return whole
        block, row = divmod(step, _BLOCK_STEPS)
        return np.array(self._block(block)[row], dtype=np.int64)

    def rank_slice(self, step: int, rank: int, world_size: int) -> Int64s:
        """Return one rank's part of a step's global batch: slices in rank order make up the batch.

        Raises:
            UserError: the batch does not divide over the ranks; the message proposes sizes that do.
        """
        check_batch_divides(self.batch_size, world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        share = self.batch_size // world_size
        return self.batch(step)[rank * share : (rank + 1) * share]

    def stretch(self, from_step: int, to_step: int) -> Int64s:
        """Return the ordinals that the steps from one up to, not including, another consume: sorted, each once."""
        whole_epoch = (to_step - from_step) * self.batch_size >= 2 * self.samples - 1 + _BLOCK_STEPS * self.batch_size
        if whole_epoch and len(self._streams) == 1:
            return np.arange(self.samples, dtype=np.int64)
        batches = [self.batch(step) for step in range(from_step, to_step)]
        return np.unique(np.concatenate(batches)) if batches else np.empty(0, dtype=np.int64)

    def _block(self, number: int) -> Int64s:
        found = self._blocks.get(number)
        if found is None:
            assert self._positives is not None
            ordinals, groups = self._draw(number * _BLOCK_STEPS, (number + 1) * _BLOCK_STEPS)
            hashes = self._positives(ordinals.ravel()).reshape(ordinals.shape)
            found = spread_positives(ordinals, groups, hashes)
            # Another thread may do the same; what each puts here is equal.
            self._blocks = {**dict(list(self._blocks.items())[-_BLOCKS_KEPT + 1 :]), number: found}
        return found

    def _draw(self, from_step: int, to_step: int) -> tuple[Int64s, Int64s]:
        """Return the batches of some steps before spreading, and the group of each sample: [steps, batch size].

        A batch is sorted by lane, so that a rank's slice reads few lanes; all sources have equally many.
        """
        slot_pairs = 1 if self.config.mixing == "pairs" else self.batch_size
        steps, slots_per_step = to_step - from_step, self.batch_size // slot_pairs
        first, last = from_step * slots_per_step, to_step * slots_per_step
        slot_sources = self._mixture.sources(first, last)
        ordinals, groups, lanes = (np.empty((last - first, slot_pairs), dtype=np.int64) for _ in range(3))
        for number, stream in enumerate(self._streams):
            here = np.flatnonzero(slot_sources == number)
            turns = self._mixture.count(number, first) + np.arange(len(here), dtype=np.int64)
            positions = turns[:, None] * slot_pairs + np.arange(slot_pairs, dtype=np.int64)
            ordinals[here] = self._begins[number] + stream.ordinals(positions.ravel()).reshape(positions.shape)
            lanes[here] = stream.lane(positions)
            epochs = positions // stream.samples
            groups[here] = (epochs * len(self._streams) + number) * stream.lanes + lanes[here]
        shape = (steps, self.batch_size)
        # Small numbers are sorted by radix, in a third of the time.
        narrow = lanes.astype(np.min_scalar_type(self.lanes)).reshape(shape)
        by_lane = np.argsort(narrow, axis=1, kind="stable")
        return (
            np.take_along_axis(ordinals.reshape(shape), by_lane, axis=1),
            np.take_along_axis(groups.reshape(shape), by_lane, axis=1),
        )


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


def _lanes(batch_size: int, wanted: int) -> int:
    """Return the largest divisor of the batch up to `wanted`, unless that is less than half of it.

    With a divisor each lane gives equally much to every batch, and the ranks' borders never cut one.
    """
    most = min(batch_size, wanted)
    divisor = max(count for count in range(1, most + 1) if batch_size % count == 0)
    return divisor if 2 * divisor >= most else most
