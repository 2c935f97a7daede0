"""What the section [loss] refuses, each in one line with the fix."""

from __future__ import annotations

from typing import Any

import pytest

from data_shards.errors import UserError
from train.objective import LossConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"loss\.temperature must be positive, came 0\.0"),
        ({"temperature": -1.0}, r"loss\.temperature must be positive, came -1\.0"),
        ({"temperature": float("nan")}, r"loss\.temperature must be positive, came nan"),
        ({"temperature": float("inf")}, r"loss\.temperature must be positive, came inf"),
        ({"distill_temperature": 0.0}, r"loss\.distill_temperature must be positive"),
        ({"triplet_margin": 0.0}, r"loss\.triplet_margin must be positive"),
        ({"distill_weight": -1.0}, r"loss\.distill_weight must be 0 or more, came -1"),
        ({"base_weight": float("nan")}, r"loss\.base_weight must be 0 or more, came nan"),
        ({"mask_margin": float("inf")}, r"loss\.mask_margin must be a number, came inf"),
        ({"block_scores": -1}, r"loss\.block_scores must be 0 or more, came -1"),
        (
            {"learn_temperature": True, "temperature": 2.0},
            r"loss\.temperature 2\.0 is learned within .* start inside",
        ),
        ({"kind": "triplet", "symmetric": True}, r'loss\.symmetric belongs to loss\.kind = "infonce"'),
        ({"kind": "triplet", "query_query": True}, r'loss\.query_query belongs to loss\.kind = "infonce"'),
        ({"kind": "triplet", "passage_passage": True}, r'loss\.passage_passage belongs to loss\.kind = "infonce"'),
        ({"kind": "triplet", "learn_temperature": True}, r"set loss\.learn_temperature = false"),
        ({"matryoshka_dims": (4, 0)}, r"loss\.matryoshka_dims must be different sizes of 1 or more, came \[4, 0\]"),
        ({"matryoshka_dims": (4, 4)}, r"loss\.matryoshka_dims must be different sizes"),
        ({"matryoshka_weights": (1.0,)}, r"one weight for each of 0 loss\.matryoshka_dims, came 1"),
        ({"matryoshka_dims": (4,), "matryoshka_weights": (0.0,)}, r"loss\.matryoshka_weights must be positive"),
    ],
)
def test_a_mistake_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LossConfig(**options)


def test_a_size_that_the_vectors_lack_is_refused_with_the_fix() -> None:
    config = LossConfig(matryoshka_dims=(64, 512, 768))
    with pytest.raises(UserError, match=r"asks for 512, 768, but the vectors have 384 dimensions; leave out"):
        config.sizes(384)


def test_the_full_size_comes_first_and_always_counts() -> None:
    assert list(LossConfig(matryoshka_dims=(2, 4)).sizes(8).items()) == [(8, 1.0), (2, 1.0), (4, 1.0)]
    listed = LossConfig(matryoshka_dims=(2, 8), matryoshka_weights=(0.5, 3.0))
    assert list(listed.sizes(8).items()) == [(8, 3.0), (2, 0.5)]
    assert LossConfig().sizes(8) == {8: 1.0}
