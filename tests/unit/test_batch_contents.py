"""What is in a batch: texts, labels and weights, each beside the pair that it belongs to."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from data_shards.negatives import MinedNegative
from data_shards.order import OrderConfig
from data_shards.reader import PairDataset
from data_shards.samples import Passage, text_hash
from encoder.model import Encoder, with_settings
from tests.unit.batch_helpers import Mined, encoder_text, open_loader, same, texts
from tests.unit.tiny import pair, passage, write_pairs
from train.batches import BatchConfig, BatchLoader

PAIRS = 12


@pytest.fixture
def dataset(tmp_path: Path) -> PairDataset:
    return write_pairs(tmp_path / "pairs", (pair(number) for number in range(PAIRS)))


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


def test_texts_are_tokenized_some_at_a_time(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(number, query="file " * (number + 1)) for number in range(8)]
    dataset = write_pairs(tmp_path / "pairs", rows)
    whole = open_loader(dataset, encoder, batch_size=8).load(0, None)
    monkeypatch.setattr("train.batches._TOKENIZED_AT_ONCE", 3)
    assert whole.queries.distinct == 8
    assert same(open_loader(dataset, encoder, batch_size=8).load(0, None), whole)


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
