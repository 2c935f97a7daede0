"""`dipole index …` as a user calls it: build, update, delete, list, check, roll back, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.samples import Passage
from encoder.snapshot import snapshot_hash
from index_build.embedding_set import publish_set
from launch.cli import main
from tests.unit.index_sets import clustered, embedding_set, numbered


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two embedding sets, the second with ten passages less, ten changed and ten new."""
    vectors = clustered(400, 16, 0)
    embedding_set(tmp_path / "one", vectors)
    changed = [Passage(id=f"p{row}", text="changed") for row in range(10, 20)]
    passages = [*changed, *numbered(400)[20:], *numbered(10, "new")]
    embedding_set(tmp_path / "two", np.concatenate([vectors[10:], clustered(10, 16, 5)]), 2, passages)
    return tmp_path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Any:
    def asked(*words: object) -> dict[str, Any]:
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return asked


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    return error[error.index("dipole: ") :]


def test_the_life_of_an_index(place: Path, ask: Any) -> None:
    index = place / "index"
    built = ask("index", "build", "--embeddings", place / "one", "--out", index, "--factory", "IVF8,SQfp16")
    assert (built["version"], built["ntotal"], built["rebuild_due"]) == (1, 400, "no")
    assert built["choice"] == "IVF8,SQfp16: as given"
    assert Path(built["report"]).is_file()
    assert built["recall@10_interval"][0] <= built["recall@10"] <= built["recall@10_interval"][1]
    updated = ask("index", "update", index, "--embeddings", place / "two")
    assert updated["changes"] == {"added": 10, "replaced": 10, "removed": 10, "kept": 380}
    (place / "ids.txt").write_text("new0\r\nnew1\n\n")
    deleted = ask("index", "delete", index, "--ids", place / "ids.txt")
    assert (deleted["version"], deleted["base_version"], deleted["ntotal"]) == (3, 2, 398)
    listed = ask("index", "list", index)
    assert [row["ntotal"] for row in listed["versions"]] == [400, 400, 398]
    checked = ask("index", "check", index, "--embeddings", place / "two")
    assert checked["versions"]["3"]["compared"] == ["embedding set"]
    assert ask("index", "rollback", index, "--version", 1)["version"] == 1
    assert ask("index", "list", index)["current"] == 1


def test_wishes_reach_the_choice(place: Path, ask: Any) -> None:
    words = ("--embeddings", place / "one", "--out", place / "index", "--memory-gib", 1, "--on-disk", "always")
    built = ask("index", "build", *words)
    assert built["on_disk"] is True
    assert built["choice"] == "IVF8,SQfp16 on disk: the lists shall lie on disk"
    quick = ask("index", "build", "--embeddings", place / "one", "--out", place / "q", "--factory", "HNSW8,SQfp16")
    assert set(quick["search"]) == {"efSearch"}


def test_queries_are_vectors_or_texts(place: Path, ask: Any, snapshot: Path) -> None:
    np.save(place / "queries.npy", clustered(40, 16, 3))
    words = ("index", "build", "--embeddings", place / "one", "--out", place / "index")
    ask(*words, "--queries", place / "queries.npy")
    assert json.loads((place / "index/v000001/manifest.json").read_text())["recall@10"]["queries_from"] == "given"
    from encoder.snapshot import load_encoder

    dim = load_encoder(snapshot).dim
    made = embedding_set(place / "real", clustered(100, dim, 0))
    origin = {"path": str(snapshot), "hash": snapshot_hash(snapshot)}
    publish_set(made.folder, made.parts, snapshot=origin, corpus=made.corpus)
    (place / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": n, "text": f"words {n}"}) + "\n" for n in range(6))
    )
    (place / "queries.txt").write_text("some words\n\nothers\n")
    for number, (name, count) in enumerate((("queries.jsonl", 3), ("queries.txt", 1)), 1):
        ask("index", "build", "--embeddings", place / "real", "--out", place / "t", "--queries", place / name)
        recall = json.loads((place / f"t/v00000{number}/manifest.json").read_text())["recall@10"]
        assert (recall["queries_from"], recall["queries"]) == ("given", count)


def test_mistakes_are_one_line(place: Path, ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("index", "build", "--embeddings", place / "one", "--out", place / "index")
    np.save(place / "wrong.npy", np.zeros((5, 3), np.float32))
    (place / "wrong.jsonl").write_text('{"title": "x"}\n')
    (place / "short.txt").write_text("one\n")
    for name, wanted in (
        ("wrong.npy", "holds an array of shape (5, 3); wanted two or more rows of 16 dimensions"),
        ("wrong.jsonl", "line 1 is no JSON object with a `text` or a `query`"),
        ("short.txt", "holds 1 queries; recall is measured with two or more"),
        ("none.npy", "does not exist; give queries as .npy, .jsonl or text, one a line"),
    ):
        assert wanted in mistake(capsys, *words, "--queries", place / name)
    assert "--workers is 0, wanted at least 1" in mistake(capsys, *words, "--workers", 0)
    assert "cannot be read" in mistake(capsys, "index", "delete", place / "index", "--ids", place / "none.txt")
    assert "holds no index" in mistake(capsys, "index", "update", place / "none", "--embeddings", place / "one")
    ask(*words)
    path = place / "index/v000001/index.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    told = mistake(capsys, "index", "check", place / "index")
    assert "index.faiss is damaged" in told
    assert told.count("\n") == 1
