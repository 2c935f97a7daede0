"""What a launch does, job by job, as `dipole` commands on absolute paths."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UserError
from data_shards.remote.transfer import without_secrets
from launch.clusters.sections import JobName
from launch.config import JobConfig
from train.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One command, and what it needs."""

    name: JobName
    words: tuple[str, ...]
    """The command; paths in it are absolute."""
    done: Path | None
    """There when nothing is left to do."""
    nodes: int
    """Machines."""
    on_devices: bool
    """Whether it uses GPUs where there are any."""


def jobs_of(config: JobConfig, run_config: Path) -> list[Job]:
    """Return the jobs that `launch.jobs` names, in order.

    Args:
        config: of the launch; its paths are absolute, see `absolute`.
        run_config: where the run's own config is going to be.

    Raises:
        UserError: a job lacks what it works on.
    """
    run = RunFolder(Path(config.run.out))
    model = config.embed.model or str(run.final)
    vectors = config.embed.out or str(run.root / "embeddings")
    found = []
    for name in config.launch.jobs:
        if name == "train":
            job = _job(name, "train", str(run_config), done=run.done, nodes=config.run.nodes, on_devices=True)
        elif name == "embed":
            corpus = _needed(config.embed.corpus or config.data.corpus, "embed", "embed.corpus or data.corpus")
            words = ["embed", "--model", model, "--corpus", corpus, "--out", vectors]
            words += ["--workers", str(config.embed.workers)]
            words += ["--ray-address", config.embed.ray_address] if config.embed.ray_address else []
            job = _job(name, *words, on_devices=True)
        elif name == "index":
            words = ["--factory", config.index.factory, "--wanted-recall", str(config.index.wanted_recall)]
            job = _job(
                name, "index", "build", "--embeddings", vectors, "--out", str(Path(vectors).parent / "index"), *words
            )
        else:
            data = _needed(config.evaluate.data or config.dev.data, "evaluate", "evaluate.data or dev.data")
            job = _job(name, "evaluate", "--model", model, "--data", data, "--split", config.evaluate.split, "--json")
        found.append(job)
    return found


def absolute(config: JobConfig) -> JobConfig:
    """Return the config with all its local paths absolute: jobs run elsewhere.

    Raises:
        UserError: an address carries a key or a signature, which would end up in the launch folder.
    """
    for key, places in {"data.pairs": config.data.pairs, "data.corpus": (config.data.corpus,)}.items():
        if any(without_secrets(place) != place for place in places):
            raise UserError(
                f"{key} holds an address with a password or signature in it, which would be written into the launch "
                "folder; name the object by its plain address and give keys by launch.secrets_file"
            )
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, out=_absolute(config.run.out)),
        data=dataclasses.replace(
            config.data, pairs=tuple(map(_absolute, config.data.pairs)), corpus=_absolute(config.data.corpus)
        ),
        dev=dataclasses.replace(config.dev, data=_absolute(config.dev.data)),
        encoder=dataclasses.replace(config.encoder, model=_absolute_if_there(config.encoder.model)),
        embed=dataclasses.replace(
            config.embed,
            model=_absolute(config.embed.model),
            corpus=_absolute(config.embed.corpus),
            out=_absolute(config.embed.out),
        ),
        evaluate=dataclasses.replace(config.evaluate, data=_absolute(config.evaluate.data)),
    )


def check_here(config: JobConfig) -> None:
    """Refuse at once what would fail hours later, in the queue's own time.

    Raises:
        UserError: data or a model that no job of this launch makes is not there.
    """
    wanted = {"data.corpus": config.data.corpus, "dev.data": config.dev.data, "evaluate.data": config.evaluate.data}
    if "train" in config.launch.jobs:
        if not config.data.pairs:
            raise UserError("data.pairs is not set; give a folder made by `dipole shards pairs`")
        wanted |= {f"data.pairs[{number}]": place for number, place in enumerate(config.data.pairs)}
    elif config.launch.jobs[0] in ("embed", "evaluate"):
        wanted["embed.model"] = config.embed.model or str(RunFolder(Path(config.run.out)).final)
    elif "embed" not in config.launch.jobs:
        wanted["embed.out"] = config.embed.out or str(Path(config.run.out) / "embeddings")
    for key, place in wanted.items():
        if place and "://" not in place and not Path(place).exists():
            raise UserError(f"{key} is {place}, which does not exist here; nothing was launched")


def _job(name: JobName, *words: str, done: Path | None = None, nodes: int = 1, on_devices: bool = False) -> Job:
    return Job(name=name, words=("dipole", *words), done=done, nodes=nodes, on_devices=on_devices)


def _needed(value: str, job: str, keys: str) -> str:
    if not value:
        raise UserError(f"job {job} needs {keys}; set it, or leave {job} out of launch.jobs")
    return value


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().absolute()) if place and "://" not in place else place


def _absolute_if_there(model: str) -> str:
    """Return a folder's absolute path; a hub name stays one."""
    return _absolute(model) if model and Path(model).exists() else model
