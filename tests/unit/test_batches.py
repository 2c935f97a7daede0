"""From the global order to tensors: pure, ahead of the compute, and with the right negatives."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.errors import ShardCorruptError, UserError
from data_shards.negatives import MinedNegative
from data_shards.order import OrderConfig
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, text_hash
from data_shards.shard_reader import ShardReader
from data_shards.writer import ShardWriter
from encoder.model import Encoder, with_settings
from tests.unit.tiny import pair, passage, write_pairs
from train.batches import BatchConfig, BatchLoader, StepBatch

PAIRS = 12


class Mined(dict[tuple[str, int], list[Passage]]):
    """Mined negatives that say which sample they are for."""

    def mined(self, stem: str, row: int) -> list[MinedNegative]:
        return [MinedNegative(passage, score=0.5) for passage in self.get((stem, row), [])]


def open_loader(
    dataset: PairDataset, encoder: Encoder, *, rank: int = 0, world: int = 1, **config: Any
) -> BatchLoader:
    settings = BatchConfig(**{"batch_size": 4, **config})
    order = dataset.order(batch_size=settings.batch_size, seed=3)
    return BatchLoader(dataset=dataset, order=order, encoder=encoder, config=settings, rank=rank, world=world)


def texts(encoder: Encoder, batch: StepBatch, side: str) -> list[str]:
    """Return the batch's texts, decoded and in order."""
    found = batch.queries if side == "query" else batch.passages
    decoded: Mapping[int, str] = {
        row: encoder.tokenizer.decode(ids, skip_special_tokens=True)
        for chunk in found.chunks
        for row, ids in zip(chunk.rows.tolist(), chunk.input_ids, strict=True)
    }
    assert sorted(decoded) == list(range(found.distinct)), "each text once"
    return [decoded[place] for place in found.places.tolist()]


def same(one: StepBatch, other: StepBatch) -> bool:
    """Compare every tensor."""
    tensors = [
        [
            *(t for c in (*b.queries.chunks, *b.passages.chunks) for t in (c.rows, c.input_ids, c.attention_mask)),
            b.queries.places,
            b.passages.places,
            *(getattr(b.labels, field.name).nan_to_num(9.0) for field in dataclasses.fields(b.labels)),
        ]
        for b in (one, other)
    ]
    return len(tensors[0]) == len(tensors[1]) and all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


@pytest.fixture
def dataset(tmp_path: Path) -> PairDataset:
    return write_pairs(tmp_path / "pairs", (pair(number) for number in range(PAIRS)))


def test_a_batch_is_a_pure_function_of_its_step(dataset: PairDataset, encoder: Encoder) -> None:
    loader = open_loader(dataset, encoder)
    in_order = [batch for (batch,) in loader.steps(0, 5, None)]
    alone = open_loader(PairDataset(Path(dataset.location)), encoder).load(3, None)
    assert [batch.step for batch in in_order] == [0, 1, 2, 3, 4]
    assert same(in_order[3], alone)
    assert not same(in_order[3], in_order[2])
    assert same(next(iter(loader.steps(3, 4, None)))[0], alone)


def test_the_first_passages_are_the_queries_positives_in_their_order(dataset: PairDataset, encoder: Encoder) -> None:
    loader = open_loader(dataset, encoder)
    batch = loader.load(1, None)
    order = dataset.order(batch_size=4, seed=3)
    numbers = order.batch(1).tolist()
    wanted = [pair(number) for number in numbers]
    assert texts(encoder, batch, "query") == [encoder_text(encoder, row.query) for row in wanted]
    assert texts(encoder, batch, "passage") == [encoder_text(encoder, row.positives[0].content) for row in wanted]
    assert batch.labels.query_hash_b.tolist() == [text_hash(row.query) for row in wanted]
    assert batch.labels.passage_hash_n.tolist() == [row.positives[0].content_hash for row in wanted]


def encoder_text(encoder: Encoder, text: str) -> str:
    """Return what the tokenizer makes of a text."""
    ids = encoder.tokenize([text], "query")[0]
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=True))


def test_labels_by_hand(tmp_path: Path, encoder: Encoder) -> None:
    """Positives of uneven number fill their row; weights and owners come along; titles count."""
    two = (Passage(id="a", title="T", text="a"), passage("b", "b"))
    rows = [
        pair(0, positives=two, weight=2.5),
        pair(1, positives=(passage("c", "c"),), negatives=(passage("n", "n"),)),
    ]
    labels = open_loader(write_pairs(tmp_path / "pairs", rows), encoder, batch_size=2).load(0, None).labels
    at = labels.query_hash_b.tolist().index(text_hash("query 0"))
    assert labels.positive_hash_bK.tolist()[at] == [text_hash("T a"), text_hash("b")]
    assert labels.positive_hash_bK.tolist()[1 - at] == [text_hash("c"), text_hash("c")]
    by_query = {0: text_hash("T a"), 1: text_hash("c")}
    assert labels.passage_hash_n.tolist() == [by_query[at], by_query[1 - at], text_hash("n")]
    assert labels.owner_n.tolist() == [0, 1, 1 - at]
    assert labels.positive_n.tolist() == [True, True, False]
    assert labels.weight_n.tolist() == [[2.5, 1.0][at], [2.5, 1.0][1 - at], 0.0]
    assert labels.teacher_n is not None
    assert labels.teacher_n.isnan().all()


def test_a_positive_counts_by_its_pair_s_weight_times_its_own_score(tmp_path: Path, encoder: Encoder) -> None:
    two = (passage("a", "a"), passage("b", "b"))
    rows = [pair(0, positives=two, weight=2.0, scores=(3.0, 0.25)), pair(1, positives=two[:1], weight=0.5)]
    loader = open_loader(write_pairs(tmp_path / "pairs", rows), encoder, batch_size=2)
    for step in range(4):
        labels = loader.load(step, None).labels
        scored = labels.query_hash_b.tolist().index(text_hash("query 0"))
        assert labels.passage_hash_n.tolist()[scored] == text_hash("ab"[step % 2])
        assert labels.weight_n.tolist()[scored] == [6.0, 0.5][step % 2]
        assert labels.weight_n.tolist()[1 - scored] == 0.5


@pytest.mark.parametrize(
    ("positives", "wanted"), [(1, ["a", "b", "c", "a"]), (2, ["ab", "ca", "bc", "ab"]), (9, ["abc"] * 4)]
)
def test_several_positives_take_turns_and_share_the_weight(
    tmp_path: Path, encoder: Encoder, positives: int, wanted: list[str]
) -> None:
    scores = {"a": 1.0, "b": 2.0, "c": 4.0}
    row = pair(0, positives=tuple(passage(name, name) for name in "abc"), scores=tuple(scores.values()), weight=0.5)
    loader = open_loader(write_pairs(tmp_path / "pairs", [row]), encoder, batch_size=1, positives=positives)
    for step, names in enumerate(wanted):
        batch = loader.load(step, None)
        assert batch.labels.passage_hash_n.tolist() == [text_hash(name) for name in names]
        assert batch.labels.weight_n.tolist() == pytest.approx([0.5 * scores[name] / len(names) for name in names])
        assert batch.labels.owner_n.tolist() == [0] * len(names)
        assert batch.labels.positive_n.all()
        assert batch.labels.positive_hash_bK.tolist() == [[text_hash(name) for name in "abc"]]


def test_equal_texts_are_encoded_once(tmp_path: Path, encoder: Encoder) -> None:
    """One query twice, a positive of two queries that is mined for a third: each label keeps its own place."""
    shared = passage("s", "sort a list")
    rows = [
        pair(0, query="read a file", positives=(shared,)),
        pair(1, query="read a file", positives=(shared,)),
        pair(2, query="open", positives=(passage("p", "socket"),), negatives=(shared, passage("o", "server"))),
    ]
    dataset = write_pairs(tmp_path / "pairs", rows)
    order = dataset.order(batch_size=3, seed=3, config=OrderConfig(spread_positives=False))
    config = BatchConfig(batch_size=3, hard_negatives=2)
    loader = BatchLoader(dataset=dataset, order=order, encoder=encoder, config=config, rank=0, world=1)
    batch = loader.load(0, None)
    assert (batch.queries.distinct, len(batch.queries.places)) == (2, 3)
    assert (batch.passages.distinct, len(batch.passages.places)) == (3, 5)
    numbers = order.batch(0).tolist()
    queries = [rows[number].query for number in numbers]
    positives = [rows[number].positives[0].content for number in numbers]
    assert texts(encoder, batch, "query") == queries
    assert texts(encoder, batch, "passage") == [*positives, "sort a list", "server"]
    assert batch.tokens == sum(int(c.attention_mask.sum()) for c in (*batch.queries.chunks, *batch.passages.chunks))


def test_prompts_are_those_of_each_pair_s_source(tmp_path: Path, encoder: Encoder) -> None:
    """A negative takes the prompt of the pair that it came with."""
    prompts = {"web:query": "sort ", "web:passage": "file "}
    settings = dataclasses.replace(encoder.settings, query_prompt="read ", source_prompts=prompts)
    encoder = with_settings(encoder, settings)
    given = (passage("n", "words"),)
    rows = [pair(0, source="web", negatives=given), pair(1, source="mail", negatives=given)]
    batch = open_loader(write_pairs(tmp_path / "pairs", rows), encoder, batch_size=2).load(0, None)
    first = batch.labels.query_hash_b.tolist().index(text_hash("query 0"))
    bare = encoder.tokenizer
    wanted = {0: ("sort query 0", "file passage p0", "file words"), 1: ("read query 1", "passage p1", "words")}
    numbers = [0, 1] if first == 0 else [1, 0]

    def decoded(text: str) -> str:
        return str(bare.decode(bare(text)["input_ids"], skip_special_tokens=True))

    assert texts(encoder, batch, "query") == [decoded(wanted[number][0]) for number in numbers]
    places = [decoded(wanted[number][at]) for at in (1, 2) for number in numbers]
    assert texts(encoder, batch, "passage") == places
    assert batch.labels.passage_hash_n.tolist()[2:] == [text_hash("words")] * 2, "prompts are no part of a text"


def test_a_teacher_s_scores_stand_beside_their_passages(tmp_path: Path, encoder: Encoder) -> None:
    """Of the positive in turn, of given negatives, of mined ones; NaN where nobody was asked."""
    row = pair(
        0,
        positives=(passage("a", "a"), passage("b", "b")),
        negatives=(passage("g", "g"),),
        teacher_positives=(1.0, 2.0),
        teacher_negatives=(-3.0,),
    )

    class Scored:
        def mined(self, stem: str, row: int) -> list[MinedNegative]:
            return [MinedNegative(passage("m", "m"), 0.4, teacher=0.25), MinedNegative(passage("n", "n"), 0.3)]

    loader = open_loader(write_pairs(tmp_path / "pairs", [row]), encoder, batch_size=1, hard_negatives=3)
    for step, positive in enumerate([1.0, 2.0, 1.0]):
        teacher_n = loader.load(step, Scored()).labels.teacher_n
        assert teacher_n is not None
        assert teacher_n.tolist()[:3] == [positive, -3.0, 0.25]
        assert math.isnan(teacher_n.tolist()[3])


@pytest.mark.parametrize("world", [1, 3])
def test_accumulation_cuts_a_step_into_stretches_of_the_global_batch(
    dataset: PairDataset, encoder: Encoder, world: int
) -> None:
    """Who is contrasted with whom does not depend on the number of ranks."""
    loaders = [
        open_loader(dataset, encoder, batch_size=12, accumulation=2, rank=rank, world=world) for rank in range(world)
    ]
    steps = [list(loader.steps(0, 2, None)) for loader in loaders]
    order = dataset.order(batch_size=12, seed=3)
    for step in range(2):
        numbers = order.batch(step).tolist()
        for turn in range(2):
            found = [loader_steps[step][turn].labels.query_hash_b.tolist() for loader_steps in steps]
            stretch = numbers[6 * turn : 6 * turn + 6]
            assert [text for part in found for text in part] == [text_hash(f"query {number}") for number in stretch]


def test_dropped_tokens_are_drawn_anew_each_step_and_leave_the_special_ones(tmp_path: Path, encoder: Encoder) -> None:
    row = pair(0, positives=(passage("a", "a b c d e f g h i j k l"),))
    dataset = write_pairs(tmp_path / "pairs", [row])
    full = open_loader(dataset, encoder, batch_size=1).load(0, None).passages.chunks[0].input_ids[0].tolist()
    loader = open_loader(dataset, encoder, batch_size=1, passage_token_dropout=0.5)
    seen = {tuple(loader.load(step, None).passages.chunks[0].input_ids[0].tolist()) for step in range(8)}
    assert len(seen) > 4
    for ids in seen:
        assert (ids[0], ids[-1]) == (full[0], full[-1])
        rest = iter(full)
        assert all(token in rest for token in ids), "what is left stands in its order"
    assert len({len(ids) for ids in seen}) > 1
    assert same(loader.load(3, None), loader.load(3, None))
    query = loader.load(0, None).queries.chunks[0]
    assert query.input_ids[0].tolist() == encoder.tokenize(["query 0"], "query")[0], "queries stay whole"


@pytest.mark.parametrize(
    ("most", "wanted"),
    [(0, []), (1, ["g1"]), (2, ["g1", "g2"]), (3, ["g1", "g2", "m1"]), (9, ["g1", "g2", "m1", "m2"])],
)
def test_given_negatives_come_first_then_mined_ones(
    tmp_path: Path, encoder: Encoder, most: int, wanted: list[str]
) -> None:
    given = (passage("1", "g1"), passage("2", "g2"))
    dataset = write_pairs(tmp_path / "pairs", [pair(0, negatives=given)])
    mined = Mined({("train-000000", 0): [passage("3", "m1"), passage("4", "m2")]})
    batch = open_loader(dataset, encoder, batch_size=1, hard_negatives=most).load(0, mined)
    assert batch.labels.passage_hash_n.tolist()[1:] == [text_hash(name) for name in wanted]


def test_mined_negatives_are_looked_up_by_shard_and_row(dataset: PairDataset, encoder: Encoder) -> None:
    """Four rows a shard: each negative names the sample that it must come with."""
    everything = {
        (stem, row): [passage("n", f"negative of {4 * shard + row}")]
        for shard, stem in enumerate(dataset.shard_stems)
        for row in range(4)
    }
    del everything["train-000001", 2]
    batch = open_loader(dataset, encoder, batch_size=PAIRS).load(0, Mined(everything))
    numbers = dataset.order(batch_size=PAIRS, seed=3).batch(0).tolist()
    wanted = [text_hash(f"negative of {number}") for number in numbers if number != 6]
    assert batch.labels.passage_hash_n.tolist()[PAIRS:] == wanted


def test_queries_are_cut_shorter_than_passages_and_tokens_are_counted(tmp_path: Path, encoder: Encoder) -> None:
    rows = [
        pair(0, query="a " * 50, positives=(passage("a", "a " * 50),)),
        pair(1, query="a", positives=(passage("b", "a"),)),
    ]
    dataset = write_pairs(tmp_path / "pairs", rows)
    batch = open_loader(dataset, encoder, batch_size=2, query_max_tokens=6, tokens_per_chunk=1000).load(0, None)
    assert batch.queries.chunks[0].input_ids.shape == (2, 6)
    assert batch.passages.chunks[0].input_ids.shape == (2, 16)
    assert (batch.tokens, batch.padded_tokens) == (6 + 3 + 16 + 3, 2 * 6 + 2 * 16)


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_steps_are_read_ahead_but_not_far(dataset: PairDataset, encoder: Encoder) -> None:
    loader = open_loader(dataset, encoder, prefetch_steps=2)
    read: list[int] = []
    load = loader.load
    loader.load = lambda step, *rest: read.append(step) or load(step, *rest)  # type: ignore[func-returns-value,method-assign]
    batches = loader.steps(0, 100, None)
    assert next(batches)[0].step == 0
    deadline = time.monotonic() + 5
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert read == [0, 1, 2, 3], "one in use, two in the queue, one in hand"
    batches.close()  # type: ignore[attr-defined]
    assert reading_threads() == []


def test_leaving_early_ends_the_thread(dataset: PairDataset, encoder: Encoder) -> None:
    for (batch,) in open_loader(dataset, encoder, prefetch_steps=1).steps(0, 1000, None):
        if batch.step == 2:
            break
    del batch
    assert reading_threads() == []


def test_what_the_reading_thread_raises_is_raised_here(dataset: PairDataset, encoder: Encoder) -> None:
    """A shard is damaged after the second step was read."""
    shard = Path(dataset.location) / "train-000001.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ShardCorruptError, match=r"train-000001\.tar at byte"):
        list(open_loader(dataset, encoder).steps(0, 3, None))
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
    for (batch,) in loader.steps(0, 6, mined):
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
