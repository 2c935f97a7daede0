"""Makes a run folder ready, so that every rank and the miner need only its path."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_shards.atomic import atomic_path, read_json, write_json
from data_shards.errors import UserError
from data_shards.order import check_batch_divides
from data_shards.reader import CorpusDataset, PairDataset
from encoder.model import Encoder, EncoderSettings, scratch_encoder
from encoder.snapshot import load_encoder, save_snapshot
from launch.config import RunConfig, load_config, to_toml
from train.dev import DevSet
from train.loop import TrainJob
from train.run_folder import RunFolder

_TOKENIZER_PASSAGES = 200_000
"""A WordPiece vocabulary of tens of thousands is settled long before."""
_MAY_CHANGE = {
    "run.ranks",
    "workers",
    "tracker",
    "cache",
    "data.on_error",
    "engine.timeout_s",
    "refresh.timeout_s",
    "train.keep_checkpoints",
}
"""What a resumed run may have other than the run that it continues: none of it changes what is learnt."""


def prepare_run(config: RunConfig, *, resume: bool) -> RunFolder:
    """Check everything that a person can get wrong, then make the run folder, or find the one to resume.

    Raises:
        UserError: data or model is missing or does not fit, or the folder holds another run.
    """
    run = RunFolder(Path(config.run.out).absolute())
    check_batch_divides(config.batch.batch_size, config.run.ranks)
    if run.identity.exists():
        _check_resume(run, config, resume)
        return run
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"{run.root} is a file, wanted a folder for the run; choose another run.out")
    if run.root.exists() and any(run.root.iterdir()):
        raise UserError(f"{run.root} is not empty and holds no run; choose another run.out")
    if resume:
        raise UserError(f"{run.root} holds no run to resume; leave --resume out to start one")
    pairs, corpus = _check_data(config)
    encoder = build_encoder(config, corpus)
    run.logs.mkdir(parents=True, exist_ok=True)
    save_snapshot(encoder, run.initial)
    save_config(run, config)
    # Written last: a folder without it is no run, and is refused above rather than half resumed.
    write_json(
        run.identity,
        {
            "run_id": secrets.token_hex(4),
            "pairs": pairs.dataset_id,
            "corpus": corpus.dataset_id if corpus else None,
            "dipole": _version(),
        },
    )
    return run


def save_config(run: RunFolder, config: RunConfig) -> None:
    """Write the config that ranks and miner read, its places absolute."""
    absolute = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, out=str(run.root)),
        data=dataclasses.replace(
            config.data,
            pairs=tuple(map(_absolute, config.data.pairs)),
            corpus=_absolute(config.data.corpus),
        ),
        dev=dataclasses.replace(config.dev, data=_absolute(config.dev.data)),
    )
    with atomic_path(run.config) as temporary:
        temporary.write_text(to_toml(absolute), encoding="utf-8")


def load_job(run: RunFolder) -> TrainJob:
    """Return what a rank needs, from the run folder alone."""
    config = load_config(run.config)
    return TrainJob(
        run=run,
        data=config.pair_source,
        order=config.order,
        seed=config.run.seed,
        run_id=read_json(run.identity)["run_id"],
        train=config.train,
        batch=config.batch,
        loss=config.loss,
        optimizer=config.optimizer,
        engine=config.engine,
        refresh=config.refresh,
        dev=config.dev,
        tracker=config.tracker,
        resolved=dataclasses.asdict(config),
    )


def build_encoder(config: RunConfig, corpus: CorpusDataset | None) -> Encoder:
    """Load the model that the config names, or build one from scratch with a tokenizer trained on the corpus."""
    if config.encoder.model:
        encoder = load_encoder(config.encoder.model)
        return Encoder(encoder.backbone, encoder.tokenizer, config.encoder.settings(encoder.settings))
    if corpus is None:
        raise UserError("set encoder.model, or data.corpus to train a tokenizer on for an encoder from scratch")
    texts = (passage.content for passage in itertools.islice(corpus, _TOKENIZER_PASSAGES))
    return scratch_encoder(config.scratch, config.encoder.settings(EncoderSettings()), texts, seed=config.run.seed)


def _check_data(config: RunConfig) -> tuple[PairDataset, CorpusDataset | None]:
    if not config.data.pairs:
        raise UserError("data.pairs is not set; give a folder made by `dipole shards pairs`")
    pairs = config.pair_source.open(RunFolder(Path(config.run.out)).quarantine("start"))
    corpus = CorpusDataset(config.data.corpus, cache=config.cache) if config.data.corpus else None
    if config.refresh.first_step and corpus is None:
        raise UserError(
            "refresh.first_step asks for mining, which needs data.corpus; set it, or refresh.first_step = 0"
        )
    if config.dev.data:
        DevSet(config.dev)
    return pairs, corpus


def _check_resume(run: RunFolder, config: RunConfig, resume: bool) -> None:
    if run.done.exists():
        raise UserError(f"{run.root} holds a run that is done; choose another run.out")
    if not resume:
        raise UserError(f"{run.root} holds another run; add --resume to go on with it, or choose another run.out")
    then, now = (dataclasses.asdict(c) for c in (load_config(run.config), config))
    for section, fields in then.items():
        for name, value in fields.items():
            given = now[section][name]
            changed = given != value and f"{section}.{name}" not in _MAY_CHANGE
            places = tuple(map(_absolute, given)) if name == "pairs" else _absolute(str(given))
            if changed and section not in _MAY_CHANGE and places != value:
                raise UserError(
                    f"{run.root} was started with {section}.{name} = {_shown(value)}, now it is {_shown(given)}; "
                    f"set it back, or choose another run.out"
                )


def _shown(value: object) -> str:
    """Return a setting for a message; a list of one as its only member, which is how it was given."""
    return repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)


def _absolute(path: str) -> str:
    if "://" in path or path.startswith("pipe:"):
        return path
    return str(Path(path).absolute()) if path else ""


def _version() -> str:
    try:
        return version("dipole")
    except PackageNotFoundError:
        return "not installed"
