"""`dipole shards pairs`, killed outright again and again, ends with the bytes of an import that nobody disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import dipole
from tests.e2e.watching import Watched

FILES, ROWS = 30, 400


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files with repetitions between them."""
    folder = tmp_path_factory.mktemp("raw") / "raw"
    folder.mkdir()
    for number in range(FILES):
        with open(folder / f"{number:03d}.jsonl", "w") as file:
            for row in range(ROWS):
                at = number * ROWS + row
                file.write(json.dumps({"query": f"question {at % 9_000}", "positive": f"answer {at} " * 20}) + "\n")
                if row % 10 == 0:
                    repeated = {"query": f"question {row}", "positive": f"answer {row} " * 20}
                    file.write(json.dumps(repeated) + "\n")
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw: Path) -> Path:
    out = raw.parent / "undisturbed"
    report = dipole("shards", "pairs", "--input", raw, "--out", out)["report"]
    assert report["pairs_kept"] == FILES * ROWS
    assert report["repeated_positive"] == FILES * ROWS // 10
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_kills_cost_no_done_part_and_change_no_byte(raw: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed while parts are made, again later, and while shards are written; then it runs through."""
    out = tmp_path / "undisturbed"
    work = tmp_path / ".undisturbed.import"
    arguments = ("shards", "pairs", "--input", raw, "--out", out, "--workers", "2")

    def done() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in work.glob("[!.]*.done.json")}

    kept: dict[str, int] = {}
    for enough in (3, 12, FILES):
        watched = Watched(*arguments)
        try:
            if enough < FILES:
                watched.wait_for(lambda: len(done()) >= enough)  # noqa: B023
            else:
                watched.wait_for(lambda: any(work.glob("dataset/*")))
            watched.process.kill()
            assert watched.ends_within(20) == [], "workers outlived the command"
        finally:
            watched.clean_up()
        assert not out.exists()
        assert kept.items() <= done().items(), "a part that was done was made again"
        kept = done()
    assert len(kept) == FILES
    dipole(*arguments)
    assert files_of(out) == files_of(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["undisturbed"]
