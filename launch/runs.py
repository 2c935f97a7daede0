"""Makes a run folder ready, so that every rank and the miner need only its path."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import secrets
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_shards.atomic import atomic_path, read_json, write_json
from data_shards.errors import UserError
from data_shards.order import check_batch_divides
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.remote.transfer import without_secrets
from encoder.lora import add_lora
from encoder.masked_lm import new_head, save_head
from encoder.model import Encoder, EncoderSettings, scratch_encoder, with_settings
from encoder.snapshot import load_encoder, save_snapshot
from launch.beginnings import claim, clear_abandoned, is_abandoned, release
from launch.config import RunConfig, load_config, to_toml
from train.boards import check_tensorboard
from train.dev import DevSet
from train.engine import check_encoder, check_engine
from train.job import TrainJob
from train.run_folder import RunFolder

_TOKENIZER_PASSAGES = 200_000
"""A WordPiece vocabulary of tens of thousands is settled long before."""
_MAY_CHANGE = {
    "run.ranks",
    "run.nodes",
    "workers",
    "tracker",
    "cache",
    "health",
    "stop",
    "watchdog",
    "data.on_error",
    "engine",
    "refresh.timeout_s",
    "refresh.give_back",
    "refresh.keep_versions",
    "refresh.miner_restarts",
    "refresh.max_age_steps",
    "train.gradient_cache",
    "train.activations_gib",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.asynchronous_checkpoints",
    "batch.prefetch_steps",
    "optimizer.learning_rate",
    "loss.block_scores",
}
"""What a resumed run may have other than the run that it continues: none of it changes what is learnt, but for the
learning rate, which is what one lowers after a divergence."""


def prepare_run(config: RunConfig, *, resume: bool) -> RunFolder:
    """Check everything that a person can get wrong, then make the run folder, or find the one to resume.

    Raises:
        UserError: data or model is missing or does not fit, or the folder holds another run.
    """
    run = RunFolder(Path(config.run.out).absolute())
    check_batch_divides(config.batch.batch_size, config.run.ranks * config.batch.accumulation)
    check_engine(config.engine, config.optimizer, ranks=config.run.ranks_per_node)
    if config.adapt.on and not run.adapted.exists():
        config.adapt.check_divides(config.run.ranks)
    _check_together(config)
    if run.identity.exists():
        _check_resume(run, config, resume)
        return run
    if run.root.exists() and not run.root.is_dir():
        raise UserError(f"{run.root} is a file, wanted a folder for the run; choose another run.out")
    abandoned = is_abandoned(run)
    if not abandoned and run.root.exists() and any(run.root.iterdir()):
        raise UserError(f"{run.root} is not empty and holds no run; choose another run.out")
    if resume and not abandoned:
        raise UserError(f"{run.root} holds no run to resume; leave --resume out to start one")
    pairs, corpus = _check_data(config)
    encoder = build_encoder(config, corpus)
    check_encoder(encoder, config.engine)
    if config.lora.rank:
        add_lora(copy.deepcopy(encoder), config.lora)  # for what it refuses; ranks add adapters themselves
    head = new_head(encoder, seed=config.run.seed) if config.adapt.on else None
    if abandoned:
        clear_abandoned(run)
    claim(run)
    run.logs.mkdir(exist_ok=True)
    if head is not None:
        run.adapt_head.parent.mkdir()
        save_head(head, encoder, run.adapt_head)
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
    release(run)
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
        corpus=config.data.corpus,
        ray_address=config.workers.address,
        start=run.adapted if config.adapt.on else run.initial,
        order=config.order,
        seed=config.run.seed,
        run_id=read_json(run.identity)["run_id"],
        train=config.train,
        batch=config.batch,
        adapt=config.adapt,
        loss=config.loss,
        optimizer=config.optimizer,
        engine=config.engine,
        lora=config.lora,
        refresh=config.refresh,
        dev=config.dev,
        health=config.health,
        stop=config.stop,
        watchdog=config.watchdog,
        tracker=config.tracker,
        resolved=_for_boards(config),
    )


def _for_boards(config: RunConfig) -> dict[str, Any]:
    """Return the whole config as others may see it: passwords and signatures in URLs stay in the run folder."""
    pairs = tuple(map(without_secrets, config.data.pairs))
    data = dataclasses.replace(config.data, pairs=pairs, corpus=without_secrets(config.data.corpus))
    return dataclasses.asdict(dataclasses.replace(config, data=data))


def build_encoder(config: RunConfig, corpus: CorpusDataset | None) -> Encoder:
    """Load the model that the config names, or build one from scratch with a tokenizer trained on the corpus."""
    if config.encoder.model:
        encoder = load_encoder(config.encoder.model)
        encoder = with_settings(encoder, config.encoder.settings(encoder.settings))
    elif corpus is None:
        raise UserError("set encoder.model, or data.corpus to train a tokenizer on for an encoder from scratch")
    else:
        texts = (passage.content for passage in itertools.islice(corpus, _TOKENIZER_PASSAGES))
        settings = config.encoder.settings(EncoderSettings())
        encoder = scratch_encoder(config.scratch, settings, texts, seed=config.run.seed)
    if not (dims := config.loss.matryoshka_dims):
        return encoder
    config.loss.sizes(encoder.dim)  # refuses what the vectors lack
    return with_settings(encoder, dataclasses.replace(encoder.settings, matryoshka_dims=tuple(sorted(dims))))


def _check_together(config: RunConfig) -> None:
    """Refuse settings of different sections that contradict each other."""
    if config.tracker.tensorboard:
        check_tensorboard()
    if config.loss.distill != "off" and config.refresh.on and not config.mining.teacher:
        raise UserError(
            "loss.distill compares with a teacher's scores, and mined negatives have none; set mining.teacher, or "
            "turn refreshes off"
        )
    if config.loss.distill != "off" and config.batch.hard_negatives == 0 and config.batch.positives == 1:
        raise UserError("loss.distill compares a query's own passages; set batch.hard_negatives to 1 or more")


def _check_data(config: RunConfig) -> tuple[PairDataset, CorpusDataset | None]:
    if not config.data.pairs:
        raise UserError("data.pairs is not set; give a folder made by `dipole shards pairs`")
    pairs = config.pair_source.open(RunFolder(Path(config.run.out)).quarantine("start"))
    corpus = CorpusDataset(config.data.corpus, cache=config.cache) if config.data.corpus else None
    if config.refresh.on and corpus is None:
        raise UserError("[refresh] asks for mining, which needs data.corpus; set it, or turn refreshes off")
    if config.adapt.on and corpus is None:
        raise UserError("adapt trains on the corpus and data.corpus is not set; set it, or turn adapt off")
    if config.loss.distill != "off" and pairs.with_teacher is not None and pairs.with_teacher < len(pairs):
        raise UserError(
            f"loss.distill needs a teacher's score for every passage, and {len(pairs) - pairs.with_teacher} of "
            f'{len(pairs)} pairs have none; import the pairs with teacher scores, or set loss.distill = "off"'
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
    return without_secrets(repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value))


def _absolute(path: str) -> str:
    if "://" in path or path.startswith("pipe:"):
        return path
    return str(Path(path).absolute()) if path else ""


def _version() -> str:
    try:
        return version("dipole")
    except PackageNotFoundError:
        return "not installed"
