"""Where a dataset may lie: folders, URLs, commands; what each refuses; and what is fetched ahead."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.remote.folder import RemoteFolder
from data_shards.remote.object_store import _translated
from data_shards.remote.prefetch import Prefetcher
from data_shards.remote.transfer import RefusedError, TransientError, Wanted
from data_shards.storage import CacheConfig, FetchStats, LocalFolder, Storage, open_storage

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), retries=0, timeout_s=5, allow_pipe=True)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A folder with a shard and a manifest."""
    folder = tmp_path / "origin"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "manifest.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def memory(origin: Path, request: pytest.FixtureRequest) -> str:
    """The same behind a URL."""
    url = f"memory://{request.node.name}"
    system = fsspec.filesystem("memory")
    for path in origin.iterdir():
        system.pipe_file(f"{url}/{path.name}", path.read_bytes())
    return url


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_local_folder_is_read_where_it_is(origin: Path) -> None:
    for location in (origin, str(origin), f"file://{origin}"):
        storage = open_storage(location)
        assert isinstance(storage, LocalFolder)
        assert storage.location == str(origin)
        assert storage.read("manifest.json") == b"{}"
        assert storage.local("a.tar", size=1, sha256="0" * 64) == origin / "a.tar"
        assert storage.try_local("a.tar.idx") is None
        with storage.hold("a.tar") as path:
            assert path == origin / "a.tar"
        storage.prefetch([("a.tar", None, None)])
        storage.close()
        assert storage.fetched == FetchStats()
    with pytest.raises(
        UserError, match=rf"{origin} has no b\.tar; check the location, or copy the dataset there again"
    ):
        open_storage(origin).local("b.tar")


def test_a_remote_folder_is_read_through_the_cache(memory: str, cache: CacheConfig) -> None:
    storage = open_storage(memory, cache)
    assert storage.read("manifest.json") == b"{}"
    path = storage.local("a.tar", size=len(CONTENT), sha256=SHA256)
    assert path.is_relative_to(cache.folder)
    assert path.name == "a.tar"
    assert path.read_bytes() == CONTENT
    with storage.hold("a.tar", size=len(CONTENT), sha256=SHA256) as again:
        assert again == path
    assert storage.try_local("a.tar.idx") is None
    fetched = storage.fetched
    assert (fetched.files, fetched.bytes, fetched.hits) == (2, len(CONTENT) + 2, 1)
    assert fetched.seconds > 0
    with pytest.raises(UserError, match=r"^memory://.* has no b\.tar; check the location"):
        storage.local("b.tar")
    with pytest.raises(UserError, match=r"has no b\.tar"):
        storage.local("b.tar", size=1, sha256="0" * 64)
    with pytest.raises(
        ShardCorruptError, match=r"a\.tar at byte 7: the store has 10240 bytes of it, the manifest says 7"
    ):
        storage.local("a.tar", size=7)


def test_equal_content_from_elsewhere_is_not_fetched_again(memory: str, cache: CacheConfig) -> None:
    open_storage(memory, cache).local("a.tar", size=len(CONTENT), sha256=SHA256)
    other = open_storage("memory://not-there", cache)
    assert other.local("a.tar", size=len(CONTENT), sha256=SHA256).read_bytes() == CONTENT
    assert other.fetched == FetchStats(hits=1)


def test_a_file_without_a_checksum_is_fetched_again_when_it_changes(memory: str, cache: CacheConfig) -> None:
    storage = open_storage(memory, cache)
    first = storage.try_local("manifest.json")
    assert first is not None
    assert first.read_bytes() == b"{}"
    assert storage.try_local("manifest.json") == first
    fsspec.filesystem("memory").pipe_file(f"{memory}/manifest.json", b"[]")
    second = storage.try_local("manifest.json")
    assert second is not None
    assert second.read_bytes() == b"[]"


def test_names_that_lead_out_of_the_dataset_are_refused(memory: str, origin: Path, cache: CacheConfig) -> None:
    storages: list[Storage] = [open_storage(memory, cache), open_storage(origin)]
    for storage in storages:
        for name in ("../a.tar", "/etc/passwd", "..", "", "a/b.tar"):
            with pytest.raises(UserError, match="leads out of its dataset; refused"):
                storage.local(name)
            with pytest.raises(UserError, match="leads out"):
                storage.read(name)
            with pytest.raises(UserError, match="leads out"):
                storage.try_local(name)


def test_a_url_that_came_as_a_path_is_one_still(memory: str, cache: CacheConfig) -> None:
    assert str(Path(memory)).startswith("memory:/test")
    storage = open_storage(Path(memory), cache)
    assert isinstance(storage, RemoteFolder)
    assert storage.read("manifest.json") == b"{}"


def test_what_nothing_reads_is_named(cache: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^foo://host/a begins with foo://, which nothing here reads; wanted a local"
    ):
        open_storage("foo://user:secret@host/a?token=1", cache)

    def not_installed(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", not_installed)
    with pytest.raises(
        UserError, match=r"^s3://b/a needs a library that is not installed: pip install 'dipole\[s3\]'"
    ):
        open_storage("s3://b/a", cache)


def test_commands_run_only_where_allowed(origin: Path, cache: CacheConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^a pipe: location runs a shell command .* set cache\.allow_pipe=true$"):
        open_storage(f"pipe:touch {tmp_path}/ran; cat {origin}/{{name}}", CacheConfig(dir=cache.dir))
    with pytest.raises(UserError, match=r"wants \{name\} where the file's name goes"):
        open_storage("pipe:cat /data/a.tar", cache)
    assert not (tmp_path / "ran").exists()
    storage = open_storage(f"pipe:cat {origin}/{{name}} | cat", cache)
    assert storage.location == "pipe:cat …"
    assert storage.read("manifest.json") == b"{}"
    assert storage.local("a.tar", size=len(CONTENT), sha256=SHA256).read_bytes() == CONTENT
    assert storage.local("a.tar").read_bytes() == CONTENT
    assert storage.try_local("a.tar.idx") is None
    with pytest.raises(
        UserError, match=r"b\.tar could not be fetched from pipe:cat …: the command ended with status 1: "
    ):
        storage.local("b.tar")


def test_a_name_is_no_command(origin: Path, cache: CacheConfig, tmp_path: Path) -> None:
    name = "$(touch ran); echo '`touch ran`' \" & touch ran #.tar"
    (origin / name).write_bytes(b"safe")
    storage = open_storage(f"pipe:cd {tmp_path}; cat {origin}/{{name}}", cache)
    assert storage.read(name) == b"safe"
    assert not (tmp_path / "ran").exists()


def test_a_command_that_hangs_is_ended_with_its_children(cache: CacheConfig, tmp_path: Path) -> None:
    command = f"pipe:(sleep 1; touch {tmp_path}/survived) & echo {{name}}; sleep 30"
    storage = open_storage(command, CacheConfig(dir=cache.dir, retries=0, timeout_s=0.2, allow_pipe=True))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"the command wrote nothing for 0\.2 s"):
        storage.read("a")
    assert time.monotonic() - began < 5
    time.sleep(1)
    assert not (tmp_path / "survived").exists()


def test_a_command_that_breaks_off_is_run_again_for_the_rest(
    origin: Path, cache: CacheConfig, tmp_path: Path
) -> None:
    first = f"if mkdir {tmp_path}/again 2>/dev/null; then head -c 5000 {origin}/{{name}}; exit 3; fi"
    command = f"pipe:echo run >> {tmp_path}/log; {first}; cat {origin}/{{name}}"
    storage = open_storage(command, CacheConfig(dir=cache.dir, retries=1, allow_pipe=True))
    assert storage.local("a.tar", size=len(CONTENT), sha256=SHA256).read_bytes() == CONTENT
    assert (tmp_path / "log").read_text() == "run\nrun\n"


def test_what_will_be_read_is_fetched_ahead(memory: str, cache: CacheConfig) -> None:
    storage = open_storage(memory, cache)
    storage.prefetch([("a.tar", len(CONTENT), SHA256), ("missing.tar", 1, "0" * 64), ("manifest.json", 2, None)])
    wait_for(lambda: storage.fetched.files == 2)
    storage.local("a.tar", size=len(CONTENT), sha256=SHA256)
    assert storage.fetched.hits == 1
    storage.close()


def test_prefetch_takes_at_most_half_of_the_cache(
    memory: str, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(memory, CacheConfig(dir=cache.dir, budget_gib=10 / (1 << 30)))
    asked: list[list[Wanted]] = []
    assert isinstance(storage, RemoteFolder)
    monkeypatch.setattr(storage._prefetcher, "ask", asked.append)
    storage.prefetch([(name, 2, None) for name in "abcdef"])
    assert [wanted.name for wanted in asked[0]] == ["a", "b"]


def test_the_newest_request_wins() -> None:
    """One thread, held up in `first`: of the two requests that come meanwhile only the second is served."""
    done, begun, go_on = list[str](), threading.Event(), threading.Event()

    def work(wanted: Wanted) -> None:
        begun.set()
        go_on.wait(10)
        done.append(wanted.name)

    prefetcher = Prefetcher(work, threads=1)
    prefetcher.ask([Wanted("first"), Wanted("dropped")])
    begun.wait(10)
    prefetcher.ask([Wanted("dropped too")])
    prefetcher.ask([Wanted("c"), Wanted("d")])
    go_on.set()
    wait_for(lambda: len(done) == 3)
    assert done == ["first", "c", "d"]
    prefetcher.close(10)
    assert not any(thread.is_alive() for thread in prefetcher._started)


def test_no_threads_fetch_nothing() -> None:
    prefetcher = Prefetcher(lambda wanted: pytest.fail("nothing is to be fetched"), threads=0)
    prefetcher.ask([Wanted("a")])
    prefetcher.close(1)


def test_what_fails_ahead_is_a_note_and_not_an_error(
    memory: str, cache: CacheConfig, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(memory, cache)
    with caplog.at_level(logging.INFO, logger="data_shards"):
        storage.prefetch([("../missing.tar", None, None), ("missing.tar", 5, None), ("manifest.json", None, None)])
        wait_for(lambda: storage.fetched.files == 1)
    storage.close()
    assert "missing.tar was not fetched ahead" in caplog.text


def test_a_librarys_mistake_does_not_end_fetching_ahead(
    memory: str, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that dies of one is not replaced: later everything would be waited for."""
    storage = open_storage(memory, replace(cache, prefetch_threads=1))
    fetch, names = storage._fetch, []

    def broken_once(wanted: Wanted, *more: Any) -> None:
        names.append(wanted.name)
        if len(names) == 1:
            raise AttributeError("a library's mistake")
        fetch(wanted, *more)

    monkeypatch.setattr(storage, "_fetch", broken_once)
    storage.prefetch([("a.tar", len(CONTENT), SHA256), ("manifest.json", None, None)])
    wait_for(lambda: len(names) == 2 and storage.fetched.files == 1)
    storage.close()


class StatusError(Exception):
    """What aiohttp raises for a bad answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='https://host/a?sig=secret'")
        self.status = status


def hidden(cause: Exception) -> Exception:
    """What fsspec makes of any failure of a look at a web server."""
    error = FileNotFoundError("https://host/a")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("a"), FileNotFoundError),
        (StatusError(404), FileNotFoundError),
        (hidden(StatusError(404)), FileNotFoundError),
        (hidden(StatusError(403)), RefusedError),
        (hidden(StatusError(503)), TransientError),
        (hidden(ConnectionResetError("reset")), TransientError),
        (StatusError(400), RefusedError),
        (StatusError(429), TransientError),
        (PermissionError("no"), RefusedError),
        (OSError("Forbidden: b/o"), RefusedError),
        (OSError(5, "Internal error"), TransientError),
        (TimeoutError(), TransientError),
        (TypeError("a bug of ours"), TypeError),
    ],
)
def test_errors_are_sorted_by_what_can_be_done(error: Exception, kind: type[Exception]) -> None:
    sorted_out = _translated(error)
    assert type(sorted_out) is kind
    assert "secret" not in str(sorted_out)
    assert str(sorted_out)


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"cache\.budget_gib must be above 0, came 0"):
        CacheConfig(budget_gib=0)
    with pytest.raises(UserError, match=r"cache\.timeout_s must be above 0, came -1"):
        CacheConfig(timeout_s=-1)
    with pytest.raises(
        UserError, match=r"cache\.retries and cache\.prefetch_threads must be 0 or more, came -1 and 2"
    ):
        CacheConfig(retries=-1)


def test_the_cache_lies_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert CacheConfig().folder == Path("/home/me/.cache/dipole/shards")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert CacheConfig().folder == Path("/fast/dipole/shards")
    assert CacheConfig(dir="~/here").folder == Path("/home/me/here")
