"""Shards numbered through over one dataset or several, local or remote, opened late and let go of early."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import Manifest
from data_shards.order import OrderConfig
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.samples import text_hash
from data_shards.shard_set import PAIRS, ShardSet, Stored
from data_shards.sidecar import load_offsets
from data_shards.storage import CacheConfig, FetchStats, LocalFolder
from encoder.model import Encoder
from tests.unit.tiny import pair, passage, write_pairs
from train.batches import BatchConfig, BatchLoader


class Afar:
    """A remote dataset whose files happen to be near; it notes what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.location = f"afar://{folder.name}"
        self.fetched = FetchStats()
        self.held: list[str] = []
        self.asked: list[list[str]] = []
        self._folder = LocalFolder(folder)

    def read(self, name: str) -> bytes:
        return self._folder.read(name)

    def local(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        return self._folder.local(name)

    def hold(self, name: str, *, size: int | None = None, sha256: str | None = None) -> AbstractContextManager[Path]:
        assert size is not None
        assert sha256 is not None, "so that it is verified on its way"
        self.held.append(name)
        return nullcontext(self._folder.local(name))

    def try_local(self, name: str) -> Path | None:
        return self._folder.try_local(name)

    def prefetch(self, names: Sequence[tuple[str, int | None, str | None]]) -> None:
        self.asked.append([name for name, _, _ in names])

    def close(self) -> None:
        pass


def afar(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> dict[str, Afar]:
    """Have these folders opened as remote ones."""
    storages = {str(folder): Afar(folder) for folder in folders}
    monkeypatch.setattr("data_shards.reader.open_storage", lambda location, cache: storages[str(location)])
    return storages


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two datasets: pairs 0 to 9 in three shards, and 100 to 105 in two."""
    write_pairs(tmp_path / "a", (pair(number) for number in range(10)))
    write_pairs(tmp_path / "b", (pair(number) for number in range(100, 106)), samples_per_shard=3)
    return [tmp_path / "a", tmp_path / "b"]


def test_ordinals_go_on_from_one_dataset_to_the_next(two: list[Path]) -> None:
    dataset = PairDataset(two)
    assert len(dataset) == 16
    assert dataset.pairs([9, 10, 15, 0]) == [pair(9), pair(100), pair(105), pair(0)]
    assert list(dataset) == [pair(number) for number in (*range(10), *range(100, 106))]
    shards, rows = dataset.locate([9, 10, 15, 0])
    assert (shards.tolist(), rows.tolist()) == ([2, 3, 4, 0], [1, 0, 2, 0])
    assert [dataset.shard_stems[shard] for shard in shards] == [
        "00-train-000002",
        "01-train-000000",
        "01-train-000001",
        "00-train-000000",
    ]
    assert [dataset.key(ordinal) for ordinal in (0, 9, 10, 15)] == [
        "000000000",
        "000000009",
        "000000000",
        "000000005",
    ]
    with pytest.raises(IndexError, match=rf"ordinals 3 to 16 of 16 samples in {two[0]}, {two[1]}$"):
        dataset.pairs([3, 16])


def test_one_dataset_alone_has_plain_stems_and_its_own_id(two: list[Path]) -> None:
    alone, listed, both = PairDataset(two[0]), PairDataset(two[:1]), PairDataset(two)
    assert alone.shard_stems == listed.shard_stems == ["train-000000", "train-000001", "train-000002"]
    assert alone.dataset_id == listed.dataset_id == Manifest.load(two[0]).dataset_id
    assert len({alone.dataset_id, both.dataset_id, PairDataset(two[::-1]).dataset_id}) == 3


def test_positives_of_all_datasets_are_known_without_opening_a_shard(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    storages = afar(monkeypatch, *two)
    dataset = PairDataset(two)
    hashes = dataset._shards.positive_hashes(np.array([12, 3, 9]))
    assert hashes.tolist() == [text_hash(f"passage p{number}") for number in (102, 3, 9)]
    assert [storage.held for storage in storages.values()] == [[], []]


def test_a_remote_shard_is_opened_while_it_is_held(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    storages = afar(monkeypatch, *two)
    dataset = PairDataset(two)
    assert dataset.is_remote
    assert dataset.location == "afar://a, afar://b"
    assert dataset.pairs([4, 10, 5]) == [pair(4), pair(100), pair(5)]
    assert [storage.held for storage in storages.values()] == [["train-000001.tar"], ["train-000000.tar"]]


def test_what_comes_up_first_is_fetched_first(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    storages = afar(monkeypatch, *two)
    PairDataset(two).prefetch(np.array([8, 10, 1, 15, 9, 0]))
    assert [storage.asked for storage in storages.values()] == [
        [["train-000002.tar", "train-000000.tar"]],
        [["train-000000.tar", "train-000001.tar"]],
    ]


def test_a_damage_of_the_whole_shard_is_found_once(two: list[Path], tmp_path: Path) -> None:
    """Each of its pairs is skipped, in every epoch; the shard is not walked again and again."""
    (two[0] / "train-000001.tar").write_bytes(b"")
    for ending in (".idx", ".crc"):
        (two[0] / f"train-000001.tar{ending}").unlink()
    quarantine = Quarantine(tmp_path / "q.jsonl")
    manifest = Manifest.load(two[0])
    shards = ShardSet([Stored(LocalFolder(two[0]), manifest)], PAIRS, quarantine)
    for _ in range(2):
        assert shards.read(range(10))[0].tolist() == [0, 1, 2, 3, 8, 9]
    with pytest.raises(ShardCorruptError, match="came an empty file") as first:
        shards.reader(1)
    with pytest.raises(ShardCorruptError) as second:
        shards.reader(1)
    assert first.value is second.value
    assert quarantine.places == 1


@pytest.mark.parametrize("damaged", [[0], [15, 16], [3, 4, 39], list(range(40))])
def test_of_many_pairs_of_one_shard_the_damaged_alone_are_left_out(tmp_path: Path, damaged: list[int]) -> None:
    """They are read some at a time; one that is damaged does no harm to these."""
    write_pairs(tmp_path / "a", (pair(number) for number in range(40)), samples_per_shard=40)
    shard = next((tmp_path / "a").glob("*.tar"))
    offsets = load_offsets(shard).tolist()
    content = bytearray(shard.read_bytes())
    for number in damaged:
        content[offsets[number] + 520] ^= 1
    shard.write_bytes(content)
    dataset = PairDataset(tmp_path / "a", quarantine=Quarantine(tmp_path / "q.jsonl"))
    asked = [*range(39, -1, -1), 7]
    sound = [number for number in asked if number not in damaged]
    found, pairs = dataset.sound_pairs(asked)
    assert (found.tolist(), pairs) == (sound, [pair(number) for number in sound])
    rows = [json.loads(line)["row"] for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert rows == sorted(damaged, reverse=True)
    with pytest.raises(ShardCorruptError, match=f"at byte {offsets[max(damaged)]}:"):
        PairDataset(tmp_path / "a").pairs(asked)


def test_a_damaged_pair_asked_for_by_itself_is_an_error(two: list[Path], tmp_path: Path) -> None:
    (two[0] / "train-000001.tar").unlink()
    dataset = PairDataset(two[0], quarantine=Quarantine(tmp_path / "q.jsonl"))
    with pytest.raises(UserError, match=r"^pair 5 of .*a is damaged; the quarantine file says how$"):
        dataset.pair(5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"^1 data\.weights came for 2 data\.pairs; wanted one each, or none$"),
        ((1.0, 0.0), r"^data\.weights are 1\.0, 0\.0; each must be a number above 0$"),
        ((1.0, float("nan")), r"^data\.weights are 1\.0, nan; each must be a number above 0$"),
        ((float("inf"), 1.0), r"^data\.weights are inf, 1\.0; each must be a number above 0$"),
    ],
)
def test_weights_that_say_nothing_are_refused(two: list[Path], weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PairDataset(two, weights=weights)


def test_no_dataset_is_refused() -> None:
    with pytest.raises(UserError, match="^no dataset of pairs is named; give one at least$"):
        PairDataset([])


def test_datasets_are_mixed_by_weight(two: list[Path]) -> None:
    """Given weights come before those of the manifests."""
    order = PairDataset(two, weights=(1, 3)).order(batch_size=4, seed=0)
    batches = [order.batch(step) for step in range(32)]
    assert abs(sum(int((batch >= 10).sum()) for batch in batches) - 96) <= 2
    assert PairDataset(two).weights == (1.0, 1.0)
    whole = PairDataset(two).order(batch_size=4, seed=0, config=OrderConfig(mixing="batches"))
    assert {len(set((whole.batch(step) >= 10).tolist())) for step in range(20)} == {1}


# --- what a rank asks for ahead --------------------------------------------------------------------------------


def loader(dataset: PairDataset, encoder: Encoder, rank: int, world: int) -> BatchLoader:
    order = dataset.order(batch_size=8, seed=0, config=OrderConfig(lanes=8))
    return BatchLoader(
        dataset=dataset, order=order, encoder=encoder, config=BatchConfig(batch_size=8), rank=rank, world=world
    )


def test_a_rank_asks_for_the_shards_of_its_own_lanes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    """Sixteen shards, eight lanes, four ranks: in an epoch each asks for four, and those that a border cuts."""
    write_pairs(tmp_path / "p", (pair(number) for number in range(16 * 20)), samples_per_shard=20)
    asked: list[set[str]] = []
    for rank in range(4):
        (storage,) = afar(monkeypatch, tmp_path / "p").values()
        batches = loader(PairDataset(tmp_path / "p"), encoder, rank, 4)
        for (batch,) in batches.steps(0, 40):  # an epoch
            assert batch.skipped == 0
        assert len(storage.asked) == 2, "at the first step and at step 32"
        assert set(storage.held) <= {name for names in storage.asked for name in names}, "all were asked for before"
        assert len(storage.held) == len(set(storage.held)) <= 4 + 2
        asked.append(set(storage.asked[0]))
    assert max(map(len, asked)) <= 4 + 2
    assert len(set().union(*asked)) == 16


def test_a_local_dataset_is_not_asked_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    dataset = write_pairs(tmp_path / "p", (pair(number) for number in range(16)))
    monkeypatch.setattr(dataset, "prefetch", lambda ordinals: pytest.fail("nothing is to be fetched"))
    assert len(list(loader(dataset, encoder, 0, 2).steps(0, 2))) == 2


def test_pairs_are_read_from_afar_as_from_near(tmp_path: Path, encoder: Encoder) -> None:
    """Through fsspec's memory and the cache: the same pairs and the same order."""
    fsspec = pytest.importorskip("fsspec")
    near = write_pairs(
        tmp_path / "p", (pair(number, positives=(passage(f"p{number // 2}"),)) for number in range(24))
    )
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "p"), "/shard-set-test/p", recursive=True)
    cache = CacheConfig(dir=str(tmp_path / "cache"))
    try:
        remote = PairDataset("memory://shard-set-test/p", cache=cache)
        assert remote.is_remote
        assert remote.dataset_id == near.dataset_id
        assert list(remote) == list(near)
        one, other = (loader(dataset, encoder, 1, 2) for dataset in (near, remote))
        for (mine,), (theirs,) in zip(one.steps(0, 6), other.steps(0, 6), strict=True):
            assert mine.labels.query_hash_b.tolist() == theirs.labels.query_hash_b.tolist()
    finally:
        memory.rm("/shard-set-test", recursive=True)
