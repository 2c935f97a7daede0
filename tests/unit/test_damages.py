"""Invariant 9, *nothing is lost silently*: every damage of a shard, and what becomes of it.

A dataset of three shards with four pairs each, the second one harmed. Without a quarantine reading it, forward or by
ordinal, raises with shard and offset. With one every sound sample comes out, and the file says what did not. Where a
shard's sidecars are lost as well, nothing tells which of its samples are sound: it is left out as a whole.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from data_shards.errors import ShardCorruptError
from data_shards.manifest import Manifest
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from tests.unit.damaged import (
    CRC,
    END,
    ROWS,
    SHA,
    SHARD,
    SIDECARS,
    SIZE,
    SOUND,
    SPAN,
    WHOLE_SHARD,
    Found,
    Harm,
    assert_raises,
    assert_skips,
    forget_sidecars,
    lines,
    overwrite,
    pair,
    write_pairs,
)


def cut(size: int) -> Harm:
    return lambda path: os.truncate(path, size)


def swap(*, tail: int = 600, sidecars: bool = False) -> Harm:
    """Put another dataset's shard in its place, of the same size where its texts are as long."""

    def harm(path: Path) -> None:
        folder = write_pairs(path.parent.parent / "foreign", "foreign", tail)
        for ending in ("", *SIDECARS) if sidecars else ("",):
            shutil.copy(folder / f"{path.name}{ending}", path.parent / f"{path.name}{ending}")

    return harm


def huge_header(path: Path) -> None:
    """Have the second sample's header say nine GiB, its checksum right."""
    header = bytearray(path.read_bytes()[SPAN : SPAN + 512])
    header[124:136] = b"\x80" + (9 << 30).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    overwrite(SPAN, bytes(header))(path)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A damage, and what comes of it with the shard's sidecars beside it, and without."""

    harm: Harm
    error: tuple[int, str]
    """Offset and message where nothing may be lost."""
    bare_error: tuple[int, str]
    """The same without sidecars."""
    lost: list[Found] = field(default_factory=list)
    """What a quarantine then holds; the pairs of all other rows come out."""
    bare_lost: list[Found] = field(default_factory=list)
    """The same without sidecars."""


ENDS = f"the file ends here, the manifest says at {SIZE}"
MISSING = "the shard is missing, though the manifest names it; copy the dataset again or make it anew"

CASES = {
    "cut inside a header": Case(
        harm=cut(2 * SPAN + 100),
        error=(2 * SPAN + 100, ENDS),
        bare_error=(2 * SPAN + 100, ENDS),
        lost=[(2, 2 * SPAN), (3, 3 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "cut between two samples": Case(
        harm=cut(2 * SPAN),
        error=(2 * SPAN, ENDS),
        bare_error=(2 * SPAN, ENDS),
        lost=[(2, 2 * SPAN), (3, 3 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "cut inside a payload": Case(
        harm=cut(2 * SPAN + 900),
        error=(2 * SPAN + 900, ENDS),
        bare_error=(2 * SPAN + 900, ENDS),
        lost=[(2, 2 * SPAN), (3, 3 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "cut inside the end blocks, which loses no sample": Case(
        harm=cut(END + 512),
        error=(END + 512, ENDS),
        bare_error=(END + 512, ENDS),
        bare_lost=[(WHOLE_SHARD, END)],
    ),
    "cut to nothing": Case(
        harm=cut(0),
        error=(0, ENDS),
        bare_error=(0, ENDS),
        lost=[(row, row * SPAN) for row in range(ROWS)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "a corrupt header": Case(
        harm=overwrite(SPAN + 5, b"?"),
        error=(SPAN, "corrupt header: its checksum does not match"),
        bare_error=(SPAN, "corrupt header: its checksum does not match"),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, SPAN)],
    ),
    "a zeroed header": Case(
        harm=overwrite(SPAN, bytes(512)),
        error=(SPAN, "wanted the header of a member, came a zeroed block"),
        bare_error=(SPAN, f"a zeroed header, .* data go on at byte {SPAN + 512}"),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, SPAN)],
    ),
    "a zeroed kilobyte across two samples": Case(
        harm=overwrite(2 * SPAN - 512, bytes(1024)),
        error=(SPAN, CRC),
        bare_error=(2 * SPAN, f"a zeroed header, .* data go on at byte {2 * SPAN + 512}"),
        lost=[(1, SPAN), (2, 2 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "a flipped bit in a payload, still JSON": Case(
        harm=overwrite(SPAN + 1400, b"y"),
        error=(SPAN, CRC),
        bare_error=(0, SHA),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "a header that says 9 GiB": Case(
        harm=huge_header,
        error=(SPAN, f"its member of {9 << 30} bytes runs past the end: truncated"),
        bare_error=(SPAN, f"its member of {9 << 30} bytes runs past the end: truncated"),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, SPAN)],
    ),
    "a missing shard": Case(
        harm=Path.unlink,
        error=(0, MISSING),
        bare_error=(0, MISSING),
        lost=[(WHOLE_SHARD, 0)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's shard of the same size": Case(
        harm=swap(),
        error=(0, CRC),
        bare_error=(0, SHA),
        lost=[(row, row * SPAN) for row in range(ROWS)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's shard of the same size, with its sidecars": Case(
        harm=swap(sidecars=True),
        error=(0, SHA),
        bare_error=(0, SHA),
        lost=[(WHOLE_SHARD, 0)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's larger shard": Case(
        harm=swap(tail=1600),
        error=(SIZE + ROWS * 1024, ENDS),
        bare_error=(SIZE + ROWS * 1024, ENDS),
        lost=[(row, row * SPAN) for row in range(ROWS)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's smaller shard, with its sidecars": Case(
        harm=swap(tail=100, sidecars=True),
        error=(SIZE - ROWS * 512, ENDS),
        bare_error=(SIZE - ROWS * 512, ENDS),
        lost=[(WHOLE_SHARD, 0)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's larger shard, with its sidecars": Case(
        harm=swap(tail=1600, sidecars=True),
        error=(SIZE + ROWS * 1024, ENDS),
        bare_error=(SIZE + ROWS * 1024, ENDS),
        lost=[(WHOLE_SHARD, 0)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_nothing_is_lost_silently(place: Path, case: Case, bare: bool) -> None:
    if bare:
        forget_sidecars(place / SHARD)
    case.harm(place / SHARD)
    assert_raises(place, *(case.bare_error if bare else case.error))
    if bare:
        forget_sidecars(place / SHARD)
    assert_skips(place, case.bare_lost if bare else case.lost)


def test_the_sound_samples_of_a_damaged_shard_are_read_without_a_quarantine(place: Path) -> None:
    overwrite(SPAN + 1400, b"y")(place / SHARD)
    assert PairDataset(place).pairs([4, 6, 7, 0]) == [pair(number) for number in (4, 6, 7, 0)]


@pytest.mark.parametrize("samples", [3, 5])
@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_a_wrong_count_in_the_manifest_is_named(place: Path, samples: int, bare: bool) -> None:
    """Which of its ordinals are the shard's then nobody can say: with a quarantine it is left out as a whole."""
    manifest = Manifest.load(place)
    shards = [*manifest.shards]
    shards[1] = replace(shards[1], samples=samples)
    replace(manifest, shards=shards).save(place)
    if bare:
        forget_sidecars(place / SHARD)
    message = f"{SHARD} at byte {END}: {ROWS} samples, the manifest says {samples}$"
    for read in (list, lambda dataset: dataset.pairs([4])):
        with pytest.raises(ShardCorruptError, match=message):
            read(PairDataset(place))
    quarantine = Quarantine(place.parent / "q.jsonl")
    dataset = PairDataset(place, quarantine=quarantine)
    assert list(dataset) == dataset.pairs(range(len(dataset))) == [pair(number) for number in SOUND]
    assert [(line["row"], line["offset"]) for line in lines(quarantine.path)] == [(WHOLE_SHARD, END)]
