"""Invariant 1: order is pure. Against a scalar re-computation, over sources, world sizes, seeds and steps."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data_shards.errors import UserError
from data_shards.order import GlobalOrder, OrderConfig, OrderSource

SOURCES = st.builds(
    OrderSource,
    dataset_id=st.sampled_from(["sha256:a", "sha256:b"]),
    shard_samples=st.lists(st.integers(1, 60), min_size=1, max_size=8).map(tuple),
    weight=st.floats(0.05, 20),
)
CONFIGS = st.builds(OrderConfig, lanes=st.integers(1, 20), mixing=st.sampled_from(["pairs", "batches"]))
SEEDS = st.integers(0, 2**40)


def order_of(*shard_samples: int, batch_size: int, seed: int = 0, dataset_id: str = "sha256:a") -> GlobalOrder:
    source = OrderSource(dataset_id=dataset_id, shard_samples=shard_samples)
    return GlobalOrder(sources=[source], batch_size=batch_size, seed=seed)


def same_positives(ordinals: np.ndarray) -> np.ndarray:
    """Give runs of three samples one positive."""
    return 1 + ordinals // 3


class ScalarStream:
    """One source's stream in Python's unbounded integers, a position at a time: no array, no wrapping."""

    def __init__(self, source: OrderSource, lanes: int, seed: int) -> None:
        self.source, self.lanes, self.seed = source, lanes, seed
        self.samples = sum(source.shard_samples)

    def ordinal(self, position: int) -> int:
        sizes = self.source.shard_samples
        epoch = position // self.samples
        digest = hashlib.blake2b(f"{self.source.dataset_id}\n{self.seed}\n{epoch}".encode(), digest_size=64).digest()
        keys = [int.from_bytes(digest[at : at + 8], "little") for at in range(0, 64, 8)]
        shards = [permuted(number, len(sizes), keys) for number in range(len(sizes))]
        members = [
            [p for p in range(epoch * self.samples, (epoch + 1) * self.samples) if p % self.lanes == lane]
            for lane in range(self.lanes)
        ]
        lane = position % self.lanes
        turn = members[lane].index(position)
        if lane % 2:
            turn = len(members[lane]) - 1 - turn
        line = (sum(map(len, members[:lane])) + turn + keys[0]) % self.samples
        ends = list(accumulate(sizes[shard] for shard in shards))
        place = next(at for at, end in enumerate(ends) if line < end)
        shard = shards[place]
        row = line - (ends[place] - sizes[shard])
        shard_keys = [mixed((key + (shard + 1) * 0x9E3779B97F4A7C15) % 2**64) for key in keys]
        return sum(sizes[:shard]) + permuted(row, sizes[shard], shard_keys)


def mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def permuted(value: int, size: int, keys: list[int]) -> int:
    side = math.isqrt(size - 1) + 1
    while True:
        left, right = divmod(value, side)
        for key in keys:
            left, right = right, (left + mixed((right + key) % 2**64) % side) % side
        value = left * side + right
        if value < size:
            return value


@settings(max_examples=60, deadline=None)
@given(source=SOURCES, batch_size=st.integers(1, 48), lanes=st.integers(1, 20), seed=SEEDS, step=st.integers(0, 60))
def test_a_batch_is_what_a_scalar_walk_gives(
    source: OrderSource, batch_size: int, lanes: int, seed: int, step: int
) -> None:
    config = OrderConfig(lanes=lanes)
    order = GlobalOrder(sources=[source], batch_size=batch_size, seed=seed, config=config)
    scalar = ScalarStream(source, order.lanes, seed)
    positions = sorted(range(step * batch_size, (step + 1) * batch_size), key=lambda at: at % order.lanes)
    assert order.batch(step).tolist() == [scalar.ordinal(position) for position in positions]


@settings(max_examples=150, deadline=None)
@given(
    sources=st.lists(SOURCES, min_size=1, max_size=3),
    share=st.integers(1, 6),
    world_size=st.integers(1, 16),
    config=CONFIGS,
    seed=SEEDS,
    step=st.integers(0, 10_000),
)
def test_order_is_pure(
    sources: list[OrderSource], share: int, world_size: int, config: OrderConfig, seed: int, step: int
) -> None:
    """The global batch is a function of the sources, the seed and the step alone; the ranks only share it out.

    Nor does it matter what was asked for before: a fresh order gives the same as one with a past.
    """
    arguments = {"sources": sources, "batch_size": share * world_size, "seed": seed, "config": config}
    order = GlobalOrder(**arguments, positives=same_positives)
    for past in (step + 40, step + 1, max(0, step - 3)):
        order.batch(past)
    batch = order.batch(step)
    slices = [order.rank_slice(step, rank, world_size) for rank in range(world_size)]
    assert [len(part) for part in slices] == [share] * world_size
    assert np.concatenate(slices).tolist() == batch.tolist()
    assert GlobalOrder(**arguments, positives=same_positives).batch(step).tolist() == batch.tolist()


@settings(max_examples=100, deadline=None)
@given(source=SOURCES, batch_size=st.integers(1, 40), config=CONFIGS, seed=SEEDS)
def test_an_epoch_holds_each_sample_exactly_once(
    source: OrderSource, batch_size: int, config: OrderConfig, seed: int
) -> None:
    """Whole epochs, and the batches that span two: no sample is dropped, none comes before its turn."""
    order = GlobalOrder(sources=[source], batch_size=batch_size, seed=seed, config=config, positives=same_positives)
    samples = order.samples
    steps = math.ceil(3 * samples / batch_size)
    seen: Counter[int] = Counter()
    for step in range(steps):
        seen.update(order.batch(step).tolist())
        epochs_begun = math.ceil((step + 1) * batch_size / samples)
        assert max(seen.values()) <= epochs_begun
        epochs_done = (step + 1) * batch_size // samples
        assert all(seen[ordinal] >= epochs_done for ordinal in range(samples)) or _in_open_block(step)


def _in_open_block(step: int) -> bool:
    """Whether spreading may still have moved a sample of the epoch to a later batch of the same block."""
    return step % 16 != 15


@settings(max_examples=80, deadline=None)
@given(sources=st.lists(SOURCES, min_size=2, max_size=3), batch_size=st.integers(1, 40), config=CONFIGS, seed=SEEDS)
def test_each_source_is_visited_epoch_by_epoch(
    sources: list[OrderSource], batch_size: int, config: OrderConfig, seed: int
) -> None:
    order = GlobalOrder(sources=sources, batch_size=batch_size, seed=seed, config=config)
    stream = np.concatenate([order.batch(step) for step in range(200)])
    begin = 0
    for source in sources:
        samples = sum(source.shard_samples)
        own = stream[(stream >= begin) & (stream < begin + samples)]
        counts = np.bincount(own - begin, minlength=samples)
        assert counts.max() - counts.min() <= 1 + batch_size // samples + 1
        begin += samples


@pytest.mark.parametrize("mixing", ["pairs", "batches"])
def test_sources_keep_their_weights_in_every_stretch(mixing: str) -> None:
    """Of 1,000 slots each source has its share to within three, wherever the stretch begins."""
    sources = [
        OrderSource(dataset_id=f"sha256:{weight}", shard_samples=(50, 70), weight=weight) for weight in (5, 3, 2)
    ]
    order = GlobalOrder(sources=sources, batch_size=20, seed=1, config=OrderConfig(mixing=mixing))
    for begin in (0, 10**9):
        steps = 50 if mixing == "pairs" else 1000
        batches = [order.batch(begin + step) // 120 for step in range(steps)]
        if mixing == "batches":
            assert all(len(set(batch.tolist())) == 1 for batch in batches)
            batches = [batch[:1] for batch in batches]
        found = np.bincount(np.concatenate(batches), minlength=3)
        assert np.abs(found - [500, 300, 200]).max() <= 3


@settings(max_examples=80, deadline=None)
@given(
    source=SOURCES,
    batch_size=st.integers(1, 32),
    seed=SEEDS,
    from_step=st.integers(0, 300),
    length=st.integers(0, 90),
)
def test_a_stretch_is_the_union_of_its_batches(
    source: OrderSource, batch_size: int, seed: int, from_step: int, length: int
) -> None:
    order = GlobalOrder(sources=[source], batch_size=batch_size, seed=seed, positives=same_positives)
    wanted = {int(at) for step in range(from_step, from_step + length) for at in order.batch(step)}
    assert order.stretch(from_step, from_step + length).tolist() == sorted(wanted)


def test_shared_positives_are_kept_apart() -> None:
    """1,200 pairs, three to a positive, batches of 120: chance alone leaves 12 repeats in a batch.

    What is left lies in the few batches where an epoch ends in the middle of a block, and little can change places.
    """
    order = GlobalOrder(
        sources=[OrderSource(dataset_id="sha256:a", shard_samples=(400, 400, 400))],
        batch_size=120,
        seed=0,
        positives=same_positives,
    )
    plain = order_of(400, 400, 400, batch_size=120)

    def repeats(of: GlobalOrder) -> list[int]:
        return [120 - len(set(same_positives(of.batch(step)).tolist())) for step in range(32)]

    assert sum(repeats(plain)) > 300
    assert sum(repeats(order)) <= 6
    assert sum(found > 0 for found in repeats(order)) <= 3


def test_a_far_step_costs_no_replay() -> None:
    """Step 10**9 of 10**13 samples, which no list could hold; each rank reads a few shards of its own."""
    vast = order_of(*[10**9] * 10_000, batch_size=1024, seed=5)
    parts = [vast.rank_slice(10**9, rank, 8) for rank in range(8)]
    shards = [set((part // 10**9).tolist()) for part in parts]
    assert all(len(found) <= 8 for found in shards)  # 64 lanes, so 8 a rank
    assert len(set().union(*shards)) > 30


def test_a_rank_reads_its_share_of_the_shards_each_once() -> None:
    """Of 64 shards 8 ranks read 8 and up to two that a border cuts; and no shard is come back to."""
    order = order_of(*[100] * 64, batch_size=64, seed=3)
    for rank in range(8):
        shards = [set((order.rank_slice(step, rank, 8) // 100).tolist()) for step in range(100)]
        assert len(set().union(*shards)) <= 8 + 2
        for shard in set().union(*shards):
            steps = [step for step in range(100) if shard in shards[step]]
            assert steps[-1] - steps[0] + 1 <= 100
    first = [order.rank_slice(step, 0, 1) // 100 for step in range(100)]
    held = [len(set(batch.tolist())) for batch in first]
    assert max(held) <= 64


def test_the_order_never_changes_between_versions() -> None:
    """Runs are resumed by later versions: these values were written down once."""
    order = order_of(6, 4, batch_size=5, seed=42, dataset_id="sha256:0")
    first_epoch, second_epoch = [[4, 5, 0, 6, 8], [2, 1, 3, 7, 9]], [[4, 3, 7, 8, 0], [1, 5, 6, 9, 2]]
    assert [order.batch(step).tolist() for step in range(4)] == first_epoch + second_epoch


def test_seed_dataset_and_epoch_each_change_the_order() -> None:
    def first(dataset_id: str = "sha256:a", seed: int = 1, step: int = 0) -> list[int]:
        return order_of(20, 30, batch_size=50, seed=seed, dataset_id=dataset_id).batch(step).tolist()

    orders = [first(), first(seed=2), first(dataset_id="sha256:b"), first(step=1)]
    assert len({tuple(order) for order in orders}) == 4


def test_places_are_even_over_seeds() -> None:
    """Each of 7 samples comes first equally often; chi-square with 6 degrees of freedom, p = 0.001 at 22.5."""
    trials = 3500
    orders = [order_of(3, 4, batch_size=7, seed=seed) for seed in range(trials)]
    for place in (0, 6):
        counts = Counter(int(order.batch(0)[place]) for order in orders)
        expected = trials / 7
        assert sum((counts[at] - expected) ** 2 / expected for at in range(7)) < 22.5


def test_neighbours_meet_as_often_as_strangers() -> None:
    """Over epochs, two samples that lie side by side in a shard share a batch about as often as any two."""
    order = order_of(64, 64, 64, 64, batch_size=32, seed=0)
    neighbours = strangers = 0
    for step in range(8 * 300):
        members = set(order.batch(step).tolist())
        neighbours += sum(at + 1 in members for at in range(0, 256, 2) if at in members)
        strangers += sum((at + 128) % 256 in members for at in range(0, 256, 2) if at in members)
    expected = 300 * 128 * 31 / 255
    assert neighbours == pytest.approx(expected, rel=0.2)
    assert strangers == pytest.approx(expected, rel=0.2)


def test_all_that_the_order_depends_on_is_in_its_identity() -> None:
    source = OrderSource(dataset_id="sha256:a", shard_samples=(5, 5))
    base = {"sources": [source], "batch_size": 4, "seed": 0, "config": OrderConfig()}
    changed = [
        {"seed": 1},
        {"batch_size": 8},
        {"config": OrderConfig(lanes=2)},
        {"config": OrderConfig(mixing="batches")},
        {"config": OrderConfig(spread_positives=False)},
        {"sources": [replace(source, dataset_id="sha256:b")]},
        {"sources": [replace(source, weight=2.0), source]},
        {"sources": [source, source]},
    ]
    identities = [GlobalOrder(**{**base, **change}).identity for change in ({}, *changed)]
    assert len(set(identities)) == len(identities)
    assert GlobalOrder(**base).identity == identities[0]


def test_epochs_are_counted_in_fractions() -> None:
    order = order_of(600, 400, batch_size=256)
    assert order.steps_per_epoch == pytest.approx(3.90625)
    assert order.epoch(4) == pytest.approx(1.024)


@pytest.mark.parametrize(("ranks", "advice"), [(16, "992 or 1008"), (3000, "3000")])
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(ranks: int, advice: str) -> None:
    message = f"^global batch 1000 does not divide over {ranks} ranks; set batch.batch_size to {advice}$"
    with pytest.raises(UserError, match=message):
        order_of(10, batch_size=1000).rank_slice(0, 0, ranks)


def test_an_empty_dataset_or_batch_is_refused() -> None:
    with pytest.raises(UserError, match="the dataset has 0 samples"):
        order_of(batch_size=1)
    with pytest.raises(UserError, match=r"batch\.batch_size is 0"):
        order_of(1, batch_size=0)


def test_lanes_that_nearly_divide_the_batch_are_made_to() -> None:
    """So that no rank's border cuts one; a batch without such a divisor keeps what was asked for."""
    found = {size: order_of(1000, batch_size=size).lanes for size in (256, 96, 48, 5, 514)}
    assert found == {256: 64, 96: 48, 48: 48, 5: 5, 514: 64}
