"""Filling in chunks: the same as in one go, on disk too, resumed after a kill, and within a small budget."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import faiss
import numpy as np
import pytest

from data_shards.errors import UserError
from index_build import index_fill
from index_build.embedding_set import EmbeddingSet
from index_build.index import build_index
from index_build.index_choice import choose
from index_build.index_config import IndexConfig
from index_build.index_fill import ChunkJob, Filling, Workers, add_rows, fill_chunk, sizes_of
from index_build.index_merge import merge_in_memory, merge_on_disk
from index_build.index_version import current_version, list_versions, open_index
from tests.unit.index_sets import clustered, embedding_set
from tests.unit.processes import start_python

ROWS, DIM = 2_000, 16


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    return embedding_set(tmp_path_factory.mktemp("set"), clustered(ROWS, DIM, 0))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_fill, "MOST_CHUNK_ROWS", 600)
    monkeypatch.setattr(index_fill, "_LEAST_CHUNK_ROWS", 600)


@pytest.mark.parametrize(
    ("factory", "on_disk"),
    [
        ("Flat", "auto"),
        ("SQ8", "auto"),
        ("IVF16,SQ8", "auto"),
        ("IVF16,SQ8", "always"),
        ("IVF16,PQ8x4fs,Refine(SQfp16)", "auto"),
        ("IVF16_HNSW8,SQfp16", "always"),
        ("L2norm,IVF16,Flat", "auto"),
    ],
)
def test_chunks_give_what_one_go_gives(
    vectors: EmbeddingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, on_disk: str
) -> None:
    whole = build_index(vectors, tmp_path / "whole", IndexConfig(factory=factory, recall_queries=100))
    monkeypatch.setattr(index_fill, "MOST_CHUNK_ROWS", 600)
    monkeypatch.setattr(index_fill, "_LEAST_CHUNK_ROWS", 600)
    config = IndexConfig(factory=factory, on_disk=on_disk, recall_queries=100)
    told: list[tuple[int, int]] = []
    cut = build_index(vectors, tmp_path / "cut", config, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2_000), (600, 2_000), (1_200, 2_000), (1_800, 2_000), (2_000, 2_000)]
    assert (cut.search, cut.recall) == (whole.search, whole.recall)
    assert cut.on_disk == (on_disk == "always")
    queries = clustered(50, DIM, 1)
    expected, found = (open_index(tmp_path / name).search(queries, 10) for name in ("whole", "cut"))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert (found.rows == expected.rows).mean() > 0.99
    assert not list((tmp_path / "cut").glob(".work-*"))


def test_an_index_on_disk_may_be_moved(vectors: EmbeddingSet, tmp_path: Path) -> None:
    build_index(vectors, tmp_path / "here", IndexConfig(factory="IVF16,SQfp16", on_disk="always", recall_queries=50))
    (tmp_path / "here").rename(tmp_path / "there")
    own = np.array([0, 1_999])
    assert open_index(tmp_path / "there").search(vectors.gather(own), 1).rows[:, 0].tolist() == own.tolist()


def test_row_numbers_beyond_32_bits_survive_every_merge(tmp_path: Path) -> None:
    """As a corpus of a billion passages and more would have them."""
    first, block = 2**40 - 7, clustered(400, DIM, 0)
    trained = faiss.index_factory(DIM, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    trained.train(block)
    faiss.write_index(trained, str(tmp_path / "trained.faiss"))
    chunks = []
    for number in (0, 1):
        index = faiss.read_index(str(tmp_path / "trained.faiss"))
        add_rows(index, block[200 * number : 200 * number + 200], first + 200 * number)
        chunks.append(tmp_path / f"chunk-{number}.faiss")
        faiss.write_index(index, str(chunks[-1]))
        np.save(sizes_of(chunks[-1]), np.array([index.invlists.list_size(at) for at in range(8)]))
    (tmp_path / "v").mkdir()
    for merged in (
        merge_in_memory(tmp_path / "trained.faiss", chunks),
        merge_on_disk(tmp_path / "trained.faiss", chunks, tmp_path / "v"),
    ):
        merged.nprobe = 8
        assert merged.search(block, 1)[1][:, 0].tolist() == list(range(first, first + 400))


def test_chunks_are_bounded_by_the_budget(vectors: EmbeddingSet) -> None:
    """What the index leaves of the budget holds one chunk, whose lists may have grown to twice what they hold."""
    rows, dim, budget = 1_000_000, 384, 1 << 30

    class Million:
        hash = "sha256:aa"

        def __init__(self) -> None:
            self.rows, self.dim = rows, dim

    config = IndexConfig(memory_gib=1.0)
    choice = choose(rows, dim, config)
    job = Filling(
        vectors=Million(),  # type: ignore[arg-type]
        choice=choice,
        config=config,
        budget=budget,
        workers=Workers(),
        progress=None,
    )
    assert choice.factory == "IVF2048,SQ8"
    assert choice.memory_bytes + 2 * job.chunk_rows() * 392 <= budget
    assert job.training_rows(2_048) * 4 * dim <= 0.4 * budget
    assert next(stop - first for first, stop in job.bounds()) == job.chunk_rows()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from index_build import index_fill
    from index_build.embedding_set import EmbeddingSet
    from index_build.index import build_index
    from index_build.index_config import IndexConfig
    index_fill.MOST_CHUNK_ROWS = index_fill._LEAST_CHUNK_ROWS = 600
    def progress(done, total):
        if done >= 1200:
            os.kill(os.getpid(), signal.SIGKILL)
    config = IndexConfig(factory="IVF16,SQ8", recall_queries=100)
    build_index(EmbeddingSet.open(Path(sys.argv[1])), Path(sys.argv[2]), config, progress=progress)
"""


def test_a_killed_build_goes_on_where_it_was(vectors: EmbeddingSet, tmp_path: Path, small_chunks: None) -> None:
    root = tmp_path / "index"
    process = start_python(KILLED, vectors.folder, root)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list_versions(root) == []
    (work,) = root.glob(".work-*")
    left = {path.name: path.stat().st_mtime_ns for path in work.iterdir() if not path.name.startswith(".tmp")}
    assert {"trained.faiss", "chunk-000000.faiss", "chunk-000001.faiss"} <= set(left)
    kept: list[dict[str, int]] = []

    def look(done: int, total: int) -> None:
        kept.append({path.name: path.stat().st_mtime_ns for path in work.iterdir()})

    config = IndexConfig(factory="IVF16,SQ8", recall_queries=100)
    made = build_index(vectors, root, config, progress=look)
    assert {name: kept[-1][name] for name in left} == left  # nothing of it was made again
    assert made.training == {"rows": ROWS, "seed": 0}
    assert open_index(root).search(vectors.gather(np.arange(0, ROWS, 50)), 1).rows[:, 0].tolist() == list(
        range(0, ROWS, 50)
    )
    assert not list(root.glob(".work-*"))
    assert not list(root.glob(".tmp-*"))


def test_another_config_shares_no_work(vectors: EmbeddingSet) -> None:
    def key(**wishes) -> str:
        config = IndexConfig(**wishes)
        choice = choose(vectors.rows, vectors.dim, config)
        job = Filling(vectors=vectors, choice=choice, config=config, budget=1 << 30, workers=Workers(), progress=None)
        return job.key()

    keys = [key(factory="IVF16,SQ8"), key(factory="IVF16,SQ8", seed=1), key(factory="IVF8,SQ8")]
    assert len(set(keys)) == 3
    assert key(factory="IVF16,SQ8", wanted_recall=0.5) == keys[0]  # measured later: the rows are the same


def test_a_full_disk_is_one_line_and_leaves_what_is_searched(
    vectors: EmbeddingSet, small_disk: Path, small_chunks: None
) -> None:
    root = small_disk / "index"
    build_index(vectors, root, IndexConfig(factory="IVF16,SQ8", recall_queries=50))
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - (60 << 10))))
    for on_disk in ("never", "always"):
        config = IndexConfig(factory="IVF16,SQfp16", on_disk=on_disk, recall_queries=50)
        with pytest.raises(
            UserError, match=r"the disk of .* is full; free some of it and run again: what was done is"
        ):
            build_index(vectors, root, config)
        assert list_versions(root) == [1] == [current_version(root)]
    (small_disk / "filler").unlink()
    assert build_index(vectors, root, IndexConfig(factory="IVF16,SQfp16", recall_queries=50)).version == 2


@pytest.mark.ray
def test_ray_workers_fill_what_one_process_fills(vectors: EmbeddingSet, tmp_path: Path) -> None:
    """Chunks end in any order; rows stay in theirs."""
    config = IndexConfig(factory="IVF16,SQfp16", recall_queries=100)
    jobs = Workers(count=2)
    here = build_index(vectors, tmp_path / "here", config)
    index_fill._LEAST_CHUNK_ROWS, least = 300, index_fill._LEAST_CHUNK_ROWS
    try:
        there = build_index(vectors, tmp_path / "there", config, workers=jobs)
    finally:
        index_fill._LEAST_CHUNK_ROWS = least
    assert (there.search, there.recall) == (here.search, here.recall)
    queries = clustered(50, DIM, 1)
    expected, found = (open_index(tmp_path / name).search(queries, 10) for name in ("here", "there"))
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_a_chunk_is_written_after_its_sizes(vectors: EmbeddingSet, tmp_path: Path) -> None:
    trained = faiss.index_factory(DIM, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    trained.train(vectors.gather(np.arange(400)))
    faiss.write_index(trained, str(tmp_path / "trained.faiss"))
    out = tmp_path / "chunk.faiss"
    job = ChunkJob(embeddings=vectors.folder, trained=tmp_path / "trained.faiss", out=out, first=5, stop=9, threads=0)
    assert fill_chunk(job) == 4
    assert np.load(sizes_of(out)).sum() == 4
    assert faiss.read_index(str(out)).ntotal == 4
