"""Invariant 5, *exactly once*: after any number of kills, an embedding set holds each passage once.

Workers and drivers are killed with SIGKILL at seeded moments, on real processes. The sets must come out byte for
byte as one that nothing disturbed, and what was done before a kill must not be done again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.reader import CorpusDataset
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from encoder.embed import embed_texts
from encoder.model import Encoder, EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from index_build import ray_crew
from index_build.embedding_part import part_files
from index_build.embedding_set import EmbeddingSet
from index_build.index import build_index
from index_build.index_config import IndexConfig
from index_build.index_version import open_index
from index_build.ray_pool import EmbedPool, WorkerError

pytestmark = pytest.mark.ray

SHARDS, PASSAGES_PER_SHARD = 16, 120

DRIVER = """
import sys
from pathlib import Path
from index_build.ray_pool import EmbedPool
snapshot, corpus, out = map(Path, sys.argv[1:])
with EmbedPool(workers=2) as pool:
    pool.embed_corpus(snapshot, corpus, out)
"""


def sentence(random_words: random.Random, words: int) -> str:
    return " ".join(f"word{random_words.randrange(400)}" for _ in range(words))


def tiny_encoder(seed: int) -> Encoder:
    """Slow enough that a shard takes some tenths of a second: kills have something to hit."""
    config = ScratchConfig(layers=2, width=64, heads=2, vocab_size=600)
    texts = [sentence(random.Random(k), 30) for k in range(100)]
    return scratch_encoder(config, EncoderSettings(max_tokens=96), texts, seed=seed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, two snapshots, and the set that an undisturbed run gives."""
    place = tmp_path_factory.mktemp("exactly_once")
    words = random.Random(0)
    with ShardWriter(place / "corpus", "corpus", samples_per_shard=PASSAGES_PER_SHARD) as writer:
        for number in range(SHARDS * PASSAGES_PER_SHARD):
            writer.add(Passage(id=f"p{number}", title=f"title {number}", text=sentence(words, words.randint(5, 90))))
    for name, seed in (("snapshot", 0), ("other", 1)):
        save_snapshot(tiny_encoder(seed), place / name)
    return place


@pytest.fixture(scope="module")
def pool() -> Iterator[EmbedPool]:
    with EmbedPool(workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def undisturbed(place: Path, pool: EmbedPool) -> EmbeddingSet:
    return pool.embed_corpus(place / "snapshot", place / "corpus", place / "undisturbed")


def assert_each_passage_once(
    found: EmbeddingSet, place: Path, undisturbed: EmbeddingSet, *, bit_for_bit: bool = True
) -> None:
    assert found.ids == [passage.id for passage in CorpusDataset(place / "corpus")]
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(
        path.name for path in undisturbed.folder.iterdir()
    )
    if not bit_for_bit:
        # Two deaths over one part halve its batches, and the last bit of a vector follows what it is batched with.
        rows = np.arange(found.rows)
        np.testing.assert_allclose(found.gather(rows), undisturbed.gather(rows), atol=1e-3)
        return
    for number in range(SHARDS):
        for file in part_files(found.folder, number):
            assert file.read_bytes() == (undisturbed.folder / file.name).read_bytes(), file.name


def done_parts(folder: Path) -> list[int]:
    return [number for number in range(SHARDS) if part_files(folder, number).done.exists()]


def test_the_set_holds_the_encoders_vectors(place: Path, undisturbed: EmbeddingSet) -> None:
    passages = list(CorpusDataset(place / "corpus"))
    rows = [0, PASSAGES_PER_SHARD, len(passages) - 1]
    expected = embed_texts(load_encoder(place / "snapshot"), [passages[row].content for row in rows], side="passage")
    np.testing.assert_allclose(undisturbed.gather(np.array(rows)), expected, atol=2e-3)  # float16


def test_exactly_once_when_workers_are_killed(
    place: Path, pool: EmbedPool, undisturbed: EmbeddingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 5: five kills of a worker process lose nothing and double nothing.

    They follow the parts that are done, not the clock: on a fast machine all would be over before the first.
    """
    monkeypatch.setattr(ray_crew, "_DEATHS_PER_JOB", 100)  # by chance all may hit the same shard
    out = place / "workers_killed"
    moments = random.Random(5)
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        for parts in (1, 3, 5, 7, 9):
            while not ended.wait(moments.uniform(0.005, 0.05)):
                alive = [pid for pid in pool.worker_pids if pid not in killed and psutil.pid_exists(pid)]
                if alive and len(done_parts(out)) >= parts:
                    killed.append(moments.choice(alive))
                    os.kill(killed[-1], signal.SIGKILL)
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = pool.embed_corpus(place / "snapshot", place / "corpus", out)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 5, "all was done before the last kill: the corpus is too small"
    assert_each_passage_once(found, place, undisturbed, bit_for_bit=False)


def test_exactly_once_when_the_driver_is_killed(place: Path, undisturbed: EmbeddingSet) -> None:
    """Invariant 5: the driver is killed, its Ray goes with it, and a restart does only what is missing."""
    out = place / "driver_killed"
    moments = random.Random(11)
    command = [sys.executable, "-c", DRIVER, str(place / "snapshot"), str(place / "corpus"), str(out)]
    with subprocess.Popen(command) as driver:
        wait_for(lambda: len(done_parts(out)) >= moments.randint(2, 6), "parts to be done")
        time.sleep(moments.uniform(0, 0.2))
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert len(family) >= 6, "Ray is not where the test looks for it"
    assert not psutil.wait_procs(family, timeout=30)[1], "Ray outlived its driver"
    assert not (out / "embedding_set.json").exists(), "all was done before the kill: the corpus is too small"
    stamps = {number: part_files(out, number).vectors.stat().st_mtime_ns for number in done_parts(out)}
    subprocess.run(command, check=True, timeout=120)
    for number, stamp in stamps.items():
        assert part_files(out, number).vectors.stat().st_mtime_ns == stamp, f"part {number} was done again"
    assert_each_passage_once(EmbeddingSet.open(out), place, undisturbed)


def test_an_index_returns_only_ids_of_its_corpus(place: Path, undisturbed: EmbeddingSet) -> None:
    """Invariant 5: also where the index finds fewer neighbours than were asked for."""
    build_index(undisturbed, place / "index", IndexConfig(factory="IVF64,Flat", wanted_recall=0.01))
    index = open_index(place / "index")
    found = index.search(undisturbed.gather(np.arange(0, undisturbed.rows, 97)), 500)
    assert (found.rows == -1).any(), "one list has all 500: the test asks for too few"
    ids = {passage.id for passage in CorpusDataset(place / "corpus")}
    assert {index.ids[row] for row in np.unique(found.rows[found.rows >= 0])} <= ids
    for row in found.rows:
        named = row[row >= 0]
        assert len(set(named.tolist())) == len(named)


def test_a_damaged_part_alone_is_done_again(place: Path, pool: EmbedPool, undisturbed: EmbeddingSet) -> None:
    out = place / "damaged"
    pool.embed_corpus(place / "snapshot", place / "corpus", out)
    stamps = {number: part_files(out, number).vectors.stat().st_mtime_ns for number in range(SHARDS)}
    part_files(out, 3).vectors.write_bytes(b"damaged")
    progress: list[tuple[int, int]] = []
    found = pool.embed_corpus(
        place / "snapshot", place / "corpus", out, lambda done, total: progress.append((done, total))
    )
    total = SHARDS * PASSAGES_PER_SHARD
    assert progress == [(total - PASSAGES_PER_SHARD, total), (total, total)]
    redone = [n for n in range(SHARDS) if part_files(out, n).vectors.stat().st_mtime_ns != stamps[n]]
    assert redone == [3]
    assert_each_passage_once(found, place, undisturbed)


def test_another_snapshot_or_corpus_is_refused(place: Path, pool: EmbedPool, undisturbed: EmbeddingSet) -> None:
    with pytest.raises(UserError, match=r"snapshot_hash sha256:\w+ \(now sha256:\w+\).*choose another --out"):
        pool.embed_corpus(place / "other", place / "corpus", undisturbed.folder)
    with ShardWriter(place / "short", "corpus", samples_per_shard=PASSAGES_PER_SHARD) as writer:
        for passage in list(CorpusDataset(place / "corpus"))[:PASSAGES_PER_SHARD]:
            writer.add(passage)
    with pytest.raises(UserError, match=r"already holds part-000001.done.json, but this corpus has 1 shards"):
        pool.embed_corpus(place / "snapshot", place / "short", undisturbed.folder)
    assert EmbeddingSet.open(undisturbed.folder).rows == SHARDS * PASSAGES_PER_SHARD


def test_a_workers_error_comes_with_its_cause_first(place: Path, pool: EmbedPool) -> None:
    with pytest.raises(UserError, match="undisturbed is not a model|corpus is not a model"):
        pool.embed_texts(place / "corpus", ["a"], "query")
    part_files(place / "blocked", 0).vectors.mkdir(parents=True)
    with pytest.raises(WorkerError, match=r"\AIsADirectoryError: .*while embedding corpus-000000.tar\)\n"):
        pool.embed_corpus(place / "snapshot", place / "corpus", place / "blocked")


def test_a_damaged_shard_is_named(place: Path, pool: EmbedPool) -> None:
    copy = place / "flipped"
    copy.mkdir()
    for path in (place / "corpus").iterdir():
        copy.joinpath(path.name).write_bytes(path.read_bytes())
    shard = copy / "corpus-000002.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # in a payload: no header tells
    shard.write_bytes(content)
    with pytest.raises(ShardCorruptError, match=r"corpus-000002.tar at byte 0: its sha256 is"):
        pool.embed_corpus(place / "snapshot", copy, place / "from_flipped")


def test_a_shard_that_ends_every_worker_is_given_up(place: Path, pool: EmbedPool) -> None:
    ended = threading.Event()

    def kill_all() -> None:
        while not ended.wait(0.02):
            for pid in pool.worker_pids:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(WorkerError, match=r"embedding corpus-0000\d\d.tar ended its worker 3 times"):
            pool.embed_corpus(place / "snapshot", place / "corpus", place / "hopeless")
    finally:
        ended.set()
        killer.join()
    assert pool.embed_texts(place / "snapshot", ["it goes on"], "query").shape == (1, 64)


def test_texts_come_back_in_order_from_any_number_of_workers(place: Path, pool: EmbedPool) -> None:
    texts = [sentence(random.Random(k), 1 + k % 40) for k in range(2_500)]
    found = pool.embed_texts(place / "snapshot", texts, "query")
    np.testing.assert_array_equal(found, pool.embed_texts(place / "snapshot", texts, "query"))
    expected = embed_texts(load_encoder(place / "snapshot"), texts, side="query")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert pool.embed_texts(place / "snapshot", [], "query").shape == (0, 64)


LEAVES_NOTHING = """
import os, signal, sys, psutil
from pathlib import Path
from index_build.ray_pool import EmbedPool
before = signal.getsignal(signal.SIGTERM), dict(os.environ)
try:
    with EmbedPool(workers=2) as pool:
        pool.embed_texts(Path(sys.argv[1]), ["a", "b"], "query")
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        pool.embed_texts(Path(sys.argv[1]), [f"text {k}" for k in range(3000)], "query")
        family = psutil.Process().children(recursive=True)
        raise RuntimeError("in the middle")
except RuntimeError:
    pass
assert len(family) >= 4, family
left = psutil.wait_procs(family, timeout=10)[1]
assert not left, left
assert signal.getsignal(signal.SIGTERM) == before[0]
assert not {name for name in os.environ if name.startswith("RAY_AUTH")} - set(before[1])
print("nothing left")
"""


def test_leaving_the_pool_leaves_no_process_and_no_noise(place: Path) -> None:
    """Also after an exception; Ray's notes about the dead worker must not get onto stdout, which is for `--json`."""
    command = [sys.executable, "-c", LEAVES_NOTHING, str(place / "snapshot")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "nothing left\n"
    assert len(ended.stderr.splitlines()) <= 1, ended.stderr
    assert "died while embedding" in ended.stderr


def test_pools_refuse_what_cannot_be() -> None:
    with pytest.raises(UserError, match="workers is 0 and threads_per_worker 1; both must be at least 1"):
        EmbedPool(workers=0)
    with pytest.raises(UserError, match=r"no Ray cluster at '127.0.0.1:1' \(.*refused\); leave the address out"):
        EmbedPool(address="127.0.0.1:1").__enter__()


def wait_for(happened: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
