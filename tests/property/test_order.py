"""Invariant 1: order is pure. Against a scalar re-computation, over world sizes, seeds and steps."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data_shards.errors import UserError
from data_shards.order import GlobalOrder

ORDERS = st.builds(
    GlobalOrder,
    dataset_id=st.sampled_from(["sha256:a", "sha256:b"]),
    samples=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**40),
)


def scalar_order(order: GlobalOrder, position: int) -> int:
    """Return the ordinal at one position of the stream, in Python's unbounded integers: no array, no wrapping."""
    epoch, value = divmod(position, order.samples)
    digest = hashlib.blake2b(f"{order.dataset_id}\n{order.seed}\n{epoch}".encode(), digest_size=64).digest()
    keys = [int.from_bytes(digest[at : at + 8], "little") for at in range(0, 64, 8)]
    side = math.isqrt(order.samples - 1) + 1
    while True:
        left, right = divmod(value, side)
        for key in keys:
            mixed = (right + key) % 2**64
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
            left, right = right, (left + (mixed ^ (mixed >> 31)) % side) % side
        value = left * side + right
        if value < order.samples:
            return value


@settings(max_examples=200, deadline=None)
@given(order=ORDERS, world_size=st.integers(1, 16), step=st.integers(0, 10_000))
def test_order_is_pure(order: GlobalOrder, world_size: int, step: int) -> None:
    """The global batch is a function of dataset, seed and step alone; the ranks only share it out."""
    wide = GlobalOrder(
        dataset_id=order.dataset_id,
        samples=order.samples,
        batch_size=order.batch_size * world_size,
        seed=order.seed,
    )
    batch = wide.batch(step)
    slices = [wide.rank_slice(step, rank, world_size) for rank in range(world_size)]
    assert [len(part) for part in slices] == [order.batch_size] * world_size
    assert np.concatenate(slices).tolist() == batch.tolist()
    assert batch[:3].tolist() == [scalar_order(wide, step * wide.batch_size + at) for at in range(len(batch[:3]))]


@settings(max_examples=100, deadline=None)
@given(order=ORDERS)
def test_an_epoch_holds_each_sample_exactly_once(order: GlobalOrder) -> None:
    steps = math.ceil(3 * order.samples / order.batch_size)
    stream = np.concatenate([order.batch(step) for step in range(steps)])
    for epoch in range(3):
        visited = stream[epoch * order.samples : (epoch + 1) * order.samples]
        assert sorted(visited.tolist()) == list(range(order.samples))


@settings(max_examples=100, deadline=None)
@given(order=ORDERS, from_step=st.integers(0, 500), length=st.integers(0, 40))
def test_a_stretch_is_the_union_of_its_batches(order: GlobalOrder, from_step: int, length: int) -> None:
    wanted = {int(at) for step in range(from_step, from_step + length) for at in order.batch(step)}
    assert order.stretch(from_step, from_step + length).tolist() == sorted(wanted)


def test_a_far_step_equals_the_sequential_one() -> None:
    """Step 10**7 of a small dataset, against its whole epoch; and of one that no list could hold."""
    order = GlobalOrder(dataset_id="sha256:a", samples=1009, batch_size=96, seed=5)
    by_epochs = GlobalOrder(dataset_id="sha256:a", samples=1009, batch_size=1009, seed=5)
    step = 10**7
    epoch, first = divmod(step * 96, 1009)
    sequential = np.concatenate([by_epochs.batch(epoch), by_epochs.batch(epoch + 1)])[first : first + 96]
    assert order.batch(step).tolist() == sequential.tolist()

    vast = GlobalOrder(dataset_id="sha256:a", samples=10**13, batch_size=1024, seed=5)
    far = vast.rank_slice(step, 3, 4)
    assert far[:2].tolist() == [scalar_order(vast, step * 1024 + 768), scalar_order(vast, step * 1024 + 769)]


def test_the_order_never_changes_between_versions() -> None:
    """Runs are resumed by later versions: these values were written down once."""
    order = GlobalOrder(dataset_id="sha256:0", samples=10, batch_size=5, seed=42)
    first_epoch, second_epoch = [[8, 3, 6, 1, 9], [5, 7, 2, 4, 0]], [[3, 6, 0, 4, 2], [9, 5, 7, 1, 8]]
    assert [order.batch(step).tolist() for step in range(4)] == first_epoch + second_epoch


def test_seed_dataset_and_epoch_each_change_the_order() -> None:
    def first(dataset_id: str = "sha256:a", seed: int = 1, step: int = 0) -> list[int]:
        return GlobalOrder(dataset_id=dataset_id, samples=50, batch_size=50, seed=seed).batch(step).tolist()

    orders = [first(), first(seed=2), first(dataset_id="sha256:b"), first(step=1)]
    assert len({tuple(order) for order in orders}) == 4


def test_permutations_are_even_over_seeds() -> None:
    """Each of 7 samples comes first equally often; chi-square with 6 degrees of freedom, p = 0.001 at 22.5."""
    trials = 3500
    orders = [GlobalOrder(dataset_id="sha256:a", samples=7, batch_size=7, seed=seed) for seed in range(trials)]
    for place in (0, 6):
        counts = Counter(int(order.batch(0)[place]) for order in orders)
        expected = trials / 7
        assert sum((counts[at] - expected) ** 2 / expected for at in range(7)) < 22.5


def test_epochs_are_counted_in_fractions() -> None:
    order = GlobalOrder(dataset_id="sha256:a", samples=1000, batch_size=256, seed=0)
    assert order.steps_per_epoch == pytest.approx(3.90625)
    assert order.epoch(4) == pytest.approx(1.024)


@pytest.mark.parametrize(("ranks", "advice"), [(16, "992 or 1008"), (3000, "3000")])
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(ranks: int, advice: str) -> None:
    order = GlobalOrder(dataset_id="sha256:a", samples=10, batch_size=1000, seed=0)
    message = f"^global batch 1000 does not divide over {ranks} ranks; set batch.batch_size to {advice}$"
    with pytest.raises(UserError, match=message):
        order.rank_slice(0, 0, ranks)


def test_an_empty_dataset_or_batch_is_refused() -> None:
    with pytest.raises(UserError, match="the dataset has 0 samples"):
        GlobalOrder(dataset_id="sha256:a", samples=0, batch_size=1, seed=0)
    with pytest.raises(UserError, match=r"batch\.batch_size is 0"):
        GlobalOrder(dataset_id="sha256:a", samples=1, batch_size=0, seed=0)
