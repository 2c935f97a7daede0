"""Damaged training data under the user's command: one clear line, or skipped, counted and written down.

The run in quarantine has all that this touches: two datasets mixed, two ranks, and hard negatives mined for both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_shards.negatives import NegativesVersion
from data_shards.reader import PairDataset
from data_shards.shard_reader import ShardReader
from tests.e2e.conftest import dipole, tiny_toml, write_beir
from train.tracker import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.ray]
SHARD, ROW = "train-000001.tar", 7
_STEPS = 12


@pytest.fixture(scope="module")
def damaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the data with a flipped bit in one pair, and a second, sound dataset of pairs."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("beir", "pairs", "corpus"):
        shutil.copytree(data / name, folder / name)
    beir = write_beir(folder / "beir2", seed=2)
    dipole("shards", "pairs", "--input", beir, "--out", folder / "pairs2", "--samples-per-shard", 30)
    path = folder / "pairs" / SHARD
    content = bytearray(path.read_bytes())
    content[int(ShardReader(path).offsets[ROW]) + 600] ^= 1
    path.write_bytes(content)
    return folder


def test_by_default_the_run_ends_with_one_clear_line(damaged: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(tiny_toml(damaged))
    answer = dipole("train", config, "--out", tmp_path / "run", expect=2)
    offset = int(ShardReader(damaged / "pairs" / SHARD).offsets[ROW])
    (line,) = [line for line in answer["stderr"].splitlines() if line.startswith("dipole: ")]
    assert f"{damaged / 'pairs' / SHARD} at byte {offset}: the sample's bytes do not match its checksum" in line
    assert 'data.on_error = "quarantine"' in line
    assert answer["stdout"] == ""
    # What the line says is how the same run goes on.
    resumed = dipole("train", tmp_path / "run" / "config.toml", "--resume", "--data.on_error=quarantine")
    assert (resumed["finished"], resumed["steps"]) == (True, _STEPS)
    assert resumed["quarantined"] == 1


def test_in_quarantine_it_trains_to_the_end_on_all_that_is_sound(damaged: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "c.toml"
    pairs = [str(damaged / "pairs"), str(damaged / "pairs2")]
    mining = ["[refresh]\nfirst_step = 6", "[mining]\nmax_relative_score = 1.0", "[workers]\ncount = 1"]
    config.write_text(tiny_toml(damaged, mining).replace(f'pairs = "{pairs[0]}"', f"pairs = {json.dumps(pairs)}"))
    answer = dipole("train", config, "--out", run, "--data.on_error=quarantine", "--data.weights=2,1")
    assert (answer["finished"], answer["steps"]) == (True, _STEPS)

    dataset = PairDataset(pairs, weights=(2, 1))
    order = dataset.order(batch_size=16, seed=1)
    (lost,) = [n for n in range(len(dataset)) if dataset.shard_stems[dataset.locate([n])[0][0]] == "00-train-000001"][
        ROW : ROW + 1
    ]
    met = [sum(order.batch(step) == lost) for step in range(_STEPS)]
    assert sum(met) >= 1
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["event"] == "step"]
    assert [row["skipped"] for row in rows] == met

    by_rank = [path for path in (run / "quarantine").glob("rank-*.jsonl") if path.read_text()]
    places = [json.loads(line) for path in by_rank for line in path.read_text().splitlines()]
    assert {(Path(place["shard"]).name, place["row"]) for place in places} == {(SHARD, ROW)}
    assert (run / "quarantine" / "miner.jsonl").exists(), "the miner reads every pair to know the positives"

    version = NegativesVersion.open(run / "negatives", 1, dataset.dataset_id)
    stems = {shard.stem for shard in version.manifest.shards}
    assert {stem[:9] for stem in stems} == {"00-train-", "01-train-"}
    assert stems <= set(dataset.shard_stems)
    assert version.negatives("00-train-000001", ROW) == []
    stretch = [number for number in order.stretch(6, _STEPS).tolist() if number != lost]
    assert len(version) <= len(stretch)
    for number in stretch:
        (shard,), (row,) = dataset.locate([number])
        own = {passage.content_hash for passage in dataset.pair(number).positives}
        for negative in version.negatives(dataset.shard_stems[shard], int(row)):
            assert negative.content_hash not in own
