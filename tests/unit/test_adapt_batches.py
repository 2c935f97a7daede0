"""The stage's batches: pure functions of the step, on any number of ranks, and of passages that can be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.errors import ShardCorruptError, UserError
from data_shards.quarantine import Quarantine
from data_shards.reader import CorpusDataset
from data_shards.shard_reader import ShardReader
from data_shards.storage import CacheConfig
from data_shards.writer import ShardWriter
from encoder.model import Encoder, with_settings
from tests.unit.tiny import TEXTS, passage
from train.adapt_batches import IGNORED, AdaptConfig, MaskedBatch, MaskedLoader
from train.batches import BatchConfig
from train.schedule import OptimizerConfig

PASSAGES = 20


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "corpus", "corpus", samples_per_shard=6) as writer:
        for k in range(PASSAGES):
            writer.add(passage(f"p{k}", f"{TEXTS[k % 6]} {k}"))
    return tmp_path / "corpus"


def loader(
    corpus: CorpusDataset,
    encoder: Encoder,
    *,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    batch: BatchConfig | None = None,
    **config: Any,
) -> MaskedLoader:
    chosen = AdaptConfig(**{"steps": 1, "batch_size": 4, "tokens_per_chunk": 30, **config})
    return MaskedLoader(
        dataset=corpus,
        order=corpus.order(batch_size=chosen.batch_size, seed=seed),
        encoder=encoder,
        config=chosen,
        batch=batch or BatchConfig(),
        rank=rank,
        world=world,
    )


def texts_of(batch: MaskedBatch, *, shown: bool = False) -> list[tuple[int, ...]]:
    """Return the token ids of each text, sorted: what they were, or as they are shown."""
    found = []
    for chunk in batch.chunks:
        ids = chunk.input_ids.clone()
        if not shown:
            ids.view(-1)[chunk.place_m] = chunk.label_m
        found += [tuple(row[mask.bool()].tolist()) for row, mask in zip(ids, chunk.attention_mask, strict=True)]
    return sorted(found)


def test_a_batch_holds_the_order_s_passages_with_labels_where_tokens_are_hidden(
    corpus: Path, encoder: Encoder
) -> None:
    dataset = CorpusDataset(corpus)
    batch = loader(dataset, encoder).load(3)
    ordinals = dataset.order(batch_size=4, seed=0).batch(3)
    wanted = encoder.tokenize([row.content for row in dataset.passages(ordinals)], "passage")
    assert texts_of(batch) == sorted(map(tuple, wanted))
    mask_id = encoder.tokenizer.mask_token_id
    for chunk in batch.chunks:
        shown = chunk.input_ids.view(-1)[chunk.place_m]
        assert int((chunk.input_ids == mask_id).sum()) == int((shown == mask_id).sum())
        assert len(chunk.place_m) == len(chunk.label_m)
    assert batch.masked == sum(len(chunk.label_m) for chunk in batch.chunks) >= 4
    assert batch.tokens == sum(map(len, wanted))
    assert batch.padded_tokens == sum(chunk.input_ids.numel() for chunk in batch.chunks) >= batch.tokens


def test_what_is_hidden_depends_on_seed_and_step_and_not_on_the_ranks(corpus: Path, encoder: Encoder) -> None:
    dataset = CorpusDataset(corpus)
    whole = loader(dataset, encoder).load(2)
    for world in (2, 4):
        parts = [loader(dataset, encoder, rank=rank, world=world).load(2) for rank in range(world)]
        assert sorted(text for part in parts for text in texts_of(part, shown=True)) == texts_of(whole, shown=True)
        assert sum(part.masked for part in parts) == whole.masked
    one = loader(dataset, encoder, batch_size=PASSAGES)
    first, second = one.load(0), one.load(1)
    assert texts_of(first) == texts_of(second), "an epoch each"
    assert texts_of(first, shown=True) != texts_of(second, shown=True)
    other = loader(dataset, encoder, batch_size=PASSAGES, seed=1).load(0)
    assert texts_of(first, shown=True) != texts_of(other, shown=True)


def test_steps_that_are_read_ahead_are_those_that_are_loaded_alone(corpus: Path, encoder: Encoder) -> None:
    one = loader(CorpusDataset(corpus), encoder)
    for batch in one.steps(2, 7):
        alone = loader(CorpusDataset(corpus), encoder).load(batch.step)
        assert texts_of(batch, shown=True) == texts_of(alone, shown=True)
    assert batch.step == 6


def test_where_shapes_are_kept_few_hidden_tokens_are_filled_up(corpus: Path, encoder: Encoder) -> None:
    dataset = CorpusDataset(corpus)
    plain = loader(dataset, encoder, batch_size=PASSAGES).load(0)
    filled = loader(dataset, encoder, batch=BatchConfig(pad_to_multiple_of=8), batch_size=PASSAGES).load(0)
    assert {len(chunk.place_m) for chunk in filled.chunks} == {64}
    assert filled.masked == plain.masked == sum(int((chunk.label_m != IGNORED).sum()) for chunk in filled.chunks)
    assert {chunk.input_ids.shape[1] % 8 for chunk in filled.chunks} == {0}
    assert texts_of(filled, shown=True) == texts_of(plain, shown=True)


def test_prompts_are_left_out_and_texts_are_cut(corpus: Path, encoder: Encoder) -> None:
    prompted = with_settings(encoder, replace(encoder.settings, passage_prompt="sort a list: "))
    dataset = CorpusDataset(corpus)
    assert texts_of(loader(dataset, prompted).load(0)) == texts_of(loader(dataset, encoder).load(0))
    assert prompted.settings.passage_prompt == "sort a list: "
    short = loader(dataset, encoder, max_tokens=5, batch_size=PASSAGES).load(0)
    assert max(map(len, texts_of(short))) == 5


def test_a_corpus_afar_is_read_as_one_near_and_its_shards_are_asked_for_before(
    corpus: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through fsspec's memory and the cache; four shards, all of them are needed in the first steps."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.put(str(corpus), "/adapt-test/c", recursive=True)
    try:
        remote = CorpusDataset("memory://adapt-test/c", cache=CacheConfig(dir=str(tmp_path / "cache")))
        assert remote.is_remote
        asked: list[int] = []
        prefetch = remote.prefetch
        monkeypatch.setattr(
            remote, "prefetch", lambda ordinals: (asked.extend(ordinals.tolist()), prefetch(ordinals))
        )
        near, afar = (loader(dataset, encoder) for dataset in (CorpusDataset(corpus), remote))
        for mine, theirs in zip(near.steps(0, 5), afar.steps(0, 5), strict=True):
            assert texts_of(mine, shown=True) == texts_of(theirs, shown=True)
        assert {ordinal // 6 for ordinal in asked} == {0, 1, 2, 3}
    finally:
        memory.rm("/adapt-test", recursive=True)


def damage(corpus: Path, shard: int, row: int) -> None:
    path = corpus / f"corpus-{shard:06d}.tar"
    content = bytearray(path.read_bytes())
    content[int(ShardReader(path).offsets[row]) + 520] ^= 1
    path.write_bytes(content)


def test_a_damaged_passage_ends_the_run_or_is_left_out_and_counted(
    corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    """What is hidden in the others stays: it hangs on their ordinals, not on their places."""
    sound = loader(CorpusDataset(corpus), encoder, batch_size=PASSAGES).load(0)
    damage(corpus, 1, 2)
    with pytest.raises(ShardCorruptError, match=r"corpus-000001\.tar at byte"):
        loader(CorpusDataset(corpus), encoder, batch_size=PASSAGES).load(0)
    place = Quarantine(tmp_path / "quarantine.jsonl")
    batch = loader(CorpusDataset(corpus, quarantine=place), encoder, batch_size=PASSAGES).load(0)
    assert batch.skipped == 1
    left, all_texts = texts_of(batch, shown=True), texts_of(sound, shown=True)
    assert len(left) == PASSAGES - 1
    assert set(left) < set(all_texts)


def test_a_rank_whose_passages_are_all_damaged_comes_with_a_chunk_that_says_nothing(
    corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    for shard in range(4):
        for row in range(6 if shard < 3 else 2):
            damage(corpus, shard, row)
    dataset = CorpusDataset(corpus, quarantine=Quarantine(tmp_path / "quarantine.jsonl"))
    batch = loader(dataset, encoder).load(0)
    (chunk,) = batch.chunks
    assert (batch.skipped, batch.masked) == (4, 0)
    assert len(chunk.place_m) == 0
    assert chunk.input_ids.shape == (1, 1)
    assert chunk.place_m.dtype == chunk.label_m.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "adapt.steps and adapt.epochs must be 0 or more"),
        ({"epochs": float("inf")}, "adapt.steps and adapt.epochs must be 0 or more"),
        ({"batch_size": 0}, "adapt.batch_size must be at least 1, came 0"),
        ({"tokens_per_chunk": 0}, "adapt.tokens_per_chunk must be at least 1, came 0"),
        ({"max_tokens": 2}, "adapt.max_tokens must be at least 3, or 0"),
        ({"mask_share": 0.0}, "adapt.mask_share must be above 0"),
        ({"mask_share": 1.5}, "adapt.mask_share is a share between 0 and 1, came 1.5"),
        ({"warmup_share": -0.1}, "adapt.warmup_share is a share between 0 and 1"),
        ({"learning_rate": 0.0}, "adapt.learning_rate must be positive"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdaptConfig(**change)


def test_the_stage_is_off_by_default_and_as_long_as_asked(corpus: Path) -> None:
    order = CorpusDataset(corpus).order(batch_size=8, seed=0)
    assert not AdaptConfig().on
    assert AdaptConfig(epochs=0.1).on
    assert AdaptConfig(epochs=2).total_steps(order) == 5, "two times twenty passages, eight a step"
    assert AdaptConfig(epochs=0.001).total_steps(order) == 1
    assert AdaptConfig(epochs=2, steps=7).total_steps(order) == 7


def test_the_optimiser_is_the_run_s_with_the_stage_s_rate_and_without_an_average() -> None:
    base = OptimizerConfig(learning_rate=1.0, weight_decay=0.3, warmup_share=0.5, ema_decay=0.9, schedule="linear")
    own = AdaptConfig(learning_rate=0.2, warmup_share=0.3).optimizer(base)
    assert (own.learning_rate, own.warmup_share, own.ema_decay) == (0.2, 0.3, 0.0)
    assert (own.weight_decay, own.schedule) == (0.3, "linear")


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do() -> None:
    with pytest.raises(UserError, match=r"^adapt\.batch_size 10 does not divide over 4 ranks; set it to 8 or 12$"):
        AdaptConfig(batch_size=10).check_divides(4)
    with pytest.raises(UserError, match=r"set it to 4$"):
        AdaptConfig(batch_size=3).check_divides(4)
    AdaptConfig(batch_size=8).check_divides(4)
