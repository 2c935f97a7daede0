"""From the global order to tensors: pure, ahead of the compute, and with the right negatives."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.samples import Pair, text_hash
from data_shards.shard_reader import ShardReader
from data_shards.writer import ShardWriter
from encoder.model import Encoder
from tests.unit.batch_helpers import Mined, open_loader, same
from tests.unit.tiny import pair, passage, write_pairs
from train.batches import BatchConfig, BatchLoader

PAIRS = 12


@pytest.fixture
def dataset(tmp_path: Path) -> PairDataset:
    return write_pairs(tmp_path / "pairs", (pair(number) for number in range(PAIRS)))


def test_a_batch_is_a_pure_function_of_its_step(dataset: PairDataset, encoder: Encoder) -> None:
    loader = open_loader(dataset, encoder)
    in_order = [batch for (batch,) in loader.steps(0, 5)]
    alone = open_loader(PairDataset(Path(dataset.location)), encoder).load(3, None)
    assert [batch.step for batch in in_order] == [0, 1, 2, 3, 4]
    assert same(in_order[3], alone)
    assert not same(in_order[3], in_order[2])
    assert same(next(iter(loader.steps(3, 4)))[0], alone)


@pytest.mark.parametrize("world", [1, 3])
def test_accumulation_cuts_a_step_into_stretches_of_the_global_batch(
    dataset: PairDataset, encoder: Encoder, world: int
) -> None:
    """Who is contrasted with whom does not depend on the number of ranks."""
    loaders = [
        open_loader(dataset, encoder, batch_size=12, accumulation=2, rank=rank, world=world) for rank in range(world)
    ]
    steps = [list(loader.steps(0, 2)) for loader in loaders]
    order = dataset.order(batch_size=12, seed=3)
    for step in range(2):
        numbers = order.batch(step).tolist()
        for turn in range(2):
            found = [loader_steps[step][turn].labels.query_hash_b.tolist() for loader_steps in steps]
            stretch = numbers[6 * turn : 6 * turn + 6]
            assert [text for part in found for text in part] == [text_hash(f"query {number}") for number in stretch]


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_steps_are_read_ahead_but_not_far(dataset: PairDataset, encoder: Encoder) -> None:
    loader = open_loader(dataset, encoder, prefetch_steps=2)
    read: list[int] = []
    load = loader.load
    loader.load = lambda step, *rest: read.append(step) or load(step, *rest)  # type: ignore[func-returns-value,method-assign]
    batches = loader.steps(0, 100)
    assert next(batches)[0].step == 0
    deadline = time.monotonic() + 5
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert read == [0, 1, 2, 3], "one in use, two in the queue, one in hand"
    batches.close()  # type: ignore[attr-defined]
    assert reading_threads() == []


def test_leaving_early_ends_the_thread(dataset: PairDataset, encoder: Encoder) -> None:
    for (batch,) in open_loader(dataset, encoder, prefetch_steps=1).steps(0, 1000):
        if batch.step == 2:
            break
    del batch
    assert reading_threads() == []


def test_what_the_reading_thread_raises_is_raised_here(dataset: PairDataset, encoder: Encoder) -> None:
    """A shard is damaged after the second step was read."""
    shard = Path(dataset.location) / "train-000001.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ShardCorruptError, match=r"train-000001\.tar at byte"):
        list(open_loader(dataset, encoder).steps(0, 3))
    assert reading_threads() == []


def test_damaged_pairs_are_left_out_and_counted(dataset: PairDataset, encoder: Encoder, tmp_path: Path) -> None:
    """Of twelve pairs two are damaged: each time they come up the batch is short, and all else is as it was.

    Mined negatives still go with their own samples.
    """
    for shard, row in ((0, 1), (2, 3)):
        flip_payload(Path(dataset.location) / f"train-00000{shard}.tar", row)
    quarantine = Quarantine(tmp_path / "q.jsonl")
    damaged = PairDataset(dataset.location, quarantine=quarantine)
    mined = Mined(
        {
            (stem, row): [passage("n", f"negative of {4 * shard + row}")]
            for shard, stem in enumerate(dataset.shard_stems)
            for row in range(4)
        }
    )
    order = dataset.order(batch_size=4, seed=3)
    loader = open_loader(damaged, encoder)
    skipped = 0
    for (batch,) in loader.steps(0, 6, lambda step: mined):
        numbers = [number for number in order.batch(batch.step).tolist() if number not in (1, 11)]
        assert batch.labels.query_hash_b.tolist() == [text_hash(f"query {number}") for number in numbers]
        wanted = [*(f"passage p{number}" for number in numbers), *(f"negative of {number}" for number in numbers)]
        assert batch.labels.passage_hash_n.tolist() == [text_hash(text) for text in wanted]
        assert batch.skipped == 4 - len(numbers)
        skipped += batch.skipped
    assert skipped == 4, "two epochs"
    assert quarantine.places == 2


@pytest.mark.parametrize("world", [1, 4])
def test_where_all_of_a_rank_s_part_is_lost_another_part_stands_in(
    dataset: PairDataset, encoder: Encoder, tmp_path: Path, world: int
) -> None:
    """One shard of three is missing. A rank that came with nothing would leave the others hanging."""
    (Path(dataset.location) / "train-000001.tar").unlink()
    damaged = PairDataset(dataset.location, quarantine=Quarantine(tmp_path / "q.jsonl"))
    lost = [text_hash(f"query {number}") for number in range(4, 8)]
    skipped = 0
    for rank in range(world):
        loader = open_loader(damaged, encoder, rank=rank, world=world)
        for step in range(6):
            batch = loader.load(step, None)
            assert len(batch.labels.query_hash_b) > 0
            assert not set(batch.labels.query_hash_b.tolist()) & set(lost)
            assert same(batch, loader.load(step, None)), "a pure function of the step all the same"
            skipped += batch.skipped
    assert skipped == 8, "four in each of two epochs"


def test_where_everything_is_lost_the_run_ends(dataset: PairDataset, encoder: Encoder, tmp_path: Path) -> None:
    for shard in Path(dataset.location).glob("*.tar"):
        shard.unlink()
    damaged = PairDataset(dataset.location, quarantine=Quarantine(tmp_path / "q.jsonl"))
    with pytest.raises(UserError, match="^all 4 pairs of rank 0 at step 2 are damaged in .*; copy the dataset again"):
        open_loader(damaged, encoder).load(2, None)


def flip_payload(path: Path, row: int) -> None:
    """Flip a bit of a sample's payload."""
    content = bytearray(path.read_bytes())
    content[int(ShardReader(path).offsets[row]) + 520] ^= 1
    path.write_bytes(content)


def test_ranks_that_do_not_divide_the_batch_are_refused_at_once(dataset: PairDataset, encoder: Encoder) -> None:
    with pytest.raises(UserError, match="global batch 4 does not divide over 3 ranks"):
        open_loader(dataset, encoder, world=3)


def test_parts_that_do_not_divide_over_ranks_are_refused_at_once(dataset: PairDataset, encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"batch\.batch_size 4 does not divide into batch\.accumulation = 3 parts"):
        BatchConfig(batch_size=4, accumulation=3)
    with pytest.raises(UserError, match="global batch 4 does not divide over 8 "):
        open_loader(dataset, encoder, world=2, accumulation=4)


@pytest.mark.parametrize(
    "name",
    ["batch_size", "query_max_tokens", "tokens_per_chunk", "prefetch_steps", "positives", "accumulation"],
)
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"batch\.{name} must be at least 1, came 0"):
        BatchConfig(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"batch\.hard_negatives must be 0 or more, came -1"):
        BatchConfig(hard_negatives=-1)


@pytest.mark.parametrize("query_id", ["q7", ""])
def test_a_pair_without_positives_is_refused_by_name(tmp_path: Path, encoder: Encoder, query_id: str) -> None:
    with ShardWriter(tmp_path / "bare", "pairs", name="train") as writer:
        writer.add(Pair(query_id=query_id, query="which one", positives=()))
    dataset = PairDataset(tmp_path / "bare")
    order = dataset.order(batch_size=1, seed=0)
    loader = BatchLoader(
        dataset=dataset, order=order, encoder=encoder, config=BatchConfig(batch_size=1), rank=0, world=1
    )
    with pytest.raises(UserError, match=f"^query {query_id} in .* has no positive passage; import the pairs anew$"):
        loader.load(0, None)
