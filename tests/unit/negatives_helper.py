"""Publishes small negatives versions."""

from __future__ import annotations

from pathlib import Path

from data_shards.negatives import MinedNegative, NegativesManifest, NegativesRow, write_negatives
from tests.unit.tiny import passage
from train.run_folder import RunFolder

DATASET = "sha256:a"


def publish(
    run: RunFolder,
    version: int,
    dataset_id: str = DATASET,
    *,
    from_step: int = 60,
    to_step: int = 80,
    snapshot_step: int = 60,
) -> Path:
    """Publish a version with one negative."""
    manifest = NegativesManifest(
        version=version,
        dataset_id=dataset_id,
        from_step=from_step,
        to_step=to_step,
        snapshot_hash="sha256:b",
        snapshot_step=snapshot_step,
        per_query=1,
        index={},
        filters={},
        scores={"positive": 0.7, "negative": 0.4},
        seconds={},
    )
    mined = [MinedNegative(passage("n", "mined"), 0.5)]
    return write_negatives(run.negatives, manifest, [NegativesRow("train-000000", 3, "000000003", mined)])
