"""Making a run folder: everything that a person can get wrong is found before it is there."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from data_shards.errors import UserError
from encoder.snapshot import load_encoder, snapshot_hash
from launch.config import RunConfig, load_config
from launch.runs import load_job, prepare_run, save_config
from tests.unit.tiny import TEXTS, pair, passage, write_corpus, write_pairs
from tests.unit.tiny_backbones import write_backbone
from train.run_folder import RunFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs and a corpus."""
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder / "pairs", (pair(number) for number in range(6)))
    write_pairs(folder / "more", (pair(number) for number in range(6, 9)))
    write_corpus(folder / "corpus", (passage(f"p{k}", text) for k, text in enumerate(TEXTS)))
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> RunConfig:
    return change(
        RunConfig(),
        f"--run.out={tmp_path / 'run'}",
        f"--data.pairs={data / 'pairs'}",
        f"--data.corpus={data / 'corpus'}",
        "--scratch.width=16",
        "--scratch.vocab_size=160",
        "--batch.batch_size=4",
        "--encoder.max_tokens=20",
    )


def change(config: RunConfig, *overrides: str) -> RunConfig:
    """Put overrides on top of a config."""
    wanted = load_config(None, overrides)
    keys = [override.removeprefix("--").split("=")[0].split(".") for override in overrides]
    for section, name in keys:
        value = getattr(getattr(wanted, section), name)
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def refuse(config: RunConfig, message: str, *, resume: bool = False) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare_run(config, resume=resume)
    assert "\n" not in str(caught.value)


def test_a_run_folder_holds_the_resolved_config_the_first_snapshot_and_its_identity(
    config: RunConfig, data: Path
) -> None:
    run = prepare_run(config, resume=False)
    assert load_config(run.config) == config
    identity = json.loads(run.identity.read_text())
    assert identity["pairs"] == json.loads((data / "pairs/manifest.json").read_text())["dataset_id"]
    assert identity["corpus"] == json.loads((data / "corpus/manifest.json").read_text())["dataset_id"]
    assert len(identity["run_id"]) == 8
    encoder = load_encoder(run.initial)
    assert (encoder.dim, encoder.settings.max_tokens) == (16, 20)


def test_relative_paths_become_absolute_so_that_ranks_may_stand_elsewhere(
    config: RunConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    run = prepare_run(change(config, "--data.pairs=pairs", "--data.corpus=corpus"), resume=False)
    found = load_config(run.config).data
    assert (found.pairs, found.corpus) == ((str(data / "pairs"),), str(data / "corpus"))


def test_of_several_datasets_each_place_becomes_absolute_and_urls_stay(
    config: RunConfig, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    location = f"file://{data / 'pairs'}"
    run = prepare_run(change(config, f"--data.pairs=pairs,more,{location}", "--data.weights=1,2,3"), resume=False)
    found = load_config(run.config).data
    assert found.pairs == (str(data / "pairs"), str(data / "more"), location)
    assert found.weights == (1.0, 2.0, 3.0)
    dataset = load_job(run).data.open(run.quarantine("rank-00000"))
    assert dataset.shard_stems == [
        f"{prefix}-train-00000{at}" for prefix, at in (("00", 0), ("00", 1), ("01", 0), ("02", 0), ("02", 1))
    ]
    assert json.loads(run.identity.read_text())["pairs"] == dataset.dataset_id


def test_a_quarantine_is_opened_only_where_it_is_asked_for(config: RunConfig) -> None:
    run = prepare_run(change(config, "--data.on_error=quarantine"), resume=False)
    assert not run.quarantine("start").parent.exists(), "nothing was damaged"
    assert load_job(run).data == change(config, "--data.on_error=quarantine").pair_source


def test_the_job_of_a_rank_comes_from_the_folder_alone(config: RunConfig) -> None:
    run = prepare_run(config, resume=False)
    job = load_job(RunFolder(run.root))
    assert (job.data, job.order, job.seed) == (config.pair_source, config.order, config.run.seed)
    assert job.data.locations == config.data.pairs
    assert (job.batch, job.loss, job.train) == (config.batch, config.loss, config.train)
    assert job.run_id == json.loads(run.identity.read_text())["run_id"]
    assert job.resolved == dataclasses.asdict(config)


def test_what_boards_show_and_messages_say_holds_no_password_and_no_signature(config: RunConfig) -> None:
    run = prepare_run(config, resume=False)
    places = "--data.pairs=https://user:pass@host/pairs?sig=x,s3://bucket/pairs"
    secret = change(config, places, "--data.corpus=https://host/corpus?token=y")
    refuse(secret, r"now it is \('https://host/pairs', 's3://bucket/pairs'\)", resume=True)
    save_config(run, secret)
    job = load_job(run)
    assert job.data.locations[0] == "https://user:pass@host/pairs?sig=x"
    assert job.resolved["data"]["pairs"] == ("https://host/pairs", "s3://bucket/pairs")
    assert job.resolved["data"]["corpus"] == "https://host/corpus"


def test_a_named_model_is_taken_with_the_settings_that_are_given(
    config: RunConfig, snapshot: Path, tmp_path: Path
) -> None:
    named = change(config, f"--encoder.model={snapshot}", "--encoder.query_prompt=q: ")
    run = prepare_run(change(named, "--encoder.max_tokens=None"), resume=False)
    settings = load_encoder(run.initial).settings
    assert (settings.query_prompt, settings.max_tokens) == ("q: ", 16)
    bare = change(config, f"--encoder.model={snapshot}", "--encoder.max_tokens=None", f"--run.out={tmp_path / 'b'}")
    assert snapshot_hash(prepare_run(bare, resume=False).initial) == snapshot_hash(snapshot)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.pairs="], r"^data\.pairs is not set; give a folder made by `dipole shards pairs`$"),
        (["--data.pairs=no-such-folder"], "no-such-folder is no dataset"),
        (["--data.corpus=no-such-folder"], "no-such-folder is no dataset"),
        (["--data.weights=1,2"], r"^2 data\.weights came for 1 data\.pairs; wanted one each, or none$"),
        (["--data.weights=-1"], r"^data\.weights are -1\.0; each must be a number above 0$"),
        (["--data.corpus="], r"^set encoder\.model, or data\.corpus to train a tokenizer on"),
        (
            ["--data.corpus=", "--refresh.first_step=3"],
            r"^\[refresh\] asks for mining, which needs data\.corpus; set it, or turn refreshes off$",
        ),
        (["--loss.distill=kl", "--refresh.first_step=3"], r"mined negatives have none; set mining\.teacher, or turn"),
        (["--run.ranks=3"], r"^global batch 4 does not divide over 3 ranks; set batch\.batch_size to 3 or 6$"),
        (["--dev.data=no-such-folder"], "no-such-folder is no folder; wanted a BEIR folder"),
        (["--encoder.model=no-such-owner/no-such-model"], "^no-such-owner/no-such-model is not a model"),
        (["--encoder.max_tokens=2"], "max_tokens must be at least 3, came 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_leaves_no_folder(config: RunConfig, overrides: Sequence[str], message: str) -> None:
    refuse(change(config, *overrides), message)
    assert not Path(config.run.out).exists()


@pytest.mark.parametrize("named", [False, True], ids=["from scratch", "named"])
def test_a_size_that_the_vectors_lack_is_refused(config: RunConfig, snapshot: Path, named: bool) -> None:
    config = change(config, f"--encoder.model={snapshot}", "--encoder.max_tokens=None") if named else config
    message = r"^loss\.matryoshka_dims asks for 32, but the vectors have 16 dimensions; leave out"
    refuse(change(config, "--loss.matryoshka_dims=8,32"), message)
    assert not Path(config.run.out).exists()
    run = prepare_run(change(config, "--loss.matryoshka_dims=8,4"), resume=False)
    assert load_encoder(run.initial).settings.matryoshka_dims == (4, 8)


def test_what_the_backbone_cannot_do_is_refused_before_there_is_a_run(config: RunConfig, tmp_path: Path) -> None:
    config = change(config, f"--encoder.model={write_backbone(tmp_path / 'mpnet', 'mpnet')}")
    message = r"^mpnet cannot run on packed tokens: its attention is its own; use attention auto$"
    refuse(change(config, "--engine.attention=packed"), message)
    refuse(
        change(config, "--engine.gradient_checkpointing=true"), "no gradient checkpointing for mpnet; switch it off"
    )
    assert not Path(config.run.out).exists()
    prepare_run(config, resume=False)


def test_a_corpus_in_place_of_pairs_is_refused(config: RunConfig, data: Path) -> None:
    refuse(change(config, f"--data.pairs={data / 'corpus'}"), "holds a dataset of kind corpus, wanted pairs")


def test_a_folder_that_holds_another_run_is_refused(config: RunConfig) -> None:
    prepare_run(config, resume=False)
    refuse(config, r"run holds another run; add --resume to go on with it, or choose another run\.out$")


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(config: RunConfig) -> None:
    root = Path(config.run.out)
    root.mkdir()
    (root / "thesis.tex").write_text("words")
    for resume in (False, True):
        refuse(config, r"run is not empty and holds no run; choose another run\.out$", resume=resume)
    assert [path.name for path in root.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folder_s_place_is_refused(config: RunConfig) -> None:
    Path(config.run.out).write_text("words")
    refuse(config, r"run is a file, wanted a folder for the run; choose another run\.out$")


def test_resume_without_a_run_is_refused(config: RunConfig) -> None:
    refuse(config, "run holds no run to resume; leave --resume out to start one$", resume=True)


def test_a_run_that_is_done_is_refused(config: RunConfig) -> None:
    run = prepare_run(config, resume=False)
    run.done.write_text("{}")
    refuse(config, r"run holds a run that is done; choose another run\.out$", resume=True)


def test_resume_finds_the_run_and_changes_nothing(config: RunConfig) -> None:
    run = prepare_run(config, resume=False)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    assert prepare_run(config, resume=True) == run
    assert prepare_run(load_config(run.config), resume=True) == run
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


def test_resume_from_another_folder_with_relative_paths(
    config: RunConfig, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(config, resume=False)
    monkeypatch.chdir(data)
    assert prepare_run(change(config, "--data.pairs=pairs"), resume=True) == run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--run.seed=9", r"was started with run\.seed = 0, now it is 9; set it back, or choose another run\.out$"),
        ("--batch.batch_size=8", r"was started with batch\.batch_size = 4, now it is 8;"),
        ("--encoder.query_prompt=q", r"was started with encoder\.query_prompt = None, now it is 'q';"),
        ("--data.pairs=elsewhere", r"was started with data\.pairs = '.*pairs', now it is 'elsewhere';"),
        ("--data.pairs=a,b", r"data\.pairs = '.*pairs', now it is \('a', 'b'\);"),
        ("--data.weights=2", r"data\.weights = \(\), now it is 2\.0;"),
        ("--order.lanes=2", r"order\.lanes = 64, now it is 2;"),
        ("--batch.accumulation=2", r"batch\.accumulation = 1, now it is 2;"),
        ("--lora.rank=2", r"lora\.rank = 0, now it is 2;"),
        ("--loss.temperature=0.1", r"loss\.temperature = 0\.05, now it is 0\.1;"),
        ("--optimizer.ema_decay=0.9", r"optimizer\.ema_decay = 0\.0, now it is 0\.9;"),
    ],
)
def test_a_changed_setting_is_refused_by_name_on_resume(config: RunConfig, override: str, message: str) -> None:
    prepare_run(config, resume=False)
    refuse(change(config, override), message, resume=True)


@pytest.mark.parametrize(
    "override",
    [
        "--run.ranks=2",
        "--workers.count=3",
        "--tracker.mode=disabled",
        "--engine.timeout_s=9",
        "--engine.kind=zero1",
        "--engine.precision=bfloat16",
        "--train.gradient_cache=off",
        "--train.activations_gib=2",
        "--loss.block_scores=9",
        "--data.on_error=quarantine",
        "--cache.budget_gib=2",
        "--refresh.timeout_s=9",
        "--train.keep_checkpoints=9",
    ],
)
def test_what_changes_nothing_that_is_learnt_may_change_on_resume(config: RunConfig, override: str) -> None:
    run = prepare_run(config, resume=False)
    assert prepare_run(change(config, override), resume=True) == run


def cut_off(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Begin to make a run folder, and be killed before it is a run."""
    with monkeypatch.context() as patched:
        patched.setattr("launch.runs.save_config", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_run(config, resume=False)
    run = RunFolder(Path(config.run.out))
    assert run.initial.exists()
    assert not run.identity.exists()
    return run


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_cut_off_before_it_began_begins_anew(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, resume: bool
) -> None:
    """A job that is killed while it makes the folder, and queued again, must not need a person."""
    run = cut_off(config, monkeypatch)
    (run.logs / "old.log").touch()
    assert prepare_run(config, resume=resume).identity.exists()
    assert "was cut off before it began; it begins anew" in caplog.text
    assert sorted(path.name for path in run.root.iterdir()) == ["config.toml", "logs", "run.json", "snapshots"]
    assert not list(run.logs.iterdir())


@pytest.mark.parametrize("name", [".tmp-1-00c0ffee-starting.json", "quarantine/start.jsonl"])
def test_one_that_was_cut_off_before_it_said_who_it_is_begins_anew(config: RunConfig, name: str) -> None:
    left = Path(config.run.out) / name
    left.parent.mkdir(parents=True)
    left.touch()
    assert prepare_run(config, resume=False).identity.exists()
    assert left.exists() == name.startswith("quarantine"), "what was found damaged stays written down"


def test_one_that_was_cut_off_is_kept_until_it_can_begin_anew(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder may hold the only config that there is."""
    run = cut_off(config, monkeypatch)
    run.config.write_text("the only one")
    refuse(change(config, "--data.pairs=nowhere"), "nowhere", resume=True)
    assert run.config.read_text() == "the only one"
    assert run.initial.exists()
    assert prepare_run(config, resume=True).identity.exists()


def test_one_that_is_being_made_is_left_alone(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cut_off(config, monkeypatch)
    with subprocess.Popen(["sleep", "60"]) as other:
        started = psutil.Process(other.pid).create_time()
        marker = run.root / "starting.json"
        marker.write_text(json.dumps({"host": socket.gethostname(), "pid": other.pid, "started": started}))
        refuse(config, "is being made by another command; wait for it")
        other.kill()
        other.wait()
        marker.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
        refuse(config, "is being made by another command; wait for it")
        os.utime(marker, (0, 0))
        assert prepare_run(config, resume=False).identity.exists()


def test_something_of_a_person_s_own_beside_it_is_left_alone(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_off(config, monkeypatch)
    (run.root / "notes.txt").touch()
    refuse(config, "is not empty and holds no run")
    assert run.initial.exists()
