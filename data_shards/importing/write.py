"""The last phase of an import: segments, without what repeats, become shards, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import allocate
from data_shards.cleaning.config import CleaningConfig
from data_shards.importing.repeats import OTHER, SAME, mark_repeats
from data_shards.importing.segments import Segment
from data_shards.manifest import Kind
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter

_PROGRESS_EVERY = 1000
_NO_MARKS = np.empty(0, dtype=np.uint8)

Marks = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Drops:
    """What goes, numbered through all segments."""

    repeats: Marks
    """By position: `SAME` or `OTHER` (see `repeats`), else 0. A file mapped into memory."""
    near: NDArray[np.bool_] | None
    """By sample: nearly the same as an earlier one. None where that was not looked for."""


def find_drops(segments: Sequence[Segment], work: Path, cleaning: CleaningConfig) -> Drops:
    """Find exact repetitions, and near-duplicates where that is asked for, over all segments."""
    positions = sum(segment.positions for segment in segments)
    marks = _mapped_marks(work / "repeats.u8", positions) if positions else _NO_MARKS
    mark_repeats((segment.keys(work) for segment in segments), marks)
    near = None
    if cleaning.near_duplicates:
        from data_shards.cleaning.near_duplicates import near_duplicate_rows

        # Where each row is a position, as passages are: what goes already must not take its near-duplicates along.
        gone = np.asarray(marks != 0) if positions == sum(segment.rows for segment in segments) else None
        near = near_duplicate_rows([segment.signatures(work) for segment in segments], cleaning, gone=gone)
    return Drops(repeats=marks, near=near)


def _mapped_marks(place: Path, positions: int) -> Marks:
    """Map a file of zeros into memory, its room on the disk taken: a full one would end this process by SIGBUS."""
    with open(place, "wb") as file:
        allocate(file, positions)
    return np.memmap(place, dtype=np.uint8, mode="r+")


def conflicts(segments: Sequence[Segment], work: Path, drops: Drops) -> Iterator[tuple[str, Passage]]:
    """Yield (input, passage) for every passage whose id names another one before it."""
    position = 0
    for segment in segments:
        marks = drops.repeats[position : position + segment.positions]
        position += segment.positions
        if not (marks == OTHER).any():
            continue
        for line, mark in zip(segment.samples(work), marks.tolist(), strict=True):
            if mark == OTHER:
                yield segment.source, Passage.from_json(line)


def write_samples(
    writer: ShardWriter,
    segments: Sequence[Segment],
    work: Path,
    drops: Drops,
    counts: Counter[str],
    tick: Callable[[int, int], None],
) -> None:
    """Add every sample that stays to the writer; what goes is counted."""
    keep = _kept_pair if writer.kind == "pairs" else _kept_passage
    total = sum(segment.rows for segment in segments)
    row = position = 0
    for segment in segments:
        marks = np.array(drops.repeats[position : position + segment.positions])
        near = drops.near[row : row + segment.rows] if drops.near is not None else np.zeros(segment.rows, bool)
        at = 0
        for line, is_near in zip(segment.samples(work), near.tolist(), strict=True):
            sample = _decode(writer.kind, line)
            size = len(sample.positives) if isinstance(sample, Pair) else 1
            kept = keep(sample, marks[at : at + size], is_near, counts)
            at += size
            if kept is not None:
                writer.add(kept)
                counts[f"{_noun(writer.kind)}_kept"] += 1
            row += 1
            if row % _PROGRESS_EVERY == 0 or row == total:
                tick(row, total)
        position += segment.positions


def _decode(kind: Kind, line: bytes) -> Pair | Passage:
    return Pair.from_json(line) if kind == "pairs" else Passage.from_json(line)


def _noun(kind: Kind) -> str:
    return "pairs" if kind == "pairs" else "passages"


def _kept_pair(sample: Pair | Passage, marks: Marks, is_near: bool, counts: Counter[str]) -> Pair | None:
    """Return a pair without the positives that its query had before."""
    assert isinstance(sample, Pair)
    repeated = int(np.count_nonzero(marks))
    counts["repeated_positive"] += repeated
    if repeated == len(marks):
        counts["pair_without_positive"] += 1
        return None
    if is_near:
        counts["near_duplicate"] += 1
        return None
    return sample.keeping(np.flatnonzero(marks == 0).tolist()) if repeated else sample


def _kept_passage(sample: Pair | Passage, marks: Marks, is_near: bool, counts: Counter[str]) -> Passage | None:
    assert isinstance(sample, Passage)
    if marks[0]:
        counts["repeated_passage"] += int(marks[0] == SAME)  # the others are in quarantine, and counted there
        return None
    if is_near:
        counts["near_duplicate"] += 1
        return None
    return sample
