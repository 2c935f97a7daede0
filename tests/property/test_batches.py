"""Invariant 1, *order is pure*, seen from the ranks: together they hold the global batch, whatever their number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from data_shards.negatives import MinedNegative
from data_shards.reader import PairDataset
from data_shards.samples import text_hash
from encoder.model import Encoder
from tests.unit.tiny import pair, passage, tiny_encoder, write_pairs
from train.batches import BatchConfig, BatchLoader

SAMPLES = 23


class NegativeOfEach:
    """One mined negative for every other row."""

    def mined(self, stem: str, row: int) -> list[MinedNegative]:
        return [MinedNegative(passage("n", f"negative {stem} {row}"), score=0.5)] if row % 2 else []


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs", (pair(number) for number in range(SAMPLES)), 5)


@settings(max_examples=40, deadline=None)
@given(
    share=st.integers(1, 3),
    world=st.integers(1, 6),
    parts=st.integers(1, 3),
    step=st.integers(0, 500),
    seed=st.integers(0, 99),
)
def test_order_is_pure_over_ranks(
    dataset: PairDataset, encoder: Encoder, share: int, world: int, parts: int, step: int, seed: int
) -> None:
    """With accumulation as well: a part of a step is the same stretch of the batch on any number of ranks."""
    config = BatchConfig(batch_size=share * world * parts, accumulation=parts, tokens_per_chunk=64)
    order = dataset.order(batch_size=config.batch_size, seed=seed)

    def labels(rank: int, ranks: int, part: int) -> tuple[list[int], list[int], list[int]]:
        loader = BatchLoader(dataset=dataset, order=order, encoder=encoder, config=config, rank=rank, world=ranks)
        found = loader.load(step, NegativeOfEach(), part).labels
        queries = len(found.query_hash_b)
        passages = found.passage_hash_n.tolist()
        return found.query_hash_b.tolist(), passages[:queries], passages[queries:]

    seen = []
    for part in range(parts):
        whole = labels(0, 1, part)
        shares = [labels(rank, world, part) for rank in range(world)]
        for at in range(3):
            assert [value for found in shares for value in found[at]] == whole[at]
        seen += whole[0]
    assert seen == [text_hash(pair(number).query) for number in order.batch(step).tolist()]
