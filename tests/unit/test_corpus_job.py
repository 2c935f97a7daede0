"""Embedding a corpus with one worker in this process: restarts, changes, refusals, full disks, what is left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.corpora import open_corpus
from data_shards.errors import UserError
from data_shards.file_lock import locked
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from encoder.embed import embed_texts
from encoder.snapshot import load_encoder, save_snapshot
from index_build.corpus_job import Wish, Work, embed_corpus
from index_build.embedding_part import LeftOut, part_files
from index_build.embedding_set import EmbeddingSet
from index_build.index import build_index
from index_build.index_config import IndexConfig
from index_build.kept_vectors import KEPT, Kept
from index_build.ray_crew import Job
from index_build.search import Searcher
from tests.unit.inline_crew import embed, inline
from tests.unit.tiny import TEXTS, passage, tiny_encoder

POISON = "server server server server"


def words(number: int) -> Passage:
    return passage(f"p{number}", f"{TEXTS[number % len(TEXTS)]} {number}")


def write_shards(folder: Path, passages: Iterable[Passage], per_shard: int = 5) -> Path:
    with ShardWriter(folder, "corpus", samples_per_shard=per_shard) as writer:
        for each in passages:
            writer.add(each)
    return folder


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A snapshot whose tokenizer knows one word more than the embeddings have rows for: a real one that fails."""
    encoder = tiny_encoder()
    encoder.tokenizer.add_tokens(["zzpoison"])
    save_snapshot(encoder, tmp_path / "poisoned")
    return tmp_path / "poisoned"


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("dim", [None, 8])
def test_every_form_and_length_by_the_encoder(snapshot: Path, tmp_path: Path, kept: Kept, dim: int | None) -> None:
    passages = [words(number) for number in range(12)]
    found = embed(snapshot, write_shards(tmp_path / "c", passages), tmp_path / "set", kept=kept, dim=dim)
    assert found.ids == [each.id for each in passages]
    vectors = embed_texts(load_encoder(snapshot), [each.content for each in passages], side="passage", dim=dim)
    assert found.dim == vectors.shape[1]
    gathered = found.gather(np.arange(12))
    if kept == "binary":
        np.testing.assert_array_equal(np.sign(gathered), np.where(vectors > 0, 1, -1))
    else:
        np.testing.assert_allclose(gathered, vectors, atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(gathered, axis=1), 1, atol=5e-3)
    assert not list((tmp_path / "set").glob(".*")), "locks and notes go with the work"


def test_a_restart_does_only_what_is_missing(snapshot: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", map(words, range(12)))
    embed(snapshot, corpus, tmp_path / "set")
    part_files(tmp_path / "set", 1).done.unlink()
    work = Work()
    embed(snapshot, corpus, tmp_path / "set", work)
    assert (work.found, work.embedded) == (7, 5)


def test_a_passage_that_fails_is_left_out_everywhere(
    poisoned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real failure, in the embedding's look-up. The index, search and rows go on as if it had never been there."""
    passages = [words(number) for number in range(12)]
    passages[7] = passage("p7", "a zzpoison word")
    corpus = write_shards(tmp_path / "c", passages)
    with caplog.at_level(logging.WARNING):
        found = embed(poisoned, corpus, tmp_path / "set")
    assert "passage 'p7' of corpus-000001.tar is left out: IndexError: index out of range in self" in caplog.text
    assert found.quarantined == [LeftOut("p7", 7, "IndexError: index out of range in self")]
    others = [each for each in passages if each.id != "p7"]
    assert found.ids == [each.id for each in others]
    assert found.corpus["left_out"] == [7]
    work = Work()
    again = embed(poisoned, corpus, tmp_path / "set", work)
    assert (work.found, again.quarantined) == (12, found.quarantined)
    build_index(found, tmp_path / "index", IndexConfig())
    searcher = Searcher(tmp_path / "index", poisoned)
    for each in (others[6], others[7], others[-1]):
        assert each.id in [hit.id for hit in searcher.search([each.text], 3)[0] if hit.text == each.text]


def test_nothing_that_can_be_embedded_is_no_set(poisoned: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", [passage("a", "zzpoison"), passage("b", "zzpoison zzpoison")])
    with pytest.raises(UserError, match=r"no passage of .*/c can be embedded \(IndexError: index out of range"):
        embed(poisoned, corpus, tmp_path / "set")


@pytest.mark.parametrize("kept", ["float32", "int8"])
def test_since_copies_what_is_the_same_and_equals_embedding_anew(snapshot: Path, tmp_path: Path, kept: Kept) -> None:
    """New vectors may differ from a whole run's in the last bits, since they are batched with others."""
    old = [words(number) for number in range(17)]
    embed(snapshot, write_shards(tmp_path / "old", old), tmp_path / "old_set", kept=kept)
    new = [words(99), *old[:3], passage("p3", "another text"), *old[4:12], *map(words, range(40, 49))]
    corpus = write_shards(tmp_path / "new", new, per_shard=6)
    work = Work()
    found = embed(snapshot, corpus, tmp_path / "set", work, kept=kept, since=tmp_path / "old_set")
    assert found.ids == [each.id for each in new]
    assert (work.copied, work.embedded) == (11, 11)
    same = {"same": 11, "changed": 1, "new": 10, "removed": 5}
    assert {name: work.changes[name] for name in same} == same
    assert pq.read_table(tmp_path / "set" / "removed.parquet").column("id").to_pylist() == [
        f"p{number}" for number in range(12, 17)
    ]
    anew = embed(snapshot, corpus, tmp_path / "anew", kept=kept)
    rows = np.arange(found.rows)
    step = 1e-6 if kept == "float32" else 1 / 127
    np.testing.assert_allclose(found.gather(rows), anew.gather(rows), atol=step)
    before = EmbeddingSet.open(tmp_path / "old_set")
    copied = found.gather_stored(np.array([1, 2, 3, 5]))
    assert copied.tobytes() == before.gather_stored(np.array([0, 1, 2, 4])).tobytes()


def test_since_itself_is_refused(snapshot: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", map(words, range(4)))
    embed(snapshot, corpus, tmp_path / "set")
    with pytest.raises(UserError, match="--since and --out are both .*give the new set a folder of its own"):
        embed(snapshot, corpus, tmp_path / "set", since=tmp_path / "set")
    assert EmbeddingSet.open(tmp_path / "set").rows == 4


def test_parquet_gives_what_shards_give_and_is_searched(snapshot: Path, tmp_path: Path) -> None:
    passages = [words(number) for number in range(12)]
    of_shards = embed(snapshot, write_shards(tmp_path / "c", passages, per_shard=12), tmp_path / "set")
    columns = {"id": [each.id for each in passages], "text": [each.text for each in passages]}
    pq.write_table(pa.table(columns), tmp_path / "corpus.parquet", row_group_size=4)
    found = embed(snapshot, tmp_path / "corpus.parquet", tmp_path / "parquet_set")
    assert part_files(found.folder, 0).vectors.read_bytes() == part_files(of_shards.folder, 0).vectors.read_bytes()
    assert found.corpus["dataset_id"] == open_corpus(tmp_path / "corpus.parquet").dataset_id
    build_index(found, tmp_path / "index", IndexConfig())
    hits = Searcher(tmp_path / "index", snapshot).search([passages[5].text], 12)[0]
    assert {(hit.id, hit.text) for hit in hits} == {(each.id, each.text) for each in passages}
    pq.write_table(pa.table(columns).slice(1), tmp_path / "corpus.parquet")
    with pytest.raises(UserError, match=r"shard_sha256 \w{64} \(now \w{64}\); a set is never mixed"):
        embed(snapshot, tmp_path / "corpus.parquet", tmp_path / "parquet_set")


def test_a_shortened_set_is_searched_with_shortened_queries(snapshot: Path, tmp_path: Path) -> None:
    passages = [words(number) for number in range(6)]
    found = embed(snapshot, write_shards(tmp_path / "c", passages), tmp_path / "set", kept="float32", dim=8)
    build_index(found, tmp_path / "index", IndexConfig())
    hits = Searcher(tmp_path / "index", snapshot).search([passages[2].text], 1)[0]
    assert (hits[0].id, round(hits[0].score, 3)) == ("p2", 1.0)


def test_two_drivers_on_one_folder_are_refused(snapshot: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", map(words, range(4)))
    with (
        locked(tmp_path / "set" / ".lock"),
        pytest.raises(UserError, match="another `dipole embed` is writing .*/set"),
    ):
        embed(snapshot, corpus, tmp_path / "set")
    assert embed(snapshot, corpus, tmp_path / "set").rows == 4


def test_a_full_disk_is_one_line_and_loses_nothing(snapshot: Path, small_disk: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", map(words, range(1500)), per_shard=100)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(900 << 10))
    out = small_disk / "set"
    with pytest.raises(UserError, match=rf"the disk of {out} is full; free some of it and run `dipole embed` again"):
        embed(snapshot, corpus, out, kept="float32")
    done = len(list(out.glob("*.done.json")))
    assert 0 < done < 15
    filler.unlink()
    work = Work()
    assert embed(snapshot, corpus, out, work, kept="float32").rows == 1500
    assert work.found == 100 * done


def test_a_corpus_that_changes_under_the_work_is_noticed(snapshot: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", map(words, range(10)))

    def slow(jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        for each in corpus.iterdir():
            each.unlink()
        write_shards(corpus, map(words, range(20, 30)))
        yield from inline(jobs)

    with pytest.raises(UserError, match=r"/c has changed while it was embedded; run `dipole embed` again"):
        embed_corpus(slow, snapshot, corpus, tmp_path / "set", Wish(), Work(), None)


def test_a_corpus_without_passages_is_refused(snapshot: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="none.parquet has no passages; there is nothing to embed"):
        embed(snapshot, tmp_path / "none.parquet", tmp_path / "set")


def test_more_dimensions_than_there_are_are_refused(snapshot: Path, tmp_path: Path) -> None:
    corpus = write_shards(tmp_path / "c", map(words, range(4)))
    with pytest.raises(UserError, match="this encoder has 16 dimensions; ask for 1 to 16 of them, not 17"):
        embed(snapshot, corpus, tmp_path / "set", dim=17)
