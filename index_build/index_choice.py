"""Chooses how vectors are kept, from their number, their length, the memory there is and the recall that is wanted.

| codes | bytes a vector of 384 | recall@10 with all lists probed, two kinds of 30,000 vectors |
|---|---|---|
| SQfp16 | 776 | 1.000 1.000 |
| SQ8 | 392 | 0.973 0.993 |
| RaBitQ6 | 316 | 0.950 0.984 |
| RaBitQ4 | 220 | 0.833 0.941 |
| SQ6, SQ4 | 296, 200 | 0.920 0.957, 0.711 0.847: RaBitQ wins |
| PQ192x4fs, refined by SQfp16 | 872 | 0.995 0.998, searched in a fifth of the time |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import faiss
import psutil

from data_shards.errors import UserError
from index_build.faiss_shape import blocked_lists, fixed_bytes, inverted, reason, row_bytes
from index_build.index_config import IndexConfig

WORKING_BYTES = 288 << 20
"""The process itself, a block of vectors, and what FAISS needs while it adds it."""

_MIN_ROWS_PER_LIST = 39  # fewer, and FAISS's k-means warns that its centroids mean little
_GRAPH_OVER_LISTS_FROM = 65_536  # comparing a vector with so many centroids takes longer than walking a graph of them
_MOST_GRAPH_ROWS = 5_000_000  # one process has to build a graph, at some thousand rows a second and core
_GIB = 1 << 30
_FREE_SHARE = 0.8


class Codes(NamedTuple):
    """A way to keep a vector in a list."""

    name: str
    reaches: float
    """Least recall@10 that was met with all lists probed: see the table above."""


LADDER = (Codes("SQfp16", 1.0), Codes("SQ8", 0.97), Codes("RaBitQ6", 0.94), Codes("RaBitQ4", 0.83))
"""Finest first."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How vectors will be kept."""

    factory: str
    """FAISS factory string."""
    on_disk: bool
    """Whether the inverted lists stay on disk."""
    bytes: int
    """Estimated size of the index, wherever it lies."""
    memory_bytes: int
    """Estimated memory to search it, this process included."""
    why: str
    """In words."""


def choose(rows: int, dim: int, config: IndexConfig, memory_bytes: int | None = None) -> Choice:
    """Choose, or check what the user has chosen.

    Args:
        rows: number of vectors.
        dim: their length.
        config: the wishes.
        memory_bytes: what may be used; by default as the config says.

    Raises:
        UserError: nothing that is allowed fits, or FAISS cannot build the factory.
    """
    budget = budget_bytes(config) if memory_bytes is None else memory_bytes
    if config.factory != "auto":
        return _given(rows, dim, config, budget)
    if rows <= config.flat_up_to and config.on_disk != "always":
        flat = _sized("Flat", rows, dim)
        if flat.memory_bytes <= budget:
            return _explained(flat, f"{rows:,} vectors are searched exactly, one by one, and need no training")
    if config.prefer == "latency" and config.on_disk != "always":
        quick = _quick(rows, dim, budget)
        if quick is not None:
            return quick
    return _smallest_need(rows, dim, config, budget)


def lists_for(rows: int) -> str:
    """Return the factory's beginning: how many lists, and how the nearest of them are found.

    About twice the square root of the rows, a power of two, balances finding the lists against scanning them, and
    never so many that k-means would see too few rows for each.
    """
    lists: int = 2 ** round(math.log2(2 * math.sqrt(max(rows, 1))))
    while lists > 1 and rows < lists * _MIN_ROWS_PER_LIST:
        lists //= 2
    return f"IVF{lists}_HNSW32" if lists >= _GRAPH_OVER_LISTS_FROM else f"IVF{lists}"


def budget_bytes(config: IndexConfig) -> int:
    """Return how much memory may be used."""
    return int(config.memory_gib * _GIB) if config.memory_gib is not None else int(_FREE_SHARE * free_memory())


def free_memory() -> int:
    """Return the bytes that this process may still take: of the machine, or of the container that it runs in."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(most) - used)) if most.isdigit() else free


def gib(size: float) -> str:
    """Show a size."""
    if size < _GIB / 10:
        return f"{size / (1 << 20):.1f} MiB"
    return f"{size / _GIB:.2f} GiB" if size < 10 * _GIB else f"{size / _GIB:,.0f} GiB"


def _smallest_need(rows: int, dim: int, config: IndexConfig, budget: int) -> Choice:
    """Go down the ladder until something fits; below what reaches the wanted recall lies the disk."""
    lists = lists_for(rows)
    passed = []
    for codes in LADDER if config.on_disk != "always" else ():
        if codes.reaches < config.wanted_recall and config.on_disk == "auto":
            passed.append(f"coarser codes do not reach a recall of {config.wanted_recall:g}")
            break
        try:
            sized = _sized(f"{lists},{codes.name}", rows, dim)
        except UserError:  # an older FAISS does not know it
            continue
        if sized.memory_bytes <= budget:
            passed.append(f"{codes.name} codes fit, with {gib(sized.memory_bytes)} for all that works on them")
            return _explained(sized, "; ".join(passed))
        passed.append(f"{gib(sized.memory_bytes)} with {codes.name} exceed the budget of {gib(budget)}")
    if config.on_disk == "never":
        raise UserError(
            f"{rows:,} vectors of {dim} dimensions do not fit: {'; '.join(passed)}; give more memory (--memory-gib), "
            "or let the lists lie on disk"
        )
    choice = _on_disk(_sized(f"{lists},SQfp16", rows, dim), rows, dim)
    if choice.memory_bytes > budget:
        raise UserError(
            f"even with its lists on disk an index of {rows:,} vectors takes {gib(choice.memory_bytes)} of memory, "
            f"and the budget is {gib(budget)}; give more (--memory-gib)"
        )
    passed.append(f"so float16 codes, which lose nothing, stay on disk: {gib(choice.bytes)}")
    return _explained(choice, "; ".join(passed) if len(passed) > 1 else "the lists shall lie on disk")


def _quick(rows: int, dim: int, budget: int) -> Choice | None:
    """Return what searches quickest, where it fits: a graph, or lists whose codes are scanned in registers."""
    graph = _sized("HNSW32,SQfp16", rows, dim)
    if rows <= _MOST_GRAPH_ROWS and graph.memory_bytes <= budget:
        return _explained(graph, f"a graph answers quickest, and takes {gib(graph.memory_bytes)}")
    if dim % 2:
        return None
    scanned = _sized(f"{lists_for(rows)},PQ{dim // 2}x4fs,Refine(SQfp16)", rows, dim)
    if scanned.memory_bytes > budget:
        return None
    cause = (
        f"{gib(graph.memory_bytes)} of a graph exceed the budget of {gib(budget)}"
        if graph.memory_bytes > budget
        else f"a graph of {rows:,} rows takes too long to build"
    )
    return _explained(scanned, f"{cause}; 4-bit codes are scanned in registers and the best scored again by float16")


def _given(rows: int, dim: int, config: IndexConfig, budget: int) -> Choice:
    sized = _sized(config.factory, rows, dim)
    over = sized.memory_bytes > budget
    probe = _empty(config.factory, rows, dim)
    able = inverted(probe) is not None and not blocked_lists(probe) and "Refine" not in config.factory
    if config.on_disk == "always" and not able:
        raise UserError(
            f"index.factory {config.factory!r} cannot lie on disk: only inverted lists with plain codes can, such as "
            f"{lists_for(rows)},SQfp16"
        )
    if config.on_disk == "always" or (config.on_disk == "auto" and over and able):
        cause = f"; {gib(sized.memory_bytes)} exceed the budget of {gib(budget)}: on disk" if over else "; on disk"
        return _explained(_on_disk(sized, rows, dim), f"as given{cause}")
    if over and config.memory_gib is not None:
        raise UserError(
            f"index.factory {config.factory!r} takes {gib(sized.memory_bytes)} for {rows:,} vectors of {dim} "
            f"dimensions, and the budget is {gib(budget)}; give more memory (--memory-gib), or a factory of less"
        )
    return _explained(sized, "as given")


def _sized(factory: str, rows: int, dim: int) -> Choice:
    empty = _empty(factory, rows, dim)
    size = rows * row_bytes(empty) + fixed_bytes(empty)
    return Choice(factory=factory, on_disk=False, bytes=size, memory_bytes=size + WORKING_BYTES, why="")


def _on_disk(choice: Choice, rows: int, dim: int) -> Choice:
    return replace(choice, on_disk=True, memory_bytes=fixed_bytes(_empty(choice.factory, rows, dim)) + WORKING_BYTES)


def _explained(choice: Choice, why: str) -> Choice:
    return replace(choice, why=f"{choice.factory}{' on disk' if choice.on_disk else ''}: {why}")


def _empty(factory: str, rows: int, dim: int) -> faiss.Index:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:  # FAISS's only exception
        raise UserError(
            f"index.factory {factory!r} cannot be built on {rows} vectors of {dim}: {reason(error)}"
        ) from error
