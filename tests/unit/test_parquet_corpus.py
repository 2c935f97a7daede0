"""Parquet files as a corpus: every row once, in bounded units, by any name of its columns; changes are noticed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards import checksums, parquet_corpus
from data_shards.checksums import remembered_sha256
from data_shards.corpora import Without, absolute, open_corpus, without
from data_shards.errors import ShardCorruptError, UserError
from data_shards.reader import CorpusDataset
from data_shards.samples import Passage
from data_shards.storage import CacheConfig
from tests.unit.tiny import passage, write_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table(first: int, rows: int) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table(
        {
            "docid": [str(number) for number in numbers],
            "title": [f"title {number}" for number in numbers],
            "contents": [f"text {number}" for number in numbers],
            "embedding": [[0.0] * 3] * rows,
        }
    )


def expected(number: int) -> Passage:
    return Passage(id=str(number), title=f"title {number}", text=f"text {number}")


def write(path: Path, first: int, rows: int, group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(first, rows), path, row_group_size=group)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of 23 rows, in row groups of 3 and of 10, and what is none of the corpus."""
    write(tmp_path / "corpus" / "a.parquet", 0, 7, 3)
    write(tmp_path / "corpus" / "b.parquet", 7, 16, 10)
    (tmp_path / "corpus" / "_hidden.parquet").write_bytes(b"")
    (tmp_path / "corpus" / "README.md").write_text("no data")
    return tmp_path / "corpus"


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 100])
def test_units_hold_every_row_once_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(parquet_corpus, "UNIT_ROWS", most)
    corpus = open_corpus(folder)
    wanted = [expected(number) for number in range(23)]
    units = [corpus.read_unit(number) for number in range(len(corpus.units))]
    assert [passage for unit in units for passage in unit] == wanted == list(corpus)
    assert [len(unit) for unit in units] == [unit.passages for unit in corpus.units]
    assert max(map(len, units)) <= most
    assert len({unit.name for unit in corpus.units}) == len(units)
    assert len(corpus) == 23


def test_row_groups_stay_whole_where_they_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_corpus, "UNIT_ROWS", 6)
    names = [unit.name for unit in open_corpus(folder).units]
    assert names == [
        "a.parquet rows 0 to 6",
        "a.parquet rows 6 to 7",
        "b.parquet rows 0 to 6",
        "b.parquet rows 6 to 10",
        "b.parquet rows 10 to 16",
    ]


def test_passages_by_ordinal_in_the_order_asked_for(folder: Path) -> None:
    corpus = open_corpus(folder)
    rows = [22, 0, 9, 7, 6, 0]
    assert corpus.passages(rows) == [expected(row) for row in rows]
    assert corpus.passages(np.empty(0, dtype=np.int64)) == []
    with pytest.raises(IndexError, match="ordinals 0 to 23 of 23 passages"):
        corpus.passages([0, 23])


def test_one_file_is_a_corpus_too(folder: Path) -> None:
    corpus = open_corpus(folder / "b.parquet")
    assert corpus.location == str(folder / "b.parquet")
    assert list(corpus) == [expected(number) for number in range(7, 23)]
    assert list(open_corpus(f"file://{folder / 'b.parquet'}")) == list(corpus)


def test_it_opens_anew_in_another_process(folder: Path) -> None:
    corpus = open_corpus(folder)
    again = pickle.loads(pickle.dumps(corpus))
    assert again.dataset_id == corpus.dataset_id
    assert again.units == corpus.units


def test_the_id_follows_the_content_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = open_corpus(folder).dataset_id
    moved = tmp_path / "moved"
    moved.mkdir()
    for name, to in (("a", "1"), ("b", "2")):
        (moved / f"{to}.parquet").write_bytes((folder / f"{name}.parquet").read_bytes())
    assert open_corpus(moved).dataset_id == before
    write(folder / "a.parquet", 1, 7, 3)
    assert open_corpus(folder).dataset_id != before


def test_a_file_that_changes_meanwhile_is_noticed(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert len(corpus.units) == 2
    write(folder / "a.parquet", 100, 7, 3)
    with pytest.raises(ShardCorruptError, match=r"a.parquet at byte 0: it was \w{64} and is \w{64}: it has changed"):
        corpus.read_unit(0)
    assert len(corpus.read_unit(1)) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 no data", "bad.parquet is no Parquet file: it does not end in PAR1; fetch it again"),
        (b"PAR1xxxx\x04\x00\x00\x00PAR1", "bad.parquet is no readable Parquet file"),
    ],
)
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_corpus(tmp_path / "bad.parquet")


def test_damaged_pages_are_named(folder: Path) -> None:
    path = folder / "b.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"b\.parquet at byte 0: it is no readable Parquet file"):
        list(open_corpus(folder))


def test_without_a_text_it_says_what_there_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "abstract": ["b"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"no text \(looked for text, contents.*there are: id, abstract; rename"):
        open_corpus(tmp_path)


def test_ids_may_be_numbers_or_missing_and_texts_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"_id": [7, 8], "text": ["a", None]}), tmp_path / "numbers.parquet")
    assert list(open_corpus(tmp_path)) == [passage("7", "a"), passage("8", "")]
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "numbers.parquet")
    first, second = open_corpus(tmp_path)
    assert first.id != second.id
    pq.write_table(pa.table({"text": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match=r"numbers.parquet, row 1: a passage's title or text is not text"):
        list(open_corpus(tmp_path))


def test_shards_are_a_corpus_as_before(tmp_path: Path) -> None:
    place = write_corpus(tmp_path / "shards", [passage("a"), passage("b")])
    corpus = open_corpus(place)
    assert isinstance(corpus, CorpusDataset)
    assert corpus.read_unit(0) == [passage("a"), passage("b")]
    assert [(unit.name, unit.passages) for unit in corpus.units] == [("corpus-000000.tar", 2)]


def test_a_place_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no dataset: it has no manifest.json.*or give Parquet files"):
        open_corpus(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no nowhere.parquet"):
        open_corpus(tmp_path / "nowhere.parquet")


def test_a_file_system_behind_a_url(folder: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("a.parquet", "b.parquet"):
        memory.pipe(f"/parquet-test/{name}", (folder / name).read_bytes())
    try:
        corpus = open_corpus("memory://parquet-test", CacheConfig(dir=str(tmp_path / "shards")))
        assert list(corpus) == list(open_corpus(folder))
        assert corpus.units[0].checksum.startswith(f"{(folder / 'a.parquet').stat().st_size} bytes, created ")
        first = corpus.dataset_id
        memory.pipe("/parquet-test/b.parquet", (folder / "a.parquet").read_bytes())
        assert open_corpus("memory://parquet-test").dataset_id != first
    finally:
        memory.rm("/parquet-test", recursive=True)


def test_passages_that_are_left_out_are_passed_over(folder: Path) -> None:
    corpus = open_corpus(folder)
    left_out = [0, 5, 6, 22]
    seen = without(corpus, left_out)
    wanted = [expected(number) for number in range(23) if number not in left_out]
    assert isinstance(seen, Without)
    assert list(seen) == wanted
    assert len(seen) == len(wanted)
    assert seen.passages(np.arange(len(wanted))) == wanted
    assert seen.ordinals([0, 3, 4, 18]).tolist() == [1, 4, 7, 21]
    assert without(corpus, []) is corpus


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory"
    path.write_bytes(b"one")
    young = remembered_sha256(path, memory)
    assert not memory.exists(), "a young file may change within the same instant"
    os.utime(path, (1, 1))
    assert remembered_sha256(path, memory) == young
    assert len(list(memory.iterdir())) == 1
    monkeypatch.setattr(checksums, "sha256_file", lambda _: pytest.fail("it was read again"))
    assert remembered_sha256(path, memory) == young
    monkeypatch.undo()
    path.write_bytes(b"two")
    os.utime(path, (2, 2))
    assert remembered_sha256(path, memory) != young


def test_locations_mean_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("corpus") == str(tmp_path / "corpus")
    assert absolute("s3://bucket/corpus") == "s3://bucket/corpus"
    assert absolute(Path("s3://bucket/corpus")) == "s3:/bucket/corpus"  # which storage understands
