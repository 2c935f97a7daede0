"""Invariants 2 and 9 together: where a rank's slice is short by damaged pairs, the loss is that of the sound ones.

The sums over ranks have to be taken over the pairs that are there: an average over ranks of each one's own mean
would give the short slice's pairs more weight, and a gather of equal shapes would hang or mix the rows up.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.shard_reader import ShardReader
from tests.distributed import toy
from tests.distributed.ranks import run_ranks
from tests.unit.tiny import pair, passage, write_pairs
from train.batches import BatchConfig, BatchLoader, StepBatch
from train.collectives import rank, sum_over_ranks, world_size
from train.engine import EngineConfig, start_engine
from train.grad_cache import train_step
from train.objective import LossConfig, Objective
from train.schedule import OptimizerConfig

_PAIRS = 8
_CASES = [(1, True), (3, True), (1, False)]
"""Damaged pairs in the second rank's slice of four; with the gradient cache, or without."""
_LOSS = LossConfig(temperature=toy.TEMPERATURE)
Outcome = tuple[float, dict[str, Tensor], list[int], int]


def _load(folder: Path, snapshot: Path, world: int) -> StepBatch:
    dataset = PairDataset(folder, quarantine=Quarantine(folder.parent / f"rank-{rank()}-of-{world}.jsonl"))
    loader = BatchLoader(
        dataset=dataset,
        order=dataset.order(batch_size=_PAIRS, seed=1),
        encoder=toy.encoder(snapshot),
        config=BatchConfig(batch_size=_PAIRS, tokens_per_chunk=24),
        rank=rank(),
        world=world,
    )
    return loader.load(0, None)


def _steps(root: Path, snapshot: Path) -> list[Outcome]:
    """Run in a rank: for each case the global loss, its gradients, this rank's queries, and how many it skipped."""
    model = toy.encoder(snapshot)
    engine = start_engine(model, EngineConfig(precision="float32"), OptimizerConfig())
    outcomes = []
    for damaged, cached in _CASES:
        model.zero_grad()
        batch = _load(root / f"pairs-{damaged}", snapshot, world_size())
        objective = Objective(_LOSS, device=engine.device)
        (output,) = train_step(engine, [batch], objective, seed=5, keep_graphs=not cached)
        loss = float(sum_over_ranks(output.loss)) / world_size()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        outcomes.append((loss, gradients, batch.labels.query_hash_b.tolist(), batch.skipped))
    return outcomes


def _write(folder: Path, *, damaged: int) -> None:
    """Write pairs of uneven length, weight and number of negatives, then flip a bit in some of them."""
    pairs = [
        pair(
            number,
            query=f"query {number} " + "alpha beta " * (number % 3),
            positives=(passage(f"p{number}", "gamma " * (1 + number % 4) + str(number)),),
            negatives=(passage(f"n{number}", f"delta {number}"),) * (number % 2),
            weight=1.0 + number % 3,
        )
        for number in range(_PAIRS)
    ]
    write_pairs(folder, pairs, samples_per_shard=_PAIRS)
    path = folder / "train-000000.tar"
    order = PairDataset(folder).order(batch_size=_PAIRS, seed=1)
    content = bytearray(path.read_bytes())
    for row in order.rank_slice(0, 1, 2)[:damaged].tolist():
        content[int(ShardReader(path).offsets[row]) + 520] ^= 1
    path.write_bytes(content)


@pytest.mark.distributed
def test_a_short_slice_gives_the_loss_and_gradient_of_the_sound_pairs(tmp_path: Path) -> None:
    snapshot = toy.save_encoder(tmp_path / "snapshot")
    for damaged in (1, 3):
        _write(tmp_path / f"pairs-{damaged}", damaged=damaged)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    (alone,) = run_ranks(_steps, 1, tmp_path / "one", tmp_path, snapshot)
    first, second = run_ranks(_steps, 2, tmp_path / "two", tmp_path, snapshot)
    for (damaged, _), wanted, *ranks in zip(_CASES, alone, first, second, strict=True):
        loss, gradients, queries, skipped = wanted
        assert skipped == damaged
        assert [rank_skipped for *_, rank_skipped in ranks] == [0, damaged], (
            "the second rank's slice is the short one"
        )
        assert [query for outcome in ranks for query in outcome[2]] == queries
        assert len(queries) == _PAIRS - damaged
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for found_loss, found, _, _ in ranks:
            assert found_loss == pytest.approx(loss, abs=1e-10)
            for name, gradient in gradients.items():
                assert float((found[name] - gradient).abs().max()) <= 1e-10 * scale, name
