"""The verbs one by one, as the README has them, on a BEIR folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.e2e.conftest import dipole, tiny_toml
from tests.e2e.watching import losses

pytestmark = [pytest.mark.distributed, pytest.mark.ray]


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training on two ranks."""
    folder = tmp_path_factory.mktemp("verbs") / "run"
    answer = dipole("train", config, "--out", folder)
    assert answer == {
        "run": str(folder),
        "finished": True,
        "steps": 12,
        "snapshot": str(folder / "snapshots" / "final"),
    }
    return folder


def test_train_mine_embed_index_search_evaluate(run: Path, data: Path, tmp_path: Path):
    snapshot = run / "snapshots" / "final"
    mined = dipole("mine", "--run", run)
    assert mined["queries"] == 80
    assert (Path(mined["folder"]) / "manifest.json").is_file()

    embedded = dipole("embed", "--model", snapshot, "--corpus", data / "corpus", "--out", tmp_path / "embeddings")
    assert embedded["passages"] == 120

    index = tmp_path / "index"
    built = dipole("index", "build", "--embeddings", tmp_path / "embeddings", "--out", index)
    assert built["ntotal"] == 120
    assert dipole("index", "check", index)

    found = dipole("search", "--index", index, "--model", snapshot, "river stone cloud 7", "-k", 3)
    assert len(found["hits"]) == 3
    assert found["hits"][0]["score"] >= found["hits"][1]["score"] >= found["hits"][2]["score"]

    values = dipole(
        "evaluate", "--model", snapshot, "--data", data / "beir", "--split", "dev", "--baselines", "bm25", "untrained"
    )
    assert set(values["metrics"]) == {"model", "bm25", "untrained"}
    assert values["metrics"]["bm25"]["ndcg@10"] > 0.8


def test_the_resolved_config_runs_again_as_it_is_and_gives_the_same_run(run: Path, tmp_path: Path):
    again = tmp_path / "again"
    copied = tmp_path / "config.toml"
    copied.write_text((run / "config.toml").read_text())
    dipole("train", copied, "--out", again, f"--encoder.model={run / 'snapshots' / 'initial'}")
    assert losses(again) == losses(run)
    found, wanted = (load_file(where / "snapshots/final/model.safetensors") for where in (again, run))
    assert all((found[name] == wanted[name]).all() for name in wanted)


@pytest.mark.deepspeed
def test_zero2_passes_with_the_same_config(run: Path, config: Path, tmp_path: Path):
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    zero = tmp_path / "zero2"
    initial = run / "snapshots" / "initial"
    dipole(
        "train", config, "--out", zero, "--engine.kind=zero2", f"--encoder.model={initial}", "--scratch.dropout=0.1"
    )
    found, wanted = losses(zero), losses(run)
    # Same weights, data and dropout: apart by what float32 summation order leaves after twelve AdamW steps.
    assert max(abs(found[step] - wanted[step]) for step in range(12)) < 1e-3


def test_a_gzipped_beir_folder_is_read_as_it_is(data: Path, tmp_path: Path):
    zipped = tmp_path / "beir"
    (zipped / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (zipped / f"{name}.gz").write_bytes(gzip.compress((data / "beir" / name).read_bytes()))
    (zipped / "qrels" / "train.tsv").write_bytes((data / "beir" / "qrels" / "train.tsv").read_bytes())
    answer = dipole("shards", "pairs", "--input", zipped, "--out", tmp_path / "pairs", "--samples-per-shard", 30)
    plain = json.loads((data / "pairs" / "manifest.json").read_text())
    assert answer["dataset_id"] == plain["dataset_id"]


def test_mistakes_get_one_line(run: Path, config: Path, data: Path, tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("keep me")
    snapshot = run / "snapshots" / "final"
    cases: list[tuple[list[object], str]] = [
        (["train", tmp_path / "none.toml"], "does not exist"),
        (["train", config, "--train.stepz=3", "--out", tmp_path / "x"], "did you mean train.steps?"),
        (["train", config, "--out", run], "holds a run that is done; choose another run.out"),
        (["train", config, "--out", other], "is not empty and holds no run"),
        (["train", config, "--out", tmp_path / "x", "--ranks", 3], "set batch.batch_size to 15 or 18"),
        (["train", config, "--out", tmp_path / "x", f"--encoder.model={tmp_path}"], "is not a model"),
        (["train", config, "--out", tmp_path / "x", f"--data.pairs={tmp_path}"], "is no dataset"),
        (["shards", "pairs", "--input", tmp_path / "none", "--out", tmp_path / "x"], "does not exist"),
        (["shards", "pairs", "--input", empty, "--out", tmp_path / "x"], "empty.jsonl"),
        (["shards", "pairs", "--input", data / "beir", "--out", other], "choose another --out"),
        (["embed", "--model", tmp_path, "--corpus", data / "corpus", "--out", tmp_path / "x"], "is not a model"),
        (["search", "--index", tmp_path, "--model", snapshot, "text"], str(tmp_path)),
        (["evaluate", "--model", snapshot, "--data", data / "beir", "--split", "tset"], "tset"),
        (["mine", "--run", tmp_path], "is not a run folder"),
        (["quickstart", "--model", tmp_path, "--out", tmp_path / "x"], "is not a model"),
    ]
    for arguments, message in cases:
        answer = dipole(*arguments, expect=2)
        assert message in answer["stderr"], (arguments, answer)
        assert answer["stderr"].count("\n") == 1, answer["stderr"]
        assert answer["stdout"] == ""
        assert not (tmp_path / "x").exists(), arguments
    assert (other / "thesis.txt").read_text() == "keep me"


def test_a_failed_refresh_ends_the_run_with_its_cause_and_the_run_resumes(data: Path, tmp_path: Path):
    """The corpus is damaged when the miner comes to it, and mended afterwards: nothing of the run is lost."""
    config = tmp_path / "mined.toml"
    corpus = tmp_path / "corpus"
    dipole("shards", "corpus", "--input", data / "beir", "--out", corpus)
    text = tiny_toml(data, ["[refresh]\nfirst_step = 4", "[workers]\ncount = 1"])
    config.write_text(text.replace(str(data / "corpus"), str(corpus)))
    tar = next(corpus.glob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    run = tmp_path / "run"
    failed = dipole("train", config, "--out", run, f"--encoder.model={_snapshot(data, tmp_path)}", expect=1)
    assert "negatives version 1 was not made" in failed["stderr"]
    assert "corpus-000000.tar at byte" in failed["stderr"]
    tar.write_bytes(whole)
    assert dipole("train", run / "config.toml", "--resume")["steps"] == 12


def _snapshot(data: Path, tmp_path: Path) -> Path:
    """Write a model, so that the damaged corpus is not read for a tokenizer first."""
    from encoder.model import EncoderSettings, ScratchConfig, scratch_encoder
    from encoder.snapshot import save_snapshot

    texts = (data / "beir" / "corpus.jsonl").read_text().splitlines()
    scratch = ScratchConfig(layers=1, width=32, vocab_size=300)
    path = tmp_path / "model"
    save_snapshot(scratch_encoder(scratch, EncoderSettings(max_tokens=40), texts, seed=0), path)
    return path
