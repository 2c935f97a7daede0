"""`dipole serve`: a real server, real requests, versions exchanged under them, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_shards.atomic import read_json
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import save_snapshot
from index_build.embedding_set import EmbeddingSet
from index_build.index import build_index
from index_build.index_config import IndexConfig
from tests.e2e.conftest import clean_environment, command, dipole

pytestmark = [pytest.mark.ray]
TOKEN = "planted-0123456789abcdef"


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an embedding set and an index of one version."""
    folder = tmp_path_factory.mktemp("served")
    texts = [json.loads(line)["text"] for line in (data / "beir/corpus.jsonl").read_text().splitlines()]
    scratch = ScratchConfig(layers=1, width=32, heads=2, vocab_size=300)
    save_snapshot(scratch_encoder(scratch, EncoderSettings(max_tokens=40), texts, seed=0), folder / "model")
    dipole(
        "embed", "--model", folder / "model", "--corpus", data / "corpus", "--out", folder / "vectors", "--workers", 1
    )
    dipole("index", "build", "--embeddings", folder / "vectors", "--out", folder / "index")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy of the index that a test may change."""
    return Path(shutil.copytree(made / "index", tmp_path / "index"))


def new_version(made: Path, index: Path) -> int:
    return build_index(EmbeddingSet.open(made / "vectors"), index, IndexConfig()).version


class Server:
    """A running `dipole serve`."""

    def __init__(self, made: Path, index: Path, *flags: object, environment: dict[str, str] | None = None) -> None:
        words = command(
            "serve", "--index", index, "--model", made / "model", "--port", 0, "--look-every-s", 0.1, *flags
        )
        self.process = subprocess.Popen(
            words,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment() | (environment or {}),
        )
        self.log: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"serving version \d+ of .* at (http://\S+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.log))
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or []), daemon=True)
        self._reader.start()

    def ask(
        self, path: str, body: Any = None, *, token: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return status and what was answered."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read().decode()
                return response.status, json.loads(text) if "json" in response.headers["content-type"] else text
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@pytest.fixture
def server(made: Path, index: Path) -> Iterator[Server]:
    running = Server(made, index)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def test_it_finds_what_dipole_search_finds(server: Server, made: Path, index: Path) -> None:
    wanted = dipole("search", "river stone", "--index", index, "--model", made / "model", "-k", 3, "--text-chars", 0)
    status, found = server.ask("/search", {"query": "river stone", "k": 3})
    assert (status, found["version"]) == (200, 1)
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in wanted["hits"]]
    assert found["hits"][0]["score"] == pytest.approx(wanted["hits"][0]["score"], abs=1e-5)
    assert server.ask("/search?q=river+stone&k=3")[1]["hits"] == found["hits"]
    status, several = server.ask("/search", {"queries": ["river stone", "copper"], "k": 3})
    assert [hit["id"] for hit in several["hits"][0]] == [hit["id"] for hit in found["hits"]]
    assert len(several["hits"]) == 2
    assert server.ask("/healthz") == (200, {"ok": True, "version": 1, "passages": 120})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "the body is no JSON"),
        ({"query": "x", "queries": ["y"]}, 422, 'wanted {"query"'),
        ({"query": "x", "n": 3}, 422, 'wanted {"query"'),
        ({"query": " "}, 422, "a query is empty"),
        ({"queries": []}, 422, "0 queries in one request, wanted 1 to 64"),
        ({"query": "x", "k": 0}, 422, "k is 0, wanted 1 to 1000"),
        ({"query": "x", "k": True}, 422, "k is true, wanted a number"),
        ({"queries": ["x", 3]}, 422, "queries have to be texts"),
        ({"query": "x" * 10_001}, 422, "a query has 10001 characters, at most 10000 are taken"),
        (b" " * ((1 << 20) + 1), 413, "the request has 1048577 bytes, at most 1048576 are taken"),
    ],
)
def test_what_does_not_fit_is_refused(shared: Server, body: Any, status: int, message: str) -> None:
    found, answer = shared.ask("/search", body)
    assert found == status, answer
    assert message in answer["error"]


@pytest.fixture(scope="module")
def shared(made: Path) -> Iterator[Server]:
    """A server that no test changes."""
    running = Server(made, made / "index")
    yield running
    running.process.kill()
    running.process.wait()


def test_other_places_are_told_in_json(shared: Server) -> None:
    assert shared.ask("/nowhere") == (404, {"error": "Not Found"})
    assert shared.ask("/search?q=x&k=many") == (422, {"error": "k is 'many', wanted a number"})


def test_versions_are_exchanged_and_no_request_fails(server: Server, made: Path, index: Path) -> None:
    answers: list[tuple[int, int]] = []
    done = threading.Event()

    def ask_on() -> None:
        while not done.is_set():
            status, found = server.ask("/search", {"query": "river", "k": 2})
            answers.append((status, found.get("version", 0)))

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            version = new_version(made, index)
            wait_for_version(server, version)
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} >= {1, 4}
    metrics = server.ask("/metrics")[1]
    assert "dipole_index_swaps_total 3.0" in metrics
    assert "dipole_index_version 4.0" in metrics
    assert f'dipole_requests_total{{path="/search",status="200"}} {len(answers)}.0' in metrics
    assert server.stop() == 0


def wait_for_version(server: Server, version: int) -> None:
    deadline = time.monotonic() + 60
    while server.ask("/healthz")[1]["version"] != version:
        assert time.monotonic() < deadline, "".join(server.log)
        time.sleep(0.05)


def test_a_damaged_version_is_not_served(server: Server, made: Path, index: Path) -> None:
    version = new_version(made, index.parent / "other")
    shutil.copytree(index.parent / "other/v000001", index / "v000002")
    assert version == 1
    manifest = read_json(index / "v000002/manifest.json")
    (index / "v000002/manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    (index / "CURRENT").write_text("v000002\n")
    deadline = time.monotonic() + 60
    while not server.ask("/healthz")[1].get("refused"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.ask("/search", {"query": "river"})[1]["version"] == 1
    assert "dipole_index_refused_total 1.0" in server.ask("/metrics")[1]
    (index / "CURRENT").write_text("v000001\n")
    while server.ask("/healthz")[1].get("refused"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.stop() == 0
    assert sum("version 1 is served on:" in line for line in server.log) == 1


def test_a_token_is_asked_for_and_told_nobody(made: Path, index: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    server = Server(made, index, "--token-file", file)
    try:
        assert server.ask("/search", {"query": "x"}) == (401, {"error": "bring the token: Authorization: Bearer …"})
        assert server.ask("/search", {"query": "x"}, token=TOKEN[:-1])[0] == 401
        assert server.ask("/search", {"query": "x"}, token=TOKEN)[0] == 200
        assert server.ask("/metrics")[0] == 401
        assert server.ask("/healthz")[0] == 200
        assert TOKEN not in server.ask("/")[1]
        assert TOKEN not in server.ask("/metrics", token=TOKEN)[1]
    finally:
        server.stop()
    assert TOKEN not in "".join(server.log)


def test_mistakes_are_one_line(made: Path, shared: Server, tmp_path: Path) -> None:
    port = shared.url.rpartition(":")[2]
    words = ["serve", "--index", made / "index", "--model", made / "model"]
    assert f"port {port} of 127.0.0.1 is in use" in dipole(*words, "--port", port, expect=2)["stderr"]
    loose = tmp_path / "token"
    loose.write_text(TOKEN)
    loose.chmod(0o644)
    assert f"others may read {loose}" in dipole(*words, "--token-file", loose, expect=2)["stderr"]
    short = dipole(*words, expect=2, environment={"DIPOLE_SERVE_TOKEN": "short"})["stderr"]
    assert "at least 16 ASCII characters" in short
    gone = dipole("serve", "--index", tmp_path, "--model", made / "model", "--port", 0, expect=2)["stderr"]
    assert "holds no index" in gone


@pytest.mark.browser
def test_the_page_in_a_browser(shared: Server) -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        driver.set_page_load_timeout(120)
        driver.get(shared.url)
        assert "120 passages in version 1" in driver.find_element(By.CLASS_NAME, "about").text
        driver.find_element(By.ID, "query").send_keys("river <b>stone</b>\n")
        WebDriverWait(driver, 60).until(lambda page: page.find_elements(By.CLASS_NAME, "hit"))
        hits = driver.find_elements(By.CLASS_NAME, "hit")
        wanted = shared.ask("/search", {"query": "river <b>stone</b>"})[1]["hits"]
        assert [hit.find_element(By.CLASS_NAME, "id").text for hit in hits] == [hit["id"] for hit in wanted]
        assert "10 passages in" in driver.find_element(By.ID, "said").text
        driver.find_element(By.ID, "query").clear()
        driver.find_element(By.ID, "query").send_keys("   \n")
        WebDriverWait(driver, 60).until(lambda page: "empty" in page.find_element(By.ID, "said").text)
        assert not driver.find_elements(By.CLASS_NAME, "hit")
        assert [
            row for row in driver.get_log("browser") if row["level"] == "SEVERE" and "422" not in row["message"]
        ] == []
    finally:
        driver.quit()
