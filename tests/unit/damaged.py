"""A dataset to harm, and what is asked of whoever reads it afterwards."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import ShardCorruptError
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter

ROWS = 4
SPAN = 1536  # of each sample: a header, and two blocks of payload
END = ROWS * SPAN
SIZE = END + 1024
SHARD = "train-000001.tar"
SOUND = [*range(4), *range(8, 12)]  # ordinals of the other two shards
SIDECARS = (".idx", ".crc", ".pos")

Harm = Callable[[Path], None]
Found = tuple[int | None, int]
"""A line of the quarantine file: row, offset."""
WHOLE_SHARD = None
CRC = "the sample's bytes do not match its checksum"
SHA = "its sha256 is .*, the manifest says"


def pair(number: int, word: str = "passage", tail: int = 600) -> Pair:
    positive = Passage(id=f"p{number:02d}", text=f"{word} {number:02d} " + "x" * tail)
    return Pair(query_id=f"q{number:02d}", query=f"query {number:02d}", positives=(positive,))


def write_pairs(folder: Path, word: str = "passage", tail: int = 600) -> Path:
    with ShardWriter(folder, "pairs", samples_per_shard=ROWS) as writer:
        for number in range(12):
            writer.add(pair(number, word, tail))
    return folder


@functools.cache
def _files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        return {path.name: path.read_bytes() for path in write_pairs(Path(place) / "pairs").iterdir()}


def sound_dataset(folder: Path) -> Path:
    """Lay the dataset down: three shards of four pairs each, as `ShardWriter` writes them."""
    folder.mkdir()
    for name, content in _files().items():
        (folder / name).write_bytes(content)
    return folder


def overwrite(offset: int, data: bytes) -> Harm:
    def harm(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    return harm


def forget_sidecars(path: Path) -> None:
    for ending in SIDECARS:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def lines(quarantine: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.exists() else []


def sound_of(lost: Iterable[Found]) -> list[int]:
    """Return the ordinals that come out."""
    rows = [row for row, _ in lost]
    left = [] if WHOLE_SHARD in rows else [ROWS + row for row in range(ROWS) if row not in rows]
    return sorted([*SOUND, *left])


def assert_raises(place: Path, offset: int, message: str) -> None:
    """Read a fresh dataset, forward and by ordinal: both say the same."""
    for read in (list, lambda dataset: dataset.pairs(range(12))):
        with pytest.raises(ShardCorruptError, match=message) as caught:
            read(PairDataset(place))
        assert (caught.value.path, caught.value.offset) == (place / SHARD, offset)


def assert_skips(place: Path, lost: list[Found]) -> None:
    """Read a fresh dataset with a quarantine, forward and by ordinal, for two epochs."""
    wanted = sound_of(lost)
    for name in ("forward", "ordinal"):
        quarantine = Quarantine(place.parent / f"{name}.jsonl")
        dataset = PairDataset(place, quarantine=quarantine)
        for _ in range(2):
            if name == "forward":
                assert list(dataset) == [pair(number) for number in wanted]
                continue
            ordinals, pairs = dataset.sound_pairs(list(range(11, -1, -1)))
            assert ordinals.tolist() == wanted[::-1]
            assert pairs == [pair(number) for number in wanted[::-1]]
            assert dataset.sound(np.arange(12)).tolist() == wanted
        found = lines(quarantine.path)
        assert [line["shard"] for line in found] == [str(place / SHARD)] * len(lost)
        assert sorted((line["row"], line["offset"]) for line in found) == sorted(lost)
        assert quarantine.places == len(lost)
