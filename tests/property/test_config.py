"""config -> TOML -> config, for any config."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies as st

from data_shards.order import OrderConfig
from encoder.lora import LoraConfig
from encoder.model import ScratchConfig
from index_build.index_config import IndexConfig
from index_build.mine import MiningConfig
from launch.config import DataSection, EncoderSection, RunConfig, RunSection, WorkersSection, load_config, to_toml
from train.batches import BatchConfig
from train.cadence import RefreshConfig
from train.dev import DevConfig
from train.engine import EngineConfig
from train.job import TrainConfig
from train.objective import LossConfig
from train.schedule import OptimizerConfig
from train.tracker import TrackerConfig

# Surrogates cannot be written as UTF-8. A text that is exactly "None" is read as no value where none is allowed.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: text != "None")
NAME = st.text("abcdefg-_.", min_size=1, max_size=9)
COUNT = st.integers(1, 10**6)
SHARE = st.floats(0, 1)
POSITIVE = st.floats(1e-12, 1e12)


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


CONFIGS = st.builds(
    RunConfig,
    run=st.builds(RunSection, out=TEXT, seed=st.integers(-(10**12), 10**12), ranks=COUNT),
    data=st.builds(
        DataSection,
        pairs=st.lists(TEXT, max_size=3).map(tuple),
        weights=st.lists(POSITIVE, max_size=3).map(tuple),
        corpus=TEXT,
    ),
    order=st.builds(OrderConfig, lanes=COUNT, spread_positives=st.booleans()),
    encoder=st.builds(
        EncoderSection,
        model=TEXT,
        pooling=optional(st.sampled_from(["mean", "cls", "last"])),
        max_tokens=optional(COUNT),
        query_prompt=optional(TEXT),
        passage_prompt=optional(TEXT),
        source_prompts=st.lists(TEXT, max_size=2).map(tuple),
        projection_dim=optional(COUNT),
    ),
    scratch=st.builds(
        ScratchConfig, layers=COUNT, heads=st.just(2), width=COUNT.map(lambda n: 2 * n), dropout=st.floats(0, 0.9)
    ),
    batch=st.builds(BatchConfig, batch_size=COUNT, hard_negatives=st.integers(0, 9)),
    lora=st.builds(LoraConfig, rank=st.integers(0, 9), targets=st.lists(NAME, max_size=2).map(tuple)),
    loss=st.builds(
        LossConfig,
        temperature=POSITIVE,
        mask_duplicates=st.booleans(),
        mask_margin=optional(st.floats(-1, 1)),
        matryoshka_dims=st.lists(COUNT, unique=True, max_size=3).map(tuple),
    ),
    optimizer=st.builds(
        OptimizerConfig,
        learning_rate=POSITIVE,
        warmup_share=SHARE,
        schedule=st.sampled_from(["cosine", "linear", "constant"]),
    ),
    engine=st.builds(
        EngineConfig, kind=st.sampled_from(["ddp", "fsdp2", "zero1", "zero2", "zero3"]), timeout_s=COUNT
    ),
    train=st.builds(
        TrainConfig, epochs=POSITIVE, steps=st.integers(0, 99), gradient_cache=st.sampled_from(["auto", "on", "off"])
    ),
    dev=st.builds(DevConfig, data=TEXT, split=TEXT),
    refresh=st.builds(RefreshConfig, first_step=COUNT, every_steps=st.integers(0, 99)),
    mining=st.builds(MiningConfig, max_relative_score=st.floats(-1, 1)),
    index=st.builds(IndexConfig, factory=TEXT.filter(lambda text: "IDMap" not in text)),
    workers=st.builds(WorkersSection, count=COUNT, address=TEXT),
    tracker=st.builds(TrackerConfig, project=TEXT, group=TEXT),
)


@settings(max_examples=30, deadline=None)
@given(config=CONFIGS)
def test_a_config_comes_back_from_its_toml(config: RunConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        found = load_config(path)
    assert found == config
    assert to_toml(found) == to_toml(config)
