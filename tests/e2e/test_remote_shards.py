"""Datasets on a real S3 server: read bit for bit, fetched once a node, within the cache, through kills and damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="wants the s3 extra")
pytest.importorskip("moto.server", reason="wants the test extra")

from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import MANIFEST_NAME, Manifest
from data_shards.reader import CorpusDataset
from data_shards.samples import Passage
from data_shards.storage import CacheConfig, open_storage
from data_shards.writer import ShardWriter
from tests.e2e.s3_server import S3Server

ROOT = Path(__file__).parents[2]
SHARDS, PASSAGES_PER_SHARD = 6, 50
GIB = 1 << 30


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.gets.clear()
    server.slow_s = 0.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of six shards on this disk."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    with ShardWriter(folder, "corpus", samples_per_shard=PASSAGES_PER_SHARD) as writer:
        for number in range(SHARDS * PASSAGES_PER_SHARD):
            writer.add(Passage(id=f"p{number}", title=f"page {number}", text=f"text {number} " * (number % 40)))
    return folder


@pytest.fixture(scope="module")
def url(server: S3Server, corpus: Path) -> str:
    """The same corpus on the server."""
    return server.upload(corpus, "corpora")


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), retries=2, timeout_s=10)


def tars(server: S3Server) -> dict[str, int]:
    return {path: count for path, count in server.gets.items() if path.endswith(".tar")}


def start_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_dataset_reads_as_it_does_from_disk(server: S3Server, corpus: Path, url: str, cache: CacheConfig) -> None:
    remote, local = CorpusDataset(url, cache=cache), CorpusDataset(corpus)
    assert list(remote) == list(local)
    assert remote.passages([299, 0, 150]) == local.passages([299, 0, 150])
    manifest = Manifest.load(corpus)
    storage = open_storage(url, cache)
    for entry in manifest.shards:
        path = storage.local(entry.path, size=entry.bytes, sha256=entry.sha256)
        assert path.read_bytes() == (corpus / entry.path).read_bytes()
    assert (storage.fetched.files, storage.fetched.hits) == (0, SHARDS)
    assert tars(server) == {f"/corpora/data/{entry.path}": 1 for entry in manifest.shards}


def test_a_cache_of_two_shards_is_never_exceeded(
    server: S3Server, corpus: Path, url: str, cache: CacheConfig
) -> None:
    largest = max(entry.bytes for entry in Manifest.load(corpus).shards)
    room = int(2.5 * largest)
    small = CacheConfig(dir=cache.dir, budget_gib=room / GIB)
    for number, _ in enumerate(CorpusDataset(url, cache=small)):
        if number % PASSAGES_PER_SHARD == 0:
            assert sum(path.stat().st_size for path in small.folder.glob("*/*")) <= room
    assert 1 <= len(list(small.folder.glob("*/*.tar"))) <= 2
    assert sum(tars(server).values()) == SHARDS
    list(CorpusDataset(url, cache=small))
    assert sum(tars(server).values()) > SHARDS


READ_ALL = """
    import sys
    from data_shards.reader import CorpusDataset
    from data_shards.storage import CacheConfig
    print(sum(len(passage.text) for passage in CorpusDataset(sys.argv[1], cache=CacheConfig(dir=sys.argv[2]))))
    """


def test_four_processes_of_a_node_fetch_each_shard_once(
    server: S3Server, corpus: Path, url: str, cache: CacheConfig
) -> None:
    server.slow_s = 0.2  # so that all of them meet
    expected = f"{sum(len(passage.text) for passage in CorpusDataset(corpus))}\n"
    processes = [start_python(READ_ALL, url, cache.dir) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert out == expected, err
    assert tars(server) == {f"/corpora/data/{entry.path}": 1 for entry in Manifest.load(corpus).shards}


def test_a_killed_reader_leaves_the_cache_sound(server: S3Server, corpus: Path, url: str, cache: CacheConfig) -> None:
    """Killed in the middle of three fetches; who comes next neither waits for the dead nor reads half a shard."""
    server.slow_s = 1.0
    for _ in range(3):
        reader = start_python(READ_ALL, url, cache.dir)
        deadline = time.monotonic() + 30
        while not list(cache.folder.glob(f"*/.tmp-{reader.pid}-*")):
            assert time.monotonic() < deadline, reader.communicate()
            assert reader.poll() is None, reader.communicate()
            time.sleep(0.01)
        os.kill(reader.pid, signal.SIGKILL)
        reader.communicate(timeout=10)
    assert list(cache.folder.glob("*/.tmp-*"))
    server.slow_s = 0.0
    assert list(CorpusDataset(url, cache=cache)) == list(CorpusDataset(corpus))
    assert not list(cache.folder.glob("*/.tmp-*"))


def test_a_forked_child_goes_on_with_its_parents_dataset(corpus: Path, url: str, cache: CacheConfig) -> None:
    """As a loader's workers do: connections, event loop and threads of the parent are of no use to them."""
    script = """
        import os, sys, time
        from pathlib import Path
        from data_shards.storage import CacheConfig, open_storage
        storage = open_storage(sys.argv[1], CacheConfig(dir=sys.argv[2]))
        storage.prefetch([("corpus-000000.tar", None, None)])
        storage.local("corpus-000001.tar")
        if os.fork() == 0:
            storage.prefetch([("corpus-000002.tar", None, None)])
            storage.local("corpus-000003.tar")
            while not list(Path(sys.argv[2]).glob("*/corpus-000002.tar")):
                time.sleep(0.01)
            print("read", flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
        print("done", flush=True)
        """
    out, err = start_python(script, url, cache.dir).communicate(timeout=30)
    assert out == "read\ndone\n", err


def test_damage_on_the_server_is_noticed_and_named(
    server: S3Server, corpus: Path, cache: CacheConfig, request: pytest.FixtureRequest
) -> None:
    url = server.upload(corpus, "damaged")
    content = bytearray((corpus / "corpus-000001.tar").read_bytes())
    content[700] ^= 1  # in a payload: no header tells
    server.client.put_object(Bucket="damaged", Key="data/corpus-000001.tar", Body=bytes(content))
    server.client.put_object(Bucket="damaged", Key="data/corpus-000002.tar", Body=bytes(content[:5000]))
    server.client.delete_object(Bucket="damaged", Key="data/corpus-000003.tar")
    dataset = CorpusDataset(url, cache=cache)
    line = (
        r"corpus-000001\.tar at byte 0: its sha256 is [0-9a-f]{64}, the manifest says [0-9a-f]{64} \(fetched 2 times"
    )
    with pytest.raises(ShardCorruptError, match=line):
        dataset.passages([PASSAGES_PER_SHARD])
    line = r"corpus-000002\.tar at byte 5000: the store has 5000 bytes of it, the manifest says \d+ \(fetched 2 times"
    with pytest.raises(ShardCorruptError, match=line):
        dataset.passages([2 * PASSAGES_PER_SHARD])
    with pytest.raises(UserError, match=r"s3://damaged/data has no corpus-000003\.tar; check the location, or copy"):
        dataset.passages([3 * PASSAGES_PER_SHARD])
    assert not list(cache.folder.glob("*/corpus-00000[123].tar"))


def test_places_that_are_not_there_are_one_line(url: str, cache: CacheConfig) -> None:
    for nowhere in ("s3://no-such-bucket/data", url.replace("data", "nothing")):
        with pytest.raises(UserError, match=rf"^{nowhere} has no {MANIFEST_NAME}; check the location"):
            CorpusDataset(nowhere, cache=cache)
    with pytest.raises(UserError, match=r"^s3://no bucket/data refuses manifest\.json: .*; check the location"):
        CorpusDataset("s3://no bucket/data", cache=cache)


def test_credentials_are_asked_for_and_never_shown(
    server: S3Server, url: str, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    line = (
        r"^s3://corpora/data refuses manifest\.json: Unable to locate credentials; check the location and your cred"
    )
    with pytest.raises(UserError, match=line):
        CorpusDataset(url, cache=cache)
    storage = open_storage(url.replace("s3://", "s3://key:very-secret@"), cache)
    assert storage.location == url
