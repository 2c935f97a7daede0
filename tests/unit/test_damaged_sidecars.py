"""Invariant 9: wrong sidecars of a sound shard are mended, and none ever vouches for a damaged one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import ShardCorruptError
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.sidecar import sidecar_path
from data_shards.writer import ShardWriter
from tests.unit.damaged import (
    CRC,
    END,
    ROWS,
    SHA,
    SHARD,
    SIDECARS,
    SPAN,
    Harm,
    assert_raises,
    overwrite,
    pair,
)


def foreign_sidecar(path: Path) -> None:
    """Put that of another dataset's shard in its place: as long, with other values."""
    folder = path.parent.parent / "other"
    if not folder.exists():
        with ShardWriter(folder, "pairs", samples_per_shard=ROWS) as writer:
            for number in range(12):
                writer.add(pair(number, "other" + "z" * 500 * (number % 2)))
    shutil.copy(folder / path.name, path)


SIDECAR_HARMS: dict[str, Harm] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b"") and None,
    "odd": lambda path: path.write_bytes(path.read_bytes() + b"?") and None,
    "short": lambda path: path.write_bytes(path.read_bytes()[:-8]) and None,
    "long": lambda path: path.write_bytes(path.read_bytes() + bytes(8)) and None,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 4]) + path.read_bytes()[1:]) and None,
    "another shard's": foreign_sidecar,
}


@pytest.mark.parametrize("harm", SIDECAR_HARMS.values(), ids=SIDECAR_HARMS)
@pytest.mark.parametrize("ending", SIDECARS)
@pytest.mark.parametrize("quarantined", [False, True], ids=["error", "quarantine"])
def test_a_wrong_sidecar_of_a_sound_shard_is_mended(place: Path, harm: Harm, ending: str, quarantined: bool) -> None:
    path = place / f"{SHARD}{ending}"
    right = path.read_bytes()
    positives = [pair(number).first_positive_hash for number in range(12)]
    for read in ("forward", "ordinal", "positives"):
        path.write_bytes(right)
        harm(path)
        quarantine = Quarantine(place.parent / "q.jsonl") if quarantined else None
        dataset = PairDataset(place, quarantine=quarantine)
        if read == "forward":
            assert list(dataset) == [pair(number) for number in range(12)]
        elif read == "ordinal":
            assert dataset.pairs([7, 5, 4, 6]) == [pair(number) for number in (7, 5, 4, 6)]
        else:
            assert dataset._shards.positive_hashes(np.arange(12)).tolist() == positives
        if (read == "positives") == (ending == ".pos"):
            assert path.read_bytes() == right
        assert quarantine is None or quarantine.places == 0


def test_offsets_that_leave_a_border_out_are_mended(place: Path) -> None:
    """A sidecar that ends where the shard does, and rises: only the count tells."""
    path = sidecar_path(place / SHARD)
    right = path.read_bytes()
    path.write_bytes(np.array([0, 3072, 4608, END], dtype="<u8").tobytes())
    assert PairDataset(place).pairs([5]) == [pair(5)]
    assert path.read_bytes() == right


def test_offsets_of_a_shard_with_as_many_samples_are_mended(place: Path) -> None:
    """A sidecar of which nothing shows that it is wrong, until a sample's checksum does not match."""
    path = sidecar_path(place / SHARD)
    right = path.read_bytes()
    path.write_bytes(np.array([0, 512, 3072, 4608, END], dtype="<u8").tobytes())
    assert PairDataset(place).pairs([7, 4]) == [pair(7), pair(4)]
    assert path.read_bytes() == right


@pytest.mark.parametrize("gone", [(".crc",), SIDECARS], ids=["checksums gone", "all gone"])
def test_no_sidecar_vouches_for_damage(place: Path, gone: tuple[str, ...]) -> None:
    """One made of a harmed shard would make its damage the rule."""
    for ending in (".pos", *gone):
        (place / f"{SHARD}{ending}").unlink(missing_ok=True)
    overwrite(SPAN + 1400, b"y")(place / SHARD)
    for _ in range(2):
        assert_raises(place, 0, SHA)
    assert not sidecar_path(place / SHARD, "crc").exists()
    dataset = PairDataset(place, quarantine=Quarantine(place.parent / "q.jsonl"))
    assert dataset._shards.positive_hashes(np.arange(4, 8)).tolist() == [0] * 4
    assert not sidecar_path(place / SHARD, "pos").exists()


def test_the_order_is_not_computed_from_a_damaged_shard(place: Path) -> None:
    """Another node, whose copy is sound, would compute another one."""
    (place / f"{SHARD}.pos").unlink()
    overwrite(SPAN + 1400, b"y")(place / SHARD)
    with pytest.raises(ShardCorruptError, match=CRC):
        PairDataset(place)._shards.positive_hashes(np.arange(12))
    dataset = PairDataset(place, quarantine=Quarantine(place.parent / "q.jsonl"))
    wanted = [0 if number == 5 else pair(number).first_positive_hash for number in range(12)]
    assert dataset._shards.positive_hashes(np.arange(12)).tolist() == wanted
    assert not (place / f"{SHARD}.pos").exists()
