"""Shards from web servers that fail, stall, know no ranges, refuse: each a real one on loopback."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.remote import transfer
from data_shards.storage import CacheConfig, open_storage

pytest.importorskip("aiohttp", reason="wants the http extra")

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves one content; `misbehave` sees each GET first, with its number, and says whether it has answered it."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.misbehave: Callable[[BaseHTTPRequestHandler, int], bool] = lambda handler, number: False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers["Range"]))
                if not outer.misbehave(self, len(outer.requests)):
                    outer.answer(self)

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.send_header("ETag", hashlib.md5(outer.content).hexdigest())
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/data"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, stop: int | None = None) -> None:
        """Send the content, or from it what was asked for; `stop` bytes of it, and then hang up."""
        begin = 0
        if self.ranges and (asked := handler.headers["Range"]):
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.content) - begin))
        handler.end_headers()
        handler.wfile.write(self.content[begin:stop])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_WAIT_S", 1e-3)


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), retries=3, timeout_s=5)


def refuse(status: int, times: int = 1000) -> Callable[[BaseHTTPRequestHandler, int], bool]:
    """Answer the first requests with an error."""

    def misbehave(handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number <= times:
            handler.send_error(status)
        return number <= times

    return misbehave


def test_one_request_a_shard_and_the_query_stays_at_the_end(server: Server, cache: CacheConfig) -> None:
    storage = open_storage(f"{server.url}/?token=secret", cache)
    assert storage.local("a b#.tar", size=SIZE, sha256=SHA256).read_bytes() == CONTENT
    assert server.requests == [("/data/a%20b%23.tar?token=secret", None)]
    assert "secret" not in storage.location


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_fails_twice_and_then_works(server: Server, cache: CacheConfig, status: int) -> None:
    server.misbehave = refuse(status, times=2)
    assert open_storage(server.url, cache).local("a.tar", size=SIZE, sha256=SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_short_bodies_are_continued(
    server: Server, cache: CacheConfig, ranges: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server knows ranges by one; otherwise what is here already is read again and dropped."""

    def hang_up(handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number <= 2:
            server.answer(handler, stop=400_000 * number)
            time.sleep(0.2)  # aiohttp drops what it has not handed on when the connection breaks
            handler.close_connection = True
        return number <= 2

    server.ranges, server.misbehave = ranges, hang_up
    storage = open_storage(server.url, cache)
    assert storage.local("a.tar", size=SIZE, sha256=SHA256).read_bytes() == CONTENT
    begins = [int((asked or "bytes=0-")[6:-1]) for _, asked in server.requests]
    assert begins[0] == 0
    assert 0 < begins[1] <= 400_000 < begins[2] <= 800_000
    assert "retry 1 of 3" in caplog.text
    assert storage.fetched.bytes == SIZE


def test_a_stalled_body_is_continued(server: Server, cache: CacheConfig) -> None:
    def stall(handler: BaseHTTPRequestHandler, number: int) -> bool:
        if number == 1:
            server.answer(handler, stop=300_000)
            handler.wfile.flush()
            time.sleep(3)
        return number == 1

    server.misbehave = stall
    storage = open_storage(server.url, CacheConfig(dir=cache.dir, retries=1, timeout_s=0.3))
    assert storage.local("a.tar", size=SIZE, sha256=SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_body_without_a_length_is_read_to_its_end(server: Server, cache: CacheConfig) -> None:
    def no_length(handler: BaseHTTPRequestHandler, number: int) -> bool:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)
        handler.close_connection = True
        return True

    server.misbehave = no_length
    assert open_storage(server.url, cache).local("a.tar", size=SIZE, sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refusals_are_one_line_at_once(server: Server, cache: CacheConfig, status: int) -> None:
    server.misbehave = refuse(status)
    storage = open_storage(f"{server.url}?sig=secret", cache)
    line = rf"^http://127\.0\.0\.1:\d+/data refuses a\.tar: HTTP status {status} \(.*\); check the location and your"
    with pytest.raises(UserError, match=line) as caught:
        storage.local("a.tar", size=SIZE, sha256=SHA256)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_one_line_at_once(server: Server, cache: CacheConfig, status: int) -> None:
    server.misbehave = refuse(status)
    with pytest.raises(UserError, match=r"/data has no a\.tar; check the location, or copy the dataset there again$"):
        open_storage(server.url, cache).local("a.tar", size=SIZE, sha256=SHA256)
    assert len(server.requests) == 1


def test_a_server_that_never_works_is_one_line(server: Server, cache: CacheConfig) -> None:
    server.misbehave = refuse(500)
    with pytest.raises(UserError, match=r"a\.tar could not be fetched from http://.*: HTTP status 500 .*\(4 tries\)"):
        open_storage(server.url, cache).local("a.tar", size=SIZE, sha256=SHA256)
    assert len(server.requests) == 4


def test_nobody_listens(server: Server, cache: CacheConfig) -> None:
    server.close()
    with pytest.raises(UserError, match=r"a\.tar could not be fetched from http://.* \(4 tries\)"):
        open_storage(server.url, cache).local("a.tar", size=SIZE, sha256=SHA256)


def test_a_file_of_another_size_is_noticed_before_it_is_fetched(server: Server, cache: CacheConfig) -> None:
    server.content = CONTENT[:-1]
    storage = open_storage(server.url, cache)
    line = rf"a\.tar at byte {SIZE - 1}: the store has {SIZE - 1} bytes of it, the manifest says {SIZE}"
    with pytest.raises(ShardCorruptError, match=line):
        storage.local("a.tar", size=SIZE, sha256=SHA256)
    assert storage.fetched.bytes == 0


def test_flipped_bits_are_noticed_and_leave_no_copy(server: Server, cache: CacheConfig) -> None:
    server.content = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    storage = open_storage(server.url, cache)
    with pytest.raises(
        ShardCorruptError, match=rf"a\.tar at byte 0: its sha256 is [0-9a-f]+, the manifest says {SHA256}"
    ):
        storage.local("a.tar", size=SIZE, sha256=SHA256)
    assert not list(cache.folder.glob("*/*.tar"))
    server.content = CONTENT
    assert storage.local("a.tar", size=SIZE, sha256=SHA256).read_bytes() == CONTENT


def test_a_sidecar_is_looked_up_and_kept_while_it_is_the_same(server: Server, cache: CacheConfig) -> None:
    storage = open_storage(server.url, cache)
    first, again = storage.try_local("a.tar.idx"), storage.try_local("a.tar.idx")
    assert first == again
    assert len(server.requests) == 1
    server.content = b"new"
    changed = storage.try_local("a.tar.idx")
    assert changed is not None
    assert changed.read_bytes() == b"new"
