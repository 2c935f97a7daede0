"""Datasets as folders: written whole or not at all, the same bytes each time, read with nothing lost in silence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from data_shards import shard_reader, shard_set
from data_shards.atomic import sha256_file
from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import Manifest
from data_shards.reader import CorpusDataset, PairDataset, open_dataset
from data_shards.samples import Pair, Passage
from data_shards.shard_reader import ShardReader
from data_shards.sidecar import load_crcs, load_offsets, save_sidecar
from data_shards.tar import write_tar
from data_shards.writer import ShardWriter


def pair(number: int) -> Pair:
    positive = Passage(id=f"p{number}", title=f"Title {number}", text=f"Über passage {number}.")
    return Pair(query_id=f"q{number}", query=f"what is {number}?", positives=(positive,), source="test")


def write_pairs(folder: Path, count: int = 25, samples_per_shard: int = 10) -> Manifest:
    with ShardWriter(folder, "pairs", samples_per_shard=samples_per_shard) as writer:
        for number in range(count):
            writer.add(pair(number))
    assert writer.manifest is not None
    return writer.manifest


def write_corpus(folder: Path, count: int = 25) -> None:
    with ShardWriter(folder, "corpus", samples_per_shard=10) as writer:
        for number in range(count):
            writer.add(pair(number).positives[0])


def flip(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs")
    return tmp_path / "pairs"


def test_a_dataset_is_shards_sidecars_and_a_manifest(pairs: Path) -> None:
    names = [f"train-00000{at}.tar{end}" for at in range(3) for end in ("", ".crc", ".idx", ".pos")]
    assert sorted(path.name for path in pairs.iterdir()) == ["manifest.json", *names]
    manifest = Manifest.load(pairs)
    assert [entry.samples for entry in manifest.shards] == [10, 10, 5]
    assert [entry.sha256 for entry in manifest.shards] == [
        sha256_file(pairs / entry.path) for entry in manifest.shards
    ]
    assert [entry.bytes for entry in manifest.shards] == [(pairs / e.path).stat().st_size for e in manifest.shards]


def test_two_runs_give_the_same_bytes_and_the_same_id(pairs: Path, tmp_path: Path) -> None:
    again = write_pairs(tmp_path / "elsewhere" / "again")
    for path in pairs.iterdir():
        assert path.read_bytes() == (tmp_path / "elsewhere" / "again" / path.name).read_bytes()
    other = write_pairs(tmp_path / "other", count=24)
    assert Manifest.load(pairs).dataset_id == again.dataset_id != other.dataset_id


def test_a_shard_is_closed_at_its_size_too(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "c", "corpus", max_bytes=4096) as writer:
        for number in range(8):
            writer.add(Passage(id=str(number), text="x" * 900))
    assert writer.manifest is not None
    # Each sample takes 512 + 1024 bytes: the third one reaches 4096.
    assert [entry.samples for entry in writer.manifest.shards] == [3, 3, 2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_webdataset_reads_our_shards(pairs: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(pairs.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(25)]
    assert [Pair.from_json(sample["json"]) for sample in samples] == [pair(number) for number in range(25)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_webdataset_reads_a_teachers_scores(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    taught = msgspec.structs.replace(pair(0), teacher_positives=(-3.5,))
    with ShardWriter(tmp_path / "p", "pairs") as writer:
        for sample in (taught, pair(1)):
            writer.add(sample)
    first, second = webdataset.WebDataset([str(tmp_path / "p" / "train-000000.tar")], shardshuffle=False)
    assert json.loads(first["json"])["teacher_positives"] == [-3.5]
    assert "teacher_positives" not in json.loads(second["json"])


def test_pairs_with_a_teacher_are_counted_over_all_datasets(tmp_path: Path) -> None:
    """So that nobody starts to distil from scores that are not there."""
    with ShardWriter(tmp_path / "taught", "pairs", samples_per_shard=2) as writer:
        for number in range(5):
            negatives = pair(9).positives if number == 4 else ()  # not scored
            scores = (0.5,) if number else ()
            writer.add(msgspec.structs.replace(pair(number), negatives=negatives, teacher_positives=scores))
    write_pairs(tmp_path / "plain", count=3)
    write_corpus(tmp_path / "c")
    assert PairDataset(tmp_path / "taught").with_teacher == 3
    assert PairDataset(tmp_path / "plain").with_teacher == 0
    assert PairDataset([tmp_path / "taught", tmp_path / "plain"]).with_teacher == 3
    assert CorpusDataset(tmp_path / "c").manifest.with_teacher is None
    manifest = Manifest.load(tmp_path / "plain")
    replace(manifest, with_teacher=None).save(tmp_path / "plain")
    assert PairDataset([tmp_path / "taught", tmp_path / "plain"]).with_teacher is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_we_read_what_plain_webdataset_writes(tmp_path: Path) -> None:
    """Its default float dates give a PAX header a member."""
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "plain.tar"
    with webdataset.TarWriter(str(path)) as sink:
        for number in range(5):
            sink.write({"__key__": f"k{number}", "json": {"number": number}, "txt": f"text {number}"})
    reader = ShardReader(path)
    assert [json.loads(payload)["number"] for payload in reader] == [0, 1, 2, 3, 4]
    assert reader.sample(3) == {"json": b'{"number": 3}', "txt": b"text 3"}
    assert reader.key(4) == "k4"


def test_pairs_are_read_by_ordinal_in_the_order_asked_for(pairs: Path) -> None:
    dataset = PairDataset(pairs)
    assert len(dataset) == 25
    assert dataset.pairs([24, 0, 10, 9, 10]) == [pair(number) for number in (24, 0, 10, 9, 10)]
    assert dataset.pair(19) == pair(19)
    shards, rows = dataset.locate([0, 9, 10, 24])
    assert (shards.tolist(), rows.tolist()) == ([0, 0, 1, 2], [0, 9, 0, 4])
    assert dataset.shard_stems == ["train-000000", "train-000001", "train-000002"]
    assert dataset.pairs([]) == []


@pytest.mark.parametrize("ordinal", [-1, 25])
def test_an_ordinal_outside_is_refused(pairs: Path, ordinal: int) -> None:
    with pytest.raises(IndexError, match="of 25 samples in"):
        PairDataset(pairs).pair(ordinal)


def test_a_corpus_is_read_by_shard_and_by_ordinal(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c")
    dataset = CorpusDataset(tmp_path / "c")
    wanted = [pair(number).positives[0] for number in range(25)]
    assert list(dataset) == wanted
    assert [entry.path for entry in dataset.manifest.shards] == [f"corpus-00000{at}.tar" for at in range(3)]
    assert list(dataset.iter_shard(2)) == wanted[20:]
    assert dataset.passages([20, 3]) == [wanted[20], wanted[3]]


def test_a_dataset_is_opened_as_what_it_is(pairs: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "c")
    assert isinstance(open_dataset(pairs), PairDataset)
    assert isinstance(open_dataset(tmp_path / "c"), CorpusDataset)
    with pytest.raises(UserError, match="holds a dataset of kind corpus, wanted pairs"):
        PairDataset(tmp_path / "c")


def test_large_shards_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block holds whole samples, and at least one, however large."""
    write_pairs(tmp_path / "p", count=50, samples_per_shard=50)
    for block_bytes in (1, 1024, 1500, 5000):
        monkeypatch.setattr(shard_reader, "_READ_BYTES", block_bytes)
        assert list(PairDataset(tmp_path / "p")) == [pair(number) for number in range(50)]


def test_few_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_set, "_OPEN_SHARDS", 2)
    write_pairs(tmp_path / "p", count=40, samples_per_shard=1)
    dataset = PairDataset(tmp_path / "p")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        assert dataset.pair(number) == pair(number)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_share_a_dataset(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_set, "_OPEN_SHARDS", 1)  # shards are let go while others read them
    dataset = PairDataset(pairs)
    wrong: list[object] = []

    def read(first: int) -> None:
        for step in range(200):
            number = (first + 7 * step) % 25
            if dataset.pair(number) != pair(number):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_dataset_travels_to_another_process(pairs: Path) -> None:
    dataset = PairDataset(pairs)
    dataset.pair(3)
    assert pickle.loads(pickle.dumps(dataset)).pair(3) == pair(3)


# --- damage: all of it is in test_damages.py -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_is_lost_silently(pairs: Path) -> None:
    """Invariant 9: where plain webdataset drops half a shard without a word, ours names the place."""
    webdataset = pytest.importorskip("webdataset")
    path, offset = pairs / "train-000001.tar", int(ShardReader(pairs / "train-000001.tar").offsets[5])
    flip(path, offset, b"z")
    assert len(list(webdataset.WebDataset([str(path)], shardshuffle=False))) < 10
    for index in (True, False):
        if not index:
            path.with_name(path.name + ".idx").unlink()
        with pytest.raises(ShardCorruptError, match="corrupt header") as caught:
            list(PairDataset(pairs))
        assert (caught.value.path, caught.value.offset) == (path, offset)


def test_a_shard_that_shrinks_while_open_is_named(pairs: Path) -> None:
    reader = ShardReader(pairs / "train-000001.tar")
    os.truncate(reader.path, 700)
    for read in (lambda: reader.payload(0), lambda: list(reader), lambda: reader.sample(0), lambda: reader.key(0)):
        with pytest.raises(ShardCorruptError, match="at byte 0: wanted 1024 bytes, the file gave 700: truncated"):
            read()


def test_a_foreign_shard_of_the_same_size_is_noticed_when_it_is_opened(pairs: Path) -> None:
    """It brings its own sidecars, which call each of its samples sound; they are sealed to another checksum."""
    first, second = Manifest.load(pairs).shards[:2]
    assert first.bytes == second.bytes
    for ending in ("", ".idx", ".crc"):
        shutil.copy(pairs / f"{first.path}{ending}", pairs / f"{second.path}{ending}")
    with pytest.raises(ShardCorruptError, match=f"{second.path} at byte 0: its sha256 is .* says {second.sha256}"):
        ShardReader(pairs / second.path, second)


def test_opening_a_sealed_shard_reads_none_of_it(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the shard is read")

    for name in (
        "data_shards.shard_reader.sha256_file",
        "data_shards.sidecar.scan_crcs",
        "data_shards.sidecar.scan_offsets",
    ):
        monkeypatch.setattr(name, never)
    for entry in Manifest.load(pairs).shards:
        assert len(ShardReader(pairs / entry.path, entry)) == entry.samples


def test_verification_reads_it_all(pairs: Path) -> None:
    """A forged seal: only the checksum in the manifest can tell."""
    first, second = Manifest.load(pairs).shards[:2]
    for ending in ("", ".idx"):
        shutil.copy(pairs / f"{first.path}{ending}", pairs / f"{second.path}{ending}")
    path = pairs / second.path
    save_sidecar(path, "crc", load_crcs(pairs / first.path, load_offsets(path)), second.sha256)
    assert Pair.from_json(ShardReader(path, second).payload(0)) == pair(0)
    with pytest.raises(ShardCorruptError, match=f"{second.path} at byte 0: its sha256 is .* says {second.sha256}"):
        ShardReader(path, second, verify=True)


def test_a_sample_without_json_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "plain.tar", [("a.json", b"{}"), ("b.cls", b"1"), ("b.png", b"2")])
    reader = ShardReader(tmp_path / "plain.tar")
    assert reader.payload(0) == b"{}"
    for read in (lambda: reader.payload(1), lambda: list(reader)):
        with pytest.raises(ShardCorruptError, match=r"at byte 1024: wanted a \.json member, came cls, png"):
            read()


# --- writing, or not -----------------------------------------------------------------------------------------


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def write_and_break() -> None:
        with ShardWriter(tmp_path / "p", "pairs", samples_per_shard=2) as writer:
            for number in range(3):
                writer.add(pair(number))
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_and_break()
    assert list(tmp_path.iterdir()) == []
    write_pairs(tmp_path / "p")  # the place is free


def test_no_sample_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample came for .*; nothing was written"):
        write_pairs(tmp_path / "p", count=0)
    assert list(tmp_path.iterdir()) == []


def test_another_dataset_is_never_overwritten(pairs: Path) -> None:
    with pytest.raises(UserError, match="already holds a dataset; choose another --out or remove it"):
        ShardWriter(pairs, "pairs")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"is not empty \(it holds notes.txt\); choose another --out"):
        ShardWriter(tmp_path, "pairs")
    with pytest.raises(UserError, match="notes.txt is a file, wanted a folder; choose another --out"):
        ShardWriter(tmp_path / "notes.txt", "pairs")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    assert write_pairs(tmp_path / "p").samples == 25


def test_a_sample_of_the_other_kind_is_a_mistake(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "p", "pairs") as writer:
        writer.add(pair(0))
        with pytest.raises(TypeError, match="a Passage came for a dataset of kind pairs"):
            writer.add(Passage(id="1", text="x"))


def test_a_shard_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a shard of 0 samples and 268435456 bytes holds nothing"):
        ShardWriter(tmp_path / "p", "pairs", samples_per_shard=0)
