"""A toy engine's state: numbers that tell by themselves of which step, kind, parameter and place they are."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from train.checkpoint import TrainState
from train.state_files import Piece, StateReader

SHAPES = {"words": (7, 3), "norm": (5,), "scalar": (), "none": (0, 4), "odd|name|0": (2, 2), "wide": (6,)}
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def state(step: int, *, world_size: int = 1, best_step: int | None = None, **others: object) -> TrainState:
    fixed = {"engine": "toy", "dataset_id": "sha256:a", "batch_size": 6, "seed": 0, "order": "5eed"}
    return TrainState(
        **{**fixed, "step": step, "world_size": world_size, "negatives_version": 0, "best_step": best_step, **others}
    )


def value(step: int, kind: str, name: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Tensor:
    """Return a tensor, flat. All are whole numbers that float32 holds exactly; `wide` is float64 and needs it."""
    dtype = torch.float64 if name == "wide" else torch.float32
    base = 10_000 * step + 1_000 * KINDS.index(kind) + zlib.crc32(name.encode()) % 900
    flat = base + torch.arange(math.prod(shapes[name]), dtype=dtype)
    return flat + 2.0**-40 if name == "wide" else flat


def pieces(
    step: int, *, rank: int = 0, world_size: int = 1, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> Iterator[Piece]:
    """Yield one rank's pieces: its stretch of all parameters laid end to end, in an order of its own."""
    total = sum(math.prod(shape) for shape in shapes.values())
    begin, end = (total * turn // world_size for turn in (rank, rank + 1))
    found, at = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        start, stop = (min(max(edge - at, 0), size) for edge in (begin, end))
        found += [Piece(kind, name, start, value(step, kind, name, shapes)[start:stop]) for kind in KINDS]
        at += size
    random.Random(rank).shuffle(found)
    yield from found


def assert_holds(path: Path, step: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
    """Check every value of a checkpoint."""
    reader = StateReader(path)
    assert {name: reader.shape(name) for name in reader.names} == shapes
    assert reader.kinds == set(KINDS)
    for name in shapes:
        for kind in KINDS:
            full = reader.full(kind, name)
            assert full.shape == shapes[name]
            assert torch.equal(full.flatten(), value(step, kind, name, shapes).to(full.dtype)), (kind, name)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())
