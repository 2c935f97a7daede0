"""The miner's order of work. Mining itself is tested end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_shards.atomic import write_json
from data_shards.negatives import NegativesManifest, write_negatives
from encoder.snapshot import load_encoder, save_snapshot
from launch.config import RunConfig, load_config
from launch.miner import Miner, request_by_hand
from tests.unit.tiny import pair, write_pairs
from train.refresh import RefreshRequest, failed_path
from train.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    write_pairs(tmp_path / "pairs", (pair(number) for number in range(6)))
    return RunFolder(tmp_path / "run")


@pytest.fixture
def config(run: RunFolder) -> RunConfig:
    return load_config(None, [f"--data.pairs={run.root.parent / 'pairs'}", "--batch.batch_size=4"])


def ask(run: RunFolder, version: int) -> RefreshRequest:
    border = 10 * version
    request = RefreshRequest(
        version=version,
        snapshot=f"snapshots/step-{border:07d}",
        snapshot_step=border,
        from_step=border,
        to_step=border + 10,
    )
    request.write(run)
    return request


def publish(root: Path, version: int) -> None:
    numbers = {"from_step": 0, "to_step": 1, "snapshot_step": 0, "per_query": 1}
    manifest = NegativesManifest(
        version=version, dataset_id="a", snapshot_hash="b", index={}, filters={}, scores={}, seconds={}, **numbers
    )
    write_negatives(root, manifest, [])


def test_without_a_request_there_is_nothing_to_do(run: RunFolder, config: RunConfig) -> None:
    assert Miner(run, config).next_request() is None


def test_requests_are_served_oldest_first_and_published_ones_never_again(run: RunFolder, config: RunConfig) -> None:
    miner = Miner(run, config)
    wanted = [ask(run, version) for version in (10, 2, 1, 9)][::-1]
    order = []
    while (request := miner.next_request()) is not None:
        order.append(request.version)
        assert request in wanted
        publish(run.negatives, request.version)
    assert order == [1, 2, 9, 10]


def test_a_failed_request_is_tried_again_by_a_new_miner_and_its_marker_is_no_request(
    run: RunFolder, config: RunConfig
) -> None:
    request = ask(run, 1)
    write_json(failed_path(run, 1), {"cause": "no memory"})
    assert Miner(run, config).next_request() == request


def test_beside_training_the_newest_request_is_served_and_those_before_it_are_left_out(
    run: RunFolder, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    refresh = replace(config.refresh, way="async", first_step=1, every_epochs=2.0)
    miner = Miner(run, replace(config, refresh=refresh))
    assert miner.every_steps == 3
    ask(run, 1)
    assert miner.next_request() == ask(run, 1)
    ask(run, 2)
    with caplog.at_level("INFO"):
        newest = ask(run, 3)
        assert miner.next_request() == newest == miner.next_request()
    assert [row.message for row in caplog.records] == [
        f"version {version} is left out: a newer one is asked for" for version in (1, 2)
    ]
    publish(run.negatives, 3)
    assert miner.next_request() is None, "the ones before are of no use any more"


def test_half_a_request_or_version_is_not_seen(run: RunFolder, config: RunConfig) -> None:
    request = ask(run, 1)
    (run.requests / ".tmp-1-v000000.json").write_text('{"vers')
    (run.negatives / ".tmp-1-v000001").mkdir(parents=True)
    assert Miner(run, config).next_request() == request


def test_a_stretch_over_several_datasets_is_mined_without_what_is_damaged(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinals go on from one dataset to the next; the damaged pair is written into the miner's own file."""
    pairs, more = run.root.parent / "pairs", run.root.parent / "more"
    write_pairs(more, (pair(number) for number in range(100, 108)))
    path = more / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[520] ^= 1  # pair 104, ordinal 10
    path.write_bytes(content)
    config = load_config(None, [f"--data.pairs={pairs},{more}", "--batch.batch_size=4", "--data.on_error=quarantine"])
    asked: dict[str, Any] = {}
    monkeypatch.setattr("launch.miner.mine", lambda **arguments: asked.update(arguments))
    miner = Miner(run, config)
    miner.serve(RefreshRequest(version=1, snapshot="s", snapshot_step=0, from_step=0, to_step=40), run.negatives)
    assert asked["ordinals"].tolist() == [number for number in range(14) if number != 10]
    assert asked["train"].dataset_id == asked["known"].dataset_id == miner._pairs.dataset_id
    (line,) = run.quarantine("miner").read_text().splitlines()
    assert (json.loads(line)["shard"], json.loads(line)["row"]) == (str(path), 0)


def test_by_hand_the_newest_snapshot_mines_for_the_steps_ahead(run: RunFolder, snapshot: Path) -> None:
    encoder = load_encoder(snapshot)
    save_snapshot(encoder, run.initial)
    save_snapshot(encoder, run.snapshot(40), step=40)
    save_snapshot(encoder, run.snapshot(200), step=200)
    (run.root / "snapshots" / ".tmp-1-step-0000300").mkdir()
    publish(run.root / "mined", 3)
    assert request_by_hand(run, run.root / "mined", every_steps=0) == RefreshRequest(
        version=4, snapshot="snapshots/step-0000200", snapshot_step=200, from_step=200, to_step=300
    )
    assert request_by_hand(run, run.root / "other", every_steps=20).to_step == 220
    assert request_by_hand(run, run.root / "other", every_steps=20).version == 1
