"""The newcomer's command, small: what it writes, and that others can read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from sentence_transformers import SentenceTransformer

from data_shards.reader import CorpusDataset
from tests.e2e.conftest import dipole
from train.tracker import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.ray]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny quickstart, with the comparison."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    dipole("quickstart", "--tiny", "--compare", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def result(out: Path) -> dict[str, Any]:
    """Its result.json."""
    return dict(json.loads((out / "result.json").read_text()))


def test_result_holds_what_was_promised(result: dict[str, Any]):
    assert result["world_size"] == 2
    assert result["steps"] == 12
    assert result["negatives_versions"] == 2
    assert result["passages"] == result["index"]["ntotal"] == 600
    assert 0 < result["pairs"] < 600
    assert result["index"]["factory"] == "IVF16,SQ8"
    assert 0.5 < result["index"]["recall@10"] <= 1
    assert result["seconds"] > 0
    assert set(result["metrics"]) == {"bm25", "untrained", "trained", "no_refresh"}
    for values in result["metrics"].values():
        assert set(values) == {"ndcg@10", "mrr@10", "recall@100"}
    assert result["metrics"]["trained"]["ndcg@10"] > result["metrics"]["untrained"]["ndcg@10"]
    for name in ("wandb_dir", "snapshot", "index_dir"):
        assert Path(result[name]).is_dir(), name
    assert list(Path(result["wandb_dir"]).glob("offline-run-*/*.wandb"))


def test_the_trainer_used_each_version_from_its_step_on(out: Path):
    rows = read_metrics(out / "run" / "metrics.jsonl")
    used = {row["step"]: row["negatives_version"] for row in rows if row["event"] == "step"}
    assert used == {step: (step >= 6) + (step >= 9) for step in range(12)}
    assert [row["step"] for row in rows if row["event"] == "refresh"] == [6, 9]
    assert [row["step"] for row in rows if row["event"] == "dev"] == [0, 6, 12]


def test_sentence_transformers_gives_the_vectors_that_embed_wrote(out: Path, result: dict[str, Any]):
    model = SentenceTransformer(result["snapshot"], device="cpu")
    passages = {passage.id: passage.content for passage in CorpusDataset(out / "data" / "corpus")}
    ids = pq.read_table(out / "embeddings" / "part-000000.ids.parquet")["id"].to_pylist()[:200]
    ours = np.load(out / "embeddings" / "part-000000.npy", allow_pickle=False)[:200].astype(np.float32)
    theirs = model.encode([passages[name] for name in ids])
    assert np.abs(ours - theirs).max() < 5e-4  # float16 keeps eleven bits of numbers below 1


def test_plain_webdataset_reads_every_sample(out: Path, result: dict[str, Any]):
    for kind, wanted in (("train", result["pairs"]), ("corpus", result["passages"])):
        shards = sorted(map(str, (out / "data" / kind).glob("*.tar")))
        samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
        assert len(samples) == wanted
        assert len({sample["__key__"] for sample in samples}) == wanted


def test_the_report_stands_alone(out: Path, result: dict[str, Any]):
    page = (out / "report.html").read_text()
    assert f"{result['metrics']['trained']['ndcg@10']:.3f}" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert page.count("<svg") >= 4


def test_a_second_one_in_the_same_folder_is_refused(out: Path):
    answer = dipole("quickstart", "--tiny", "--out", out, expect=2)
    assert answer["stderr"] == f"dipole: {out} is there already and is never overwritten; choose another --out\n"
    assert answer["stdout"] == ""


def test_it_starts_from_a_local_pretrained_encoder(out: Path, result: dict[str, Any], tmp_path: Path):
    answer = dipole("quickstart", "--tiny", "--model", result["snapshot"], "--out", tmp_path / "out")
    assert answer["negatives_versions"] == 2
    # It began where the given model stood: its weights, and so its metrics, are the other run's last ones.
    assert answer["metrics"]["untrained"]["ndcg@10"] == pytest.approx(result["metrics"]["trained"]["ndcg@10"])
