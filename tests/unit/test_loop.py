"""The loop in one process, on a tiny run: stopped, killed and resumed it is the run that was left alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest

from data_shards.atomic import read_json, write_json
from data_shards.errors import ShardCorruptError, UserError
from data_shards.negatives import MinedNegative, NegativesManifest, NegativesRow, write_negatives
from data_shards.reader import PairDataset
from data_shards.shard_reader import ShardReader
from launch.config import load_config, to_toml
from launch.runs import load_job, prepare_run
from tests.resuming import assert_same_weights, stop_when
from tests.unit.tiny import TEXTS, pair, passage, write_corpus, write_pairs
from train import loop
from train.checkpoint import TrainState, newest_checkpoint
from train.checkpoint_saver import CheckpointSaver
from train.dev import DevSet
from train.health import TrainingDivergedError
from train.lineage import read_lineage
from train.loop import train
from train.refresh import failed_path, request_path
from train.run_folder import RunFolder
from train.stops import EXIT_STOPPED
from train.torch_engine import TorchEngine
from train.tracker import read_metrics

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "handlers_come_back")
STEPS, BORDER = 6, 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a refresh before step 2, whose negatives are there already; every test takes a copy."""
    folder = tmp_path_factory.mktemp("loop")
    positives = [(passage(f"p{k}", TEXTS[k % 5][::-1]),) for k in range(12)]
    pairs = [pair(k, query=TEXTS[k % 6], positives=positives[k]) for k in range(12)]
    data = write_pairs(folder / "pairs", pairs)
    write_corpus(folder / "corpus", (passage(f"p{k}", text) for k, text in enumerate(TEXTS)))
    beir = write_beir(folder / "beir")
    overrides = {
        "run.out": folder / "run",
        "data.pairs": folder / "pairs",
        "data.corpus": folder / "corpus",
        "dev.data": beir,
        "dev.every_steps": 3,
        "scratch.width": 16,
        "scratch.vocab_size": 160,
        "scratch.dropout": 0.2,
        "encoder.max_tokens": 16,
        "batch.batch_size": 4,
        "batch.tokens_per_chunk": 40,
        "train.steps": STEPS,
        "train.checkpoint_every_steps": 1,
        "engine.precision": "float32",
        "refresh.first_step": BORDER,
        "refresh.timeout_s": 5,
        "tracker.mode": "disabled",
    }
    run = prepare_run(load_config(None, [f"--{key}={value}" for key, value in overrides.items()]), resume=False)
    publish(run, data)
    return run


def write_beir(folder: Path) -> Path:
    """Write dev data: each text is found by itself, written backwards."""
    (folder / "qrels").mkdir(parents=True)
    for name, letter, step in (("corpus", "p", 1), ("queries", "q", -1)):
        rows = [json.dumps({"_id": f"{letter}{k}", "text": text[::step]}) for k, text in enumerate(TEXTS)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    rows = [f"q{k}\tp{k}\t1" for k in range(len(TEXTS))]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return folder


def publish(run: RunFolder, data: PairDataset) -> None:
    """Publish version 1: a negative for every sample."""
    manifest = NegativesManifest(
        version=1,
        dataset_id=data.dataset_id,
        from_step=BORDER,
        to_step=STEPS,
        snapshot_hash="sha256:b",
        snapshot_step=BORDER,
        per_query=1,
        index={"factory": "Flat"},
        filters={"kept": 12},
        scores={"positive": 0.7, "negative": 0.4},
        seconds={"search": 0.5},
    )
    mined = [MinedNegative(passage("n", "a hard negative"), 0.5)]
    rows = [NegativesRow(data.shard_stems[k // 4], k % 4, f"{k:09d}", mined) for k in range(12)]
    write_negatives(run.negatives, manifest, rows)


@pytest.fixture
def run(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(prepared.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def uninterrupted(prepared: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(prepared.root, root)
    assert train(load_job(RunFolder(root))) == 0
    return RunFolder(root)


def events(run: RunFolder) -> list[tuple[str, int]]:
    return [(row["event"], row["step"]) for row in read_metrics(run.metrics)]


def values(run: RunFolder, event: str, name: str) -> list[Any]:
    return [row[name] for row in read_metrics(run.metrics) if row["event"] == event]


def assert_same(run: RunFolder, wanted: RunFolder) -> None:
    assert events(run) == events(wanted)
    for event, name in (("step", "loss"), ("step", "grad_norm"), ("step", "lr"), ("dev", "ndcg@10")):
        assert values(run, event, name) == values(wanted, event, name)
    assert_same_weights(run.final, wanted.final)


def stop_after(monkeypatch: pytest.MonkeyPatch, run: RunFolder, steps: int) -> None:
    """Have the flag up as soon as so many steps are logged."""
    stop_when(monkeypatch, loop, lambda: sum(event == "step" for event, _ in events(run)) >= steps - 1)


def test_what_a_whole_run_leaves(uninterrupted: RunFolder) -> None:
    run = uninterrupted
    assert events(run) == [
        ("dev", 0),
        ("step", 0),
        ("step", 1),
        ("refresh", 2),
        ("step", 2),
        ("dev", 3),
        ("step", 3),
        ("step", 4),
        ("step", 5),
        ("dev", 6),
    ]
    assert values(run, "step", "negatives_version") == [0, 0, 1, 1, 1, 1]
    assert values(run, "step", "negatives_age_steps") == [0, 0, 0, 1, 2, 3]
    assert read_json(run.done) == {"steps": 6, "world_size": 1}
    first, *later = values(run, "dev", "ndcg@10")
    # Now and then these few steps gain nothing: a tokenizer that is trained anew is not always the same.
    best = read_json(run.best_pointer) if max(later) > first else {"step": 6, "snapshot": None, "ndcg@10": max(later)}
    assert best["ndcg@10"] == max(later)
    kept = {f"step-{step:07d}" for step in (5, 6, best["step"])}
    assert {path.name for path in run.checkpoints.iterdir()} == kept
    snapshots = {path.name for path in run.initial.parent.iterdir()}
    assert snapshots == {best["snapshot"], "final", "initial", "step-0000002"} - {None}
    assert [row["path"] for row in read_lineage(run.root)][-1] == "snapshots/final"
    assert read_json(request_path(run, 1))["to_step"] == 6


@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_resume_is_exact_after_a_stop(
    run: RunFolder, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """At the beginning, at and after the refresh, and after the last step; nothing is logged twice."""
    with monkeypatch.context() as patch:
        stop_after(patch, run, steps)
        assert train(load_job(run)) == EXIT_STOPPED
    assert read_json(run.stopped)["step"] == steps
    assert not run.done.exists()
    assert train(load_job(run)) == 0
    assert_same(run, uninterrupted)


def test_resume_is_exact_after_a_kill_that_cut_a_line_and_a_checkpoint(
    run: RunFolder, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 0 to 3 are done; the newest checkpoint is damaged, and half a line of step 4 is in the log."""
    with monkeypatch.context() as patch:
        stop_after(patch, run, 4)
        train(load_job(run))
    (run.checkpoints / "step-0000004" / "rank-00000-of-00001.safetensors").write_bytes(b"half")
    with open(run.metrics, "a") as file:
        file.write('{"event": "step", "st')
    assert train(load_job(run)) == 0
    assert_same(run, uninterrupted)


def test_a_damaged_checkpoint_is_written_anew_when_its_step_is_reached_again(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stop at just this step would promise a checkpoint that is none, and rotation keep it for a sound one."""
    with monkeypatch.context() as patch:
        stop_after(patch, run, 4)
        train(load_job(run))
        (run.checkpoints / "step-0000004" / "rank-00000-of-00001.safetensors").write_bytes(b"half")
        stop_after(patch, run, 5)
        train(load_job(run))
    for newest in ("step-0000005", "step-0000004"):
        found = newest_checkpoint(run.checkpoints)
        assert found is not None
        assert found[0].name == newest
        shutil.rmtree(found[0])


def test_the_best_snapshot_is_what_the_checkpoint_knows_of(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a new best and before its checkpoint, and resumed at another rate: the new one never happens."""
    configured(run, ["--refresh.first_step=0", "--dev.every_steps=2", "--train.checkpoint_every_steps=50"])
    rising = iter([0.0, 0.1, 0.2, 0.05, 0.05])
    monkeypatch.setattr(DevSet, "evaluate", lambda *_, **__: {"ndcg@10": next(rising)})
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointSaver, "save", until_step(3))
        with pytest.raises(RuntimeError, match="killed"):
            train(load_job(run))
    bests = {path.name for path in run.initial.parent.glob("best-*")}
    assert bests == {"best-0000002", "best-0000004"}
    assert train(load_job(run)) == 0
    assert [path.name for path in run.initial.parent.glob("best-*")] == ["best-0000002"]
    assert read_json(run.best_pointer) == {"snapshot": "best-0000002", "step": 2, "ndcg@10": 0.1}


def until_step(step: int) -> Any:
    """Return what saves checkpoints before a step, and dies of the next."""
    save = CheckpointSaver.save

    def save_or_die(saver: CheckpointSaver, pieces: Any, shapes: Any, state: TrainState, extra: Any) -> None:
        if state.step > step:
            raise RuntimeError("killed")
        save(saver, pieces, shapes, state, extra)

    return save_or_die


def test_a_failure_of_an_earlier_attempt_does_not_end_the_next_one(run: RunFolder, uninterrupted: RunFolder) -> None:
    write_json(failed_path(run, 1), {"cause": "the corpus was gone"})
    assert train(load_job(run)) == 0
    assert_same(run, uninterrupted)


@pytest.mark.parametrize("name", ["loss", "gradient's norm"])
def test_what_is_no_number_ends_the_run_and_no_later_checkpoint_is_written(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A gradient that is no number has spoilt the weights, though the loss shows it a step later only."""
    if name == "loss":
        monkeypatch.setattr(loop, "learning_rate", lambda config, step, total: nan if step == 1 else 1e-3)
    else:
        step = TorchEngine.step
        norms = iter([1.0, 1.0, nan])
        monkeypatch.setattr(TorchEngine, "step", lambda self, rate: step(self, rate) * 0 + next(norms))
    message = rf"^the {name} of step 2 is nan; the newest checkpoint from before it is step-0000002\. Lower optimizer"
    with pytest.raises(TrainingDivergedError, match=message):
        train(load_job(run))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-0000001", "step-0000002"]


def damage_pair(run: RunFolder, prepared: RunFolder, tmp_path: Path, **settings: str) -> RunFolder:
    """Have the run read a copy of its pairs with a flipped bit in pair 6."""
    shutil.copytree(prepared.root.parent / "pairs", tmp_path / "pairs")
    path = tmp_path / "pairs" / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[int(ShardReader(path).offsets[2]) + 520] ^= 1
    path.write_bytes(content)
    config = load_config(run.config, [f"--data.pairs={tmp_path / 'pairs'}", *settings.values()])
    run.config.write_text(to_toml(config))
    return run


def test_a_damaged_pair_ends_the_run_by_default(run: RunFolder, prepared: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ShardCorruptError, match=r"train-000001\.tar at byte 2048: the sample's bytes do not match"):
        train(load_job(damage_pair(run, prepared, tmp_path)))
    assert not run.quarantine("rank-00000").exists()


def test_a_damaged_pair_in_quarantine_is_skipped_counted_and_written_down(
    run: RunFolder, prepared: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs meet it twice, the file names it once, also where the run is stopped and resumed in between."""
    damage_pair(run, prepared, tmp_path, on_error="--data.on_error=quarantine")
    with monkeypatch.context() as patch:
        stop_after(patch, run, 4)
        assert train(load_job(run)) == EXIT_STOPPED
    assert train(load_job(run)) == 0
    skipped = values(run, "step", "skipped")
    assert (len(skipped), sum(skipped)) == (STEPS, 2)
    (line,) = run.quarantine("rank-00000").read_text().splitlines()
    found = json.loads(line)
    assert (Path(found["shard"]).name, found["row"], found["offset"]) == ("train-000001.tar", 2, 2048)


def test_what_was_measured_of_memory_is_not_measured_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached way rounds differently under some engines, and the memory that is free differs from life to life."""
    answers = iter([False])
    monkeypatch.setattr(loop, "graphs_fit", lambda *arguments, **others: next(answers))
    with monkeypatch.context() as patch:
        stop_after(patch, run, 2)
        train(load_job(run))
    assert train(load_job(run)) == 0
    assert read_json(run.checkpoints / "step-0000006" / "state.json")["state"]["keep_graphs"] is False


def test_what_is_skipped_between_two_lines_of_the_log_is_counted_too(
    run: RunFolder, prepared: RunFolder, tmp_path: Path
) -> None:
    damage_pair(run, prepared, tmp_path, on_error="--data.on_error=quarantine", log="--tracker.log_every_steps=5")
    assert train(load_job(run)) == 0
    assert [row["step"] for row in read_metrics(run.metrics) if row["event"] == "step"] == [0, 5]
    assert sum(values(run, "step", "skipped")) == 2


def test_another_order_is_not_resumed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the weight in a manifest was changed: the dataset's id says nothing of it."""
    with monkeypatch.context() as patch:
        stop_after(patch, run, 2)
        train(load_job(run))
    job = load_job(run)
    with pytest.raises(UserError, match="the checkpoint was written under another global order"):
        train(replace(job, order=replace(job.order, lanes=1)))


OPTIONS = {
    "learned temperature": ["--loss.learn_temperature=true"],
    "averaged weights": ["--optimizer.ema_decay=0.9"],
    "gradient cache": ["--train.gradient_cache=on"],
    "accumulation": ["--batch.accumulation=2"],
    "adapters": ["--lora.rank=2"],
    "base model": ["--loss.base_weight=0.5"],
    "Matryoshka": ["--loss.matryoshka_dims=[4,8]"],
    "checkpoints in line": ["--train.asynchronous_checkpoints=false"],
}


def configured(run: RunFolder, overrides: list[str]) -> RunFolder:
    run.config.write_text(to_toml(load_config(run.config, overrides)))
    return run


@pytest.mark.parametrize("option", OPTIONS)
def test_resume_is_exact_with(
    option: str, run: RunFolder, tmp_path: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(run, OPTIONS[option])
    shutil.copytree(run.root, tmp_path / "whole")
    whole = RunFolder(tmp_path / "whole")
    assert train(load_job(whole)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, run, 4)
        assert train(load_job(run)) == EXIT_STOPPED
    assert train(load_job(run)) == 0
    assert_same(run, whole)
    changes_nothing = option in ("gradient cache", "checkpoints in line")
    same_losses = values(run, "step", "loss") == values(uninterrupted, "step", "loss")
    assert same_losses == (changes_nothing or option == "averaged weights"), "the option should do what it says"


def test_a_run_ends_early_without_a_gain_and_points_to_its_best_snapshot(run: RunFolder) -> None:
    rate = "--optimizer.learning_rate=1e-12"  # nothing is learnt, so the first evaluation stays the best
    configured(run, [rate, "--dev.every_steps=1", "--dev.stop_after_evals=2", "--refresh.first_step=0"])
    assert train(load_job(run)) == 0
    assert read_json(run.done) == {"steps": 2, "world_size": 1}
    assert [step for event, step in events(run) if event == "dev"] == [0, 1, 2]
    assert run.final.exists()


def test_a_loss_far_above_its_start_ends_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 10 on it climbs: the rate is negative."""
    monkeypatch.setattr(loop, "learning_rate", lambda config, step, total: -0.01 if step >= 10 else 1e-6)
    configured(run, ["--health.spike_factor=1.5", "--refresh.first_step=0", "--train.steps=60"])
    with pytest.raises(TrainingDivergedError, match=r"above health\.spike_factor = 1\.5 times"):
        train(load_job(run))
    assert read_json(run.failure)["exit_code"] == 76


def test_no_whole_checkpoint_is_no_reason_to_begin_anew(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, run, 2)
        train(load_job(run))
    for folder in run.checkpoints.iterdir():
        (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match="none of the checkpoints in .* is whole .*step-0000002"):
        train(load_job(run))
    assert len(read_metrics(run.metrics)) > 2, "the log of the run that was lost stays"
