"""Embedding on Ray in full: remote corpora, a crew that grows, a passage that kills, storms of kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("moto", reason="needs moto[server] and s3fs: pip install -e '.[test]'")

from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import save_snapshot
from index_build.corpus_job import Wish
from index_build.embedding_part import part_files
from index_build.embedding_set import EmbeddingSet
from index_build.ray_pool import EmbedPool
from tests.e2e.conftest import dipole
from tests.e2e.deadly_worker import WORDS, deadly_worker
from tests.e2e.s3_server import S3Server

pytestmark = pytest.mark.ray

SHARDS, PER_SHARD = 8, 40
TIMEOUT_S = 240

DRIVER = """
import sys
from pathlib import Path
from index_build.ray_pool import EmbedPool
snapshot, corpus, out = map(Path, sys.argv[1:])
with EmbedPool(workers=2) as pool:
    pool.embed_corpus(snapshot, corpus, out)
"""


def sentence(dice: random.Random, words: int) -> str:
    return " ".join(f"word{dice.randrange(300)}" for _ in range(words))


def passages(count: int, seed: int = 0) -> list[Passage]:
    dice = random.Random(seed)
    return [Passage(id=f"p{k}", title=f"title {k}", text=sentence(dice, dice.randint(5, 60))) for k in range(count)]


def write_shards(folder: Path, rows: list[Passage], per_shard: int = PER_SHARD) -> Path:
    with ShardWriter(folder, "corpus", samples_per_shard=per_shard) as writer:
        for row in rows:
            writer.add(row)
    return folder


def write_parquet(path: Path, rows: list[Passage]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": [r.id for r in rows], "title": [r.title for r in rows], "text": [r.text for r in rows]}
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a snapshot."""
    place = tmp_path_factory.mktemp("in_full")
    write_shards(place / "corpus", passages(SHARDS * PER_SHARD))
    texts = [sentence(random.Random(k), 30) for k in range(100)]
    config = ScratchConfig(layers=2, width=32, heads=2, vocab_size=500)
    save_snapshot(scratch_encoder(config, EncoderSettings(max_tokens=64), texts, seed=0), place / "snapshot")
    return place


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that this process and all that it starts find through their environment."""
    server = S3Server()
    before = dict(os.environ)
    os.environ.update(server.environment, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    yield server
    os.environ.clear()
    os.environ.update(before)
    server.close()


@pytest.fixture(scope="module")
def pool(s3: S3Server) -> Iterator[EmbedPool]:
    with EmbedPool(workers=1, max_workers=2, worker=deadly_worker()) as pool:
        yield pool


@pytest.fixture(scope="module")
def plain(place: Path, pool: EmbedPool) -> EmbeddingSet:
    return pool.embed_corpus(place / "snapshot", place / "corpus", place / "plain")


def assert_same(found: EmbeddingSet, plain: EmbeddingSet) -> None:
    """Each passage once, and its vector; in the last bits batches of other sizes may differ."""
    assert found.ids == plain.ids
    rows = np.arange(plain.rows)
    np.testing.assert_allclose(found.gather(rows), plain.gather(rows), atol=2e-3)
    found.verify()


def test_the_crew_grows_while_work_waits(place: Path, pool: EmbedPool, plain: EmbeddingSet) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    attempt = 0
    while len(pool.worker_pids) < 2:
        assert time.monotonic() < deadline, "the pool did not grow"
        attempt += 1
        assert_same(pool.embed_corpus(place / "snapshot", place / "corpus", place / f"grown{attempt}"), plain)
    assert len(pool.worker_pids) == 2


def test_remote_shards_and_parquet_give_what_local_ones_give(
    place: Path, pool: EmbedPool, plain: EmbeddingSet, s3: S3Server
) -> None:
    shards = s3.upload(place / "corpus", "shards")
    assert_same(pool.embed_corpus(place / "snapshot", shards, place / "of_s3"), plain)
    rows = passages(SHARDS * PER_SHARD)
    for number in range(4):
        write_parquet(place / "parquet" / f"part-{number}.parquet", rows[number * 80 : (number + 1) * 80])
    url = s3.upload(place / "parquet", "parquet")
    found = pool.embed_corpus(place / "snapshot", url, place / "of_parquet")
    assert_same(found, plain)
    assert found.parts[0].provenance.shard_sha256.startswith(
        f'{(place / "parquet" / "part-0.parquet").stat().st_size} bytes, etag "'
    )
    one = pool.embed_corpus(place / "snapshot", f"{url}/part-2.parquet", place / "of_one")
    assert one.ids == plain.ids[160:240]


def test_a_passage_that_kills_its_worker_is_left_out(place: Path, pool: EmbedPool, plain: EmbeddingSet) -> None:
    """With no exception to tell of it: workers that come after the dead ones find it by halves."""
    rows = passages(SHARDS * PER_SHARD)
    rows[97] = Passage(id="p97", title="deadly", text=f"a {WORDS} among others")
    corpus = write_shards(place / "deadly", rows)
    found = pool.embed_corpus(place / "snapshot", corpus, place / "of_deadly")
    assert [(each.id, each.row, each.reason) for each in found.quarantined] == [
        ("p97", 97, "it ended 2 worker processes, alone")
    ]
    others = np.delete(np.arange(len(rows)), 97)
    assert found.ids == [rows[row].id for row in others]
    np.testing.assert_allclose(found.gather(np.arange(found.rows)), plain.gather(others), atol=2e-3)
    assert not list((place / "of_deadly").glob(".*"))


def test_since_on_ray(place: Path, pool: EmbedPool, plain: EmbeddingSet) -> None:
    rows = passages(SHARDS * PER_SHARD)[:200] + [Passage(id="new", text="a new one")]
    corpus = write_shards(place / "newer", rows)
    found = pool.embed_corpus(place / "snapshot", corpus, place / "of_newer", wish=Wish(since=plain.folder))
    assert (pool.work.copied, pool.work.embedded, pool.work.changes["removed"]) == (200, 1, 120)
    assert found.gather_stored(np.arange(200)).tobytes() == plain.gather_stored(np.arange(200)).tobytes()


def test_a_storm_of_kills(place: Path, plain: EmbeddingSet) -> None:
    """Invariant 5: workers and drivers are killed at seeded moments until a driver gets through."""
    dice = random.Random(17)
    out = place / "stormed"
    command = [sys.executable, "-c", DRIVER, str(place / "snapshot"), str(place / "corpus"), str(out)]
    done: set[str] = set()
    for kills_driver in (True, True, False):
        with subprocess.Popen(command) as driver:
            wait_for(partial(has_gone_on, out, len(done), driver), "a part to be done")
            time.sleep(dice.uniform(0, 0.1))
            family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            for worker in [each for each in family if is_worker(each)][: dice.randint(0, 1)]:
                kill(worker.pid)
            if kills_driver and driver.poll() is None:
                driver.kill()
        assert not psutil.wait_procs(family, timeout=60)[1], "Ray outlived its driver"
        stamps = done_parts(out)
        assert done <= set(stamps), "what was done is gone"
        done = set(stamps)
    assert driver.returncode == 0
    assert_same(EmbeddingSet.open(out), plain)
    assert not list(out.glob(".*"))


def test_the_command_takes_it_all(place: Path, s3: S3Server) -> None:
    """As a user would: Parquet in a bucket, int8, half the dimensions, then an index over it and a search."""
    rows = passages(60, seed=3)
    write_parquet(place / "mine" / "corpus.parquet", rows)
    url = s3.upload(place / "mine", "mine")
    made = dipole(
        *("embed", "--model", place / "snapshot", "--corpus", url, "--out", place / "mine_set"),
        *("--workers", 1, "--max-workers", 2, "--keep", "int8", "--dim", 16),
    )
    about: dict[str, Any] = {"passages": 60, "dim": 16, "kept": "int8", "parts": 1, "quarantined": 0}
    assert {name: made[name] for name in about} == about
    assert made["passages_per_s"] > 0
    assert 0 <= made["padding_share"] < 1
    dipole("index", "build", "--embeddings", place / "mine_set", "--out", place / "mine_index")
    words = rows[7].content
    hits = dipole("search", words, "--index", place / "mine_index", "--model", place / "snapshot", "-k", 3)["hits"]
    assert (hits[0]["id"], hits[0]["title"]) == ("p7", "title 7")
    refused = dipole(
        *("embed", "--model", place / "snapshot", "--corpus", url, "--out", place / "mine_set", "--dim", 16),
        expect=2,
    )
    assert "with kept int8 (now float16); a set is never mixed" in refused["stderr"]


def has_gone_on(out: Path, done: int, driver: subprocess.Popen[bytes]) -> bool:
    return len(done_parts(out)) > done or driver.poll() is not None


def done_parts(out: Path) -> dict[str, int]:
    found = (part_files(out, number) for number in range(SHARDS))
    return {files.done.name: files.done.stat().st_mtime_ns for files in found if files.done.exists()}


def is_worker(process: psutil.Process) -> bool:
    try:
        return "EmbedWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def kill(pid: int) -> None:
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGKILL)


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
