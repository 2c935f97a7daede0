"""Latency and throughput of `dipole serve`, at several loads, with batches and without, and while versions change.

    python -m benchmarks.bench_serve --data BEIR_DIR [--model NAME_OR_PATH] [--seconds 8] [--connections 1 4 16 64]

The server is a process of its own, the client is wrk with one thread: on few cores they share them. Queries are the
data's own, in turn. Without --model an untrained 2 x 128 encoder stands in: the same work, without the sense.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench_negatives import dipole, imported
from benchmarks.side_by_side import show
from data_shards.beir import BeirFolder
from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from index_build.embedding_set import EmbeddingSet
from index_build.index import build_index
from index_build.index_config import IndexConfig

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SWAPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("needs wrk: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        found: dict[str, dict[str, Any]] = {}
        with served(folder) as url:
            for connections in options.connections:
                found[f"{connections} connections"] = load(url, folder, connections, options.seconds)
            most = max(options.connections)
            found[f"{most} connections, {_SWAPS} new versions"] = load_while_swapping(
                url, folder, most, options.seconds
            )
        with served(folder, "--max-batch", 1) as url:
            found[f"{most} connections, one at a time"] = load(url, folder, most, options.seconds)
    ratio = found[f"{most} connections"]["per_s"] / found[f"{most} connections, one at a time"]["per_s"]
    lines = {what: line(row) for what, row in found.items()}
    lines["batches over one at a time"] = f"{ratio:.2f} x"
    show(f"dipole serve over {options.data.name}", lines, {"loads": found, "ratio": ratio}, options.json)


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Make model, embeddings, index and wrk's script."""
    data = BeirFolder(options.data)
    if options.model:
        encoder = load_encoder(options.model)
    else:
        scratch = ScratchConfig(layers=2, width=128, heads=2, vocab_size=16_384)
        texts = (passage.content for passage in data.corpus())
        encoder = scratch_encoder(scratch, EncoderSettings(max_tokens=128), texts, seed=0)
    save_snapshot(encoder, folder / "model")
    corpus = imported("corpus", options.data, folder)
    dipole("embed", "--model", folder / "model", "--corpus", corpus, "--out", folder / "vectors")
    dipole("index", "build", "--embeddings", folder / "vectors", "--out", folder / "index")
    paths = [f"/search?k=10&q={urllib.parse.quote(text[:200])}" for text in data.queries().values() if text.strip()]
    quoted = ",".join(f'"{path}"' for path in paths[:2_000])
    script = f"local paths = {{{quoted}}}\nlocal n = 0\n"
    script += "request = function() n = n % #paths + 1; return wrk.format('GET', paths[n]) end\n"
    (folder / "queries.lua").write_text(script)


@contextmanager
def served(folder: Path, *flags: object) -> Iterator[str]:
    """Run the user's command until the block ends."""
    words = [str(Path(sys.executable).with_name("dipole")), "serve", "--index", folder / "index"]
    words += ["--model", folder / "model", "--port", 0, "--look-every-s", 0.2, *flags]
    process = subprocess.Popen(
        [str(word) for word in words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    try:
        url = next(found[1] for line in process.stderr if (found := re.search(r"at (http://\S+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield url
    finally:
        process.terminate()
        process.wait(60)


def load(url: str, folder: Path, connections: int, seconds: int) -> dict[str, Any]:
    """Send requests as fast as they are answered; return latencies in ms, requests a second, and how many failed."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    done = subprocess.run(
        [*words, "-s", str(folder / "queries.lua"), url], capture_output=True, text=True, check=True
    )
    text = done.stdout
    latency = {
        f"p{share}": float(value) * _UNITS[unit]
        for share, value, unit in re.findall(r"^ +(50|75|90|99)% +([\d.]+)(us|ms|s|m) *$", text, re.MULTILINE)
    }
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", text)))
    for errors in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        failed += sum(map(int, errors))
    requests, per_s = re.search(r"(\d+) requests in", text), re.search(r"Requests/sec: +([\d.]+)", text)
    assert requests is not None, text
    assert per_s is not None, text
    return {**latency, "per_s": float(per_s[1]), "requests": int(requests[1]), "failed": failed}


def load_while_swapping(url: str, folder: Path, connections: int, seconds: int) -> dict[str, Any]:
    """The same while new versions are built and become current."""

    def build() -> None:
        for _ in range(_SWAPS):
            time.sleep(seconds / (_SWAPS + 1))
            build_index(EmbeddingSet.open(folder / "vectors"), folder / "index", IndexConfig())

    thread = threading.Thread(target=build)
    thread.start()
    found = load(url, folder, connections, 2 * seconds)
    thread.join()
    return found


def line(row: dict[str, Any]) -> str:
    """Show one load."""
    latency = ", ".join(f"{name} {row[name]:.1f} ms" for name in ("p50", "p90", "p99"))
    return f"{latency}, {row['per_s']:.0f} requests/s, {row['requests']} requests, {row['failed']} failed"


if __name__ == "__main__":
    main()
