"""The stage from its run folder on, in one process: what it needs and leaves, and that a stop changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_shards.atomic import read_json
from data_shards.errors import UserError
from encoder.snapshot import load_encoder, save_snapshot, snapshot_hash
from launch.config import RunConfig, load_config, to_toml
from launch.miner import request_by_hand
from launch.runs import load_job, prepare_run
from tests.resuming import assert_same_weights, stop_when
from tests.unit.tiny import TEXTS, pair, passage, tiny_encoder, write_corpus, write_pairs
from tests.unit.tiny_backbones import write_backbone
from train import adapt as room
from train.adapt import adapt
from train.health import TrainingDivergedError
from train.lineage import read_lineage
from train.loop import train
from train.run_folder import RunFolder
from train.stops import EXIT_STOPPED
from train.tracker import read_metrics

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "handlers_come_back")
STEPS = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder / "pairs", (pair(k, query=TEXTS[k % 6]) for k in range(8)))
    write_corpus(folder / "corpus", (passage(f"p{k}", f"{TEXTS[k % 6]} {k}") for k in range(12)))
    return folder


def config_of(data: Path, out: Path, *more: str) -> RunConfig:
    overrides = {
        "run.out": out,
        "data.pairs": data / "pairs",
        "data.corpus": data / "corpus",
        "scratch.width": 16,
        "scratch.vocab_size": 160,
        "scratch.dropout": 0.2,
        "encoder.max_tokens": 16,
        "batch.batch_size": 4,
        "train.steps": 2,
        "train.checkpoint_every_steps": 2,
        "train.asynchronous_checkpoints": False,  # else it may not be there yet where a message names it
        "engine.precision": "float32",
        "adapt.steps": STEPS,
        "adapt.batch_size": 4,
        "adapt.tokens_per_chunk": 40,
        "adapt.learning_rate": 1e-2,
        "tracker.mode": "disabled",
    }
    return load_config(None, [f"--{key}={value}" for key, value in overrides.items()] + list(more))


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return prepare_run(config_of(data, tmp_path_factory.mktemp("prepared") / "run"), resume=False)


@pytest.fixture
def run(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(prepared.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def uninterrupted(prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    from accelerate.state import AcceleratorState, GradientState

    root = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(prepared.root, root)
    assert adapt(load_job(RunFolder(root))) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return RunFolder(root)


def stop_after(monkeypatch: pytest.MonkeyPatch, run: RunFolder, steps: int) -> None:
    """Have the flag up as soon as so many steps are taken."""
    stop_when(monkeypatch, room, lambda: len(read_metrics(run.metrics)) >= steps - 1)


def assert_same(run: RunFolder, wanted: RunFolder) -> None:
    rows, others = read_metrics(run.metrics), read_metrics(wanted.metrics)
    for name in ("event", "step", "loss", "accuracy", "grad_norm", "lr", "masked"):
        assert [row[name] for row in rows] == [row[name] for row in others], name
    assert_same_weights(run.adapted, wanted.adapted)


def test_what_the_stage_leaves(uninterrupted: RunFolder) -> None:
    """Its steps are counted up to 0, where contrastive training begins; its checkpoints are gone."""
    run = uninterrupted
    rows = read_metrics(run.metrics)
    assert [(row["event"], row["step"]) for row in rows] == [("adapt", step) for step in range(-STEPS, 0)]
    assert [(row["done"], row["steps"]) for row in rows] == [(k + 1, STEPS) for k in range(STEPS)]
    assert rows[-1]["epoch"] == pytest.approx(STEPS * 4 / 12)
    assert all(row["masked"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)
    before, after = (load_file(path / "model.safetensors") for path in (run.initial, run.adapted))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert not run.adapt_checkpoints.exists()
    assert not run.done.exists()
    (made,) = read_lineage(run.root)
    assert (made["path"], made["id"]) == ("snapshots/adapted", snapshot_hash(run.adapted))
    assert made["uses"]["snapshot"] == snapshot_hash(run.initial)


def test_the_loss_falls(data: Path, tmp_path: Path) -> None:
    """From about the logarithm of the vocabulary; sixty steps learn some of these few texts by heart."""
    more = ("--adapt.steps=60", "--adapt.batch_size=12", "--scratch.dropout=0")
    run = prepare_run(config_of(data, tmp_path / "run", *more), resume=False)
    assert adapt(load_job(run)) == 0
    losses = [row["loss"] for row in read_metrics(run.metrics)]
    assert losses[0] == pytest.approx(torch.tensor(160.0).log().item(), abs=0.4)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.parametrize("steps", [0, 2, 3, STEPS])
def test_resume_is_exact_after_a_stop(
    run: RunFolder, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Asked during the last step, the stage is done all the same."""
    with monkeypatch.context() as patch:
        stop_after(patch, run, steps)
        code = adapt(load_job(run))
    if steps < STEPS:
        assert code == EXIT_STOPPED
        row = read_json(run.stopped)
        assert (row["stage"], row["step"], row["of"]) == ("adapt", steps, STEPS)
        assert not run.adapted.exists()
        code = adapt(load_job(run))
    assert code == 0
    assert_same(run, uninterrupted)


def test_training_goes_on_from_the_adapted_encoder_and_keeps_the_stage_s_events(
    uninterrupted: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.root, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    job = load_job(run)
    assert job.start == run.adapted
    assert train(replace(job, optimizer=replace(job.optimizer, learning_rate=1e-12))) == 0
    events = [(row["event"], row["step"]) for row in read_metrics(run.metrics)]
    assert events == [("adapt", step) for step in range(-STEPS, 0)] + [("step", 0), ("step", 1)]
    start, final = (load_file(path / "model.safetensors") for path in (run.adapted, run.final))
    assert all(torch.allclose(final[name], start[name], atol=1e-9) for name in start)


def test_training_with_the_stage_never_starts_without_its_snapshot(run: RunFolder) -> None:
    with pytest.raises(UserError, match="adapted"):
        train(load_job(run))


def test_mining_by_hand_takes_the_adapted_snapshot_rather_than_the_first(uninterrupted: RunFolder) -> None:
    request = request_by_hand(uninterrupted, uninterrupted.root / "mined", every_steps=0)
    assert request.snapshot == "snapshots/adapted"


def test_a_loss_that_is_no_number_ends_the_stage_and_names_its_own_rate(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "learning_rate", lambda config, step, total: float("nan") if step == 2 else 1e-2)
    with pytest.raises(TrainingDivergedError, match=r"of step 3 is nan; .*step-0000002\. Lower adapt\.learning_rate"):
        adapt(load_job(run))
    assert not run.adapted.exists()


def refuse(config: RunConfig, message: str, *, resume: bool = False) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare_run(config, resume=resume)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_adapted_is_refused_before_there_is_a_run(data: Path, tmp_path: Path, snapshot: Path) -> None:
    out = tmp_path / "run"
    refuse(config_of(data, out, "--adapt.batch_size=5", "--run.ranks=2"), "adapt.batch_size 5 does not divide over 2")
    model = f"--encoder.model={snapshot}"
    refuse(config_of(data, out, model, "--data.corpus="), "adapt trains on the corpus and data.corpus is not set")
    refuse(config_of(data, out, "--encoder.towers=two"), "this encoder has two")
    decoder = write_backbone(tmp_path / "qwen3", "qwen3")
    refuse(config_of(data, out, f"--encoder.model={decoder}"), "no masked-language-model head for qwen3")
    bare = write_backbone(tmp_path / "bert", "bert")
    refuse(config_of(data, out, f"--encoder.model={bare}"), "has no mask token")
    assert not out.exists()


def test_a_resumed_run_may_change_ranks_and_not_the_stage(run: RunFolder, data: Path) -> None:
    write_config(run, config_of(data, run.root))
    changed = config_of(data, run.root, "--adapt.mask_share=0.3")
    refuse(changed, "was started with adapt.mask_share = 0.15", resume=True)
    refuse(config_of(data, run.root, "--run.ranks=3", "--batch.batch_size=6"), "adapt.batch_size 4 does", resume=True)
    save_snapshot(tiny_encoder(), run.adapted)
    config = config_of(data, run.root, "--run.ranks=3", "--batch.batch_size=6")
    write_config(run, replace(config, run=replace(config.run, ranks=1)))
    assert prepare_run(config, resume=True) == run, "the stage is behind"


def write_config(run: RunFolder, config: RunConfig) -> None:
    run.config.write_text(to_toml(config))


def test_without_the_stage_nothing_of_it_is_in_the_run(data: Path, tmp_path: Path) -> None:
    run = prepare_run(config_of(data, tmp_path / "run", "--adapt.steps=0"), resume=False)
    assert not run.adapt_head.parent.exists()
    assert load_job(run).start == run.initial


def test_the_base_that_training_stays_close_to_is_the_first_encoder_not_the_adapted_one(
    uninterrupted: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(uninterrupted.root, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    job = load_job(run)
    loaded: list[Path] = []

    def load(path: Path) -> object:
        loaded.append(path)
        return load_encoder(path)

    monkeypatch.setattr("train.loop.load_encoder", load)
    assert train(replace(job, loss=replace(job.loss, base_weight=0.5))) == 0
    assert loaded == [run.adapted, run.initial]
