"""Importing a corpus: megabytes of raw text a second, plain, cleaned, and with near-duplicates found.

    python -m benchmarks.bench_import [--data BEIR_DIR] [--copies 4] [--workers 1] [--rounds 3] [--json]

The input is a BEIR folder's corpus, as often as asked with other words at each text's end, or without one made-up
text of about a kilobyte a passage. The validation report, which reads everything once more, is not in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from benchmarks.side_by_side import in_turn, ratios, show
from data_shards.beir import BeirFolder
from data_shards.cleaning.config import CleaningConfig
from data_shards.importing.config import ImportConfig
from data_shards.importing.importers import ImportTools, import_dataset
from launch.process_pool import process_pool

_WORDS = 20_000
_PASSAGES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cleanings = {
        "no cleaning": CleaningConfig(unicode=False, whitespace=False),
        "by default (Unicode, white space)": CleaningConfig(),
        "and near-duplicates": CleaningConfig(near_duplicates=True),
        "and HTML, boilerplate, personal data": CleaningConfig(
            near_duplicates=True, html=True, boilerplate=True, pii=("email", "phone", "card", "ip", "iban")
        ),
    }
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "corpus.jsonl"
        size = write_raw(raw, texts(options.data), options.copies)
        number = itertools.count()

        def measure(cleaning: CleaningConfig) -> float:
            out = Path(scratch) / f"out-{next(number)}"
            began = time.perf_counter()
            with process_pool(options.workers) if options.workers > 1 else nullcontext() as run_parts:
                tools = ImportTools(run_parts=run_parts) if run_parts else ImportTools()
                import_dataset("corpus", [raw], out, ImportConfig(cleaning=cleaning), tools)
            return size / 1e6 / (time.perf_counter() - began)

        sides = {name: lambda cleaning=cleaning: measure(cleaning) for name, cleaning in cleanings.items()}
        found = in_turn(sides, options.rounds)
    rows = {
        f"{name}, MB/s": f"{side.median:.1f} ({min(side.values):.1f} to {max(side.values):.1f})"
        for name, side in found.items()
    }
    default, near = (found[name] for name in list(cleanings)[1:3])
    slower = ratios(default, near)
    rows["without near-duplicates / with"] = f"{slower['median']:.2f} ({slower['least']:.2f} to {slower['most']:.2f})"
    answer = {"bytes": size, "mb_per_s": {name: side.values for name, side in found.items()}, "ratio": slower}
    show(f"Importing {size / 1e6:.0f} MB with {options.workers} process(es)", rows, answer, options.json)


def texts(data: Path | None) -> list[str]:
    """Return the passages of a BEIR folder, or made-up ones."""
    if data is not None:
        return [passage.content for passage in BeirFolder(data).corpus()]
    return list(_made_up())


def _made_up() -> Iterator[str]:
    draw = np.random.default_rng(0)
    for _ in range(_PASSAGES):
        yield " ".join(f"word{at}" for at in np.minimum(draw.zipf(1.3, 120), _WORDS))


def write_raw(path: Path, found: list[str], copies: int) -> int:
    """Write JSONL and return its size."""
    with open(path, "w", encoding="utf-8") as file:
        for copy in range(copies):
            for row, text in enumerate(found):
                tail = f" copy {copy} " * 40 * copy
                file.write(json.dumps({"_id": f"{copy}-{row}", "title": "", "text": text + tail}) + "\n")
    return path.stat().st_size


if __name__ == "__main__":
    main()
