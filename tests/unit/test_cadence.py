"""When a refresh is due, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from data_shards.errors import UserError
from data_shards.order import GlobalOrder
from data_shards.reader import PairDataset
from tests.unit.tiny import pair, write_pairs
from train.cadence import Cadence, Flatness, RefreshConfig


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> GlobalOrder:
    """Ten pairs in batches of four: an epoch is two and a half steps."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "pairs", (pair(number) for number in range(10)))
    return PairDataset(folder / "pairs").order(batch_size=4, seed=0)


def steps_of(cadence: Cadence, *, flat_at: tuple[int, ...] = ()) -> list[int]:
    """Go through a run as the loop does; return the steps before which a refresh came."""
    found: list[int] = []
    for step in range(cadence.total + 1):
        if cadence.due(step, asked=len(found), last=found[-1] if found else 0, flat=step in flat_at):
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("first", "every", "total", "borders"),
    [
        (60, 20, 105, [60, 80, 100]),
        (60, 20, 100, [60, 80]),
        (60, 0, 105, [60]),
        (0, 0, 105, []),
        (105, 20, 105, []),
        (104, 20, 105, [104]),
        (1, 1, 4, [1, 2, 3]),
    ],
)
def test_steps_by_hand(first: int, every: int, total: int, borders: list[int]) -> None:
    assert steps_of(Cadence(first=first, every=every, total=total)) == borders


def test_the_warm_up_comes_before_step_0_and_is_not_the_first_refresh() -> None:
    assert steps_of(Cadence(first=6, every=3, total=10, warm_up=True)) == [0, 6, 9]
    assert steps_of(Cadence(first=0, every=0, total=10, warm_up=True)) == [0]


def test_a_flat_loss_brings_the_next_refresh_forward_but_never_the_first() -> None:
    cadence = Cadence(first=6, every=8, total=30, warm_up=True, flat_steps=2)
    assert steps_of(cadence, flat_at=(3, 9, 20)) == [0, 6, 9, 17, 20, 28]
    once = Cadence(first=6, every=0, total=30)
    assert steps_of(once, flat_at=(9,)) == [6]


def test_what_is_read_ahead_ends_where_the_next_refresh_comes_at_the_latest() -> None:
    cadence = Cadence(first=6, every=8, total=20, warm_up=True)
    assert cadence.next_step(asked=0, last=0) == 0
    assert cadence.next_step(asked=1, last=0) == 6
    assert cadence.next_step(asked=2, last=6) == 14
    assert cadence.next_step(asked=3, last=14) == 20


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"first_epochs": 2.0, "every_epochs": 1.0}, (5, 3)),
        ({"first_epochs": 0.1}, (1, 0)),
        ({"first_pairs": 9, "every_pairs": 8}, (3, 2)),
        ({"first_step": 7, "every_pairs": 1}, (7, 1)),
    ],
)
def test_epochs_and_pairs_become_steps(order: GlobalOrder, settings: dict[str, Any], steps: tuple[int, int]) -> None:
    cadence = RefreshConfig(**settings).cadence(order, 50)
    assert (cadence.first, cadence.every) == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_step": -1}, "refresh.first_step must be 0 or more, came -1"),
        ({"timeout_s": 0}, "refresh.timeout_s and keep_versions must be at least 1"),
        (
            {"every_steps": 20},
            "refresh.every_steps is set but first_step is 0, which turns mining off; set first_step",
        ),
        ({"first_step": 2, "first_pairs": 8}, "first_step and first_pairs say the same twice; set one of them to 0"),
        ({"first_step": 2, "flat_steps": 8}, "every_\\*, which is not set; set it"),
    ],
)
def test_a_cadence_that_makes_no_sense_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RefreshConfig(**settings)


@pytest.mark.parametrize(
    ("config", "cuda", "cluster", "gives"),
    [
        ({}, True, False, True),
        ({}, False, False, False),
        ({}, True, True, False),
        ({"give_back": "on"}, False, False, True),
        ({"give_back": "off"}, True, False, False),
        ({"way": "async", "give_back": "on"}, True, False, False),
    ],
)
def test_who_gives_devices_back(config: dict[str, Any], cuda: bool, cluster: bool, gives: bool) -> None:
    assert RefreshConfig(**config).gives_back(cuda=cuda, cluster=cluster) == gives


def test_flatness_by_hand() -> None:
    """Stretches of two steps: means 4, 2, 1.99; the third gains half a percent, where two are wanted."""
    config = RefreshConfig(first_step=1, every_steps=9, flat_steps=2, flat_gain=0.02)
    flatness, seen = Flatness(), []
    for loss in (5.0, 3.0, 2.0, 2.0, 1.98, 2.0, 1.0):
        flatness = flatness.after(loss, config)
        seen.append(flatness.flat)
    assert seen == [False, False, False, False, False, True, True]
    assert flatness == Flatness(total=1.0, steps=1, before=1.99, flat=True)
