"""How embedding workers share the GPUs of a cluster, by hand."""

from __future__ import annotations

import pytest

from index_build.ray_crew import gpus_per_worker


@pytest.mark.parametrize(
    ("gpus", "workers", "share"),
    [(0, 4, 0), (8, 2, 1), (4, 4, 1), (1, 3, 1 / 3), (2, 3, 1 / 2), (2, 4, 1 / 2), (3, 10, 1 / 4)],
)
def test_shares_by_hand(gpus: float, workers: int, share: float) -> None:
    assert gpus_per_worker(gpus, workers) == share
    if gpus:
        assert int(1 / share) * gpus >= workers, "all find a place"
