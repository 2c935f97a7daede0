"""The one config of a run: a TOML file, `--section.field=value` on top, checked key by key.

Each section is the dataclass of the room that it configures; only this file puts them together.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w
import tyro

from data_shards.errors import UserError
from encoder.model import EncoderSettings, ScratchConfig
from index_build.index import IndexConfig
from index_build.mine import MiningConfig
from launch.parsing import parse
from train.batches import BatchConfig
from train.dev import DevConfig
from train.engine import EngineConfig
from train.loop import TrainConfig
from train.loss import LossConfig
from train.refresh import RefreshConfig
from train.schedule import OptimizerConfig
from train.tracker import TrackerConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """The run itself."""

    out: str = "runs/run"
    """The run folder."""
    seed: int = 0
    """Of the initial weights, the global order and dropout."""
    ranks: int = 1
    """Training processes on this machine."""

    def __post_init__(self) -> None:
        """Check the ranks."""
        if self.ranks < 1:
            raise UserError(f"run.ranks must be at least 1, came {self.ranks}")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What is trained on and mined from."""

    pairs: str = ""
    """Folder of training shards, made by `dipole shards pairs`."""
    corpus: str = ""
    """Folder of corpus shards, made by `dipole shards corpus`; needed for mining and for a tokenizer from scratch."""


@dataclass(frozen=True, kw_only=True)
class EncoderSection:
    """Where the encoder comes from. What is left out stays as the model has it."""

    model: str = ""
    """A sentence-transformers or transformers folder, or a hub name; empty builds one by [scratch]."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """How token vectors become one."""
    max_tokens: int | None = None
    """Texts are cut to this."""
    query_prompt: str | None = None
    """Put before each query."""
    passage_prompt: str | None = None
    """Put before each passage."""

    def settings(self, base: EncoderSettings) -> EncoderSettings:
        """Return the settings with what is given here in place of the model's own."""
        given = {name: value for name, value in asdict(self).items() if name != "model" and value is not None}
        return dataclasses.replace(base, **given)


@dataclass(frozen=True, kw_only=True)
class WorkersSection:
    """Ray workers that embed the corpus for a refresh."""

    count: int = 1
    """Workers."""
    threads: int = 1
    """CPU threads of each."""
    address: str = ""
    """An existing Ray cluster; empty starts one on this machine for the run."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(self.count, self.threads) < 1:
            raise UserError("workers.count and workers.threads must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made from."""

    run: RunSection = field(default_factory=RunSection)
    data: DataSection = field(default_factory=DataSection)
    encoder: EncoderSection = field(default_factory=EncoderSection)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    dev: DevConfig = field(default_factory=DevConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    workers: WorkersSection = field(default_factory=WorkersSection)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and put `--section.field=value` on top of it.

    Raises:
        UserError: the file is missing or no TOML, a key does not exist (the nearest one is suggested), or a value
            does not fit.
    """
    arguments = [*(_flatten(_read_toml(path), path) if path else []), *_check_overrides(overrides)]
    return parse(RunConfig, arguments, prog="config", config=(tyro.conf.FlagConversionOff,))


def to_toml(config: RunConfig) -> str:
    """Return the whole config, defaults written out; fields that are None are left out."""
    sections = {
        section: {name: value for name, value in fields.items() if value is not None}
        for section, fields in asdict(config).items()
    }
    return tomli_w.dumps(sections)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist; configs/ holds commented examples") from None
    except IsADirectoryError:
        raise UserError(f"config {path} is a folder; give the TOML file, such as {path / 'config.toml'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid TOML: {error}") from None


def _flatten(table: dict[str, Any], path: Path) -> list[str]:
    """Turn TOML tables into `--section.field=value` arguments, each key checked."""
    arguments = []
    for section, fields in table.items():
        if not isinstance(fields, dict):
            raise UserError(f"config {path}: {section} stands outside of a [section]; {_suggest(section)}")
        for name, value in fields.items():
            _check_key(f"{section}.{name}", f"config {path}")
            arguments.append(f"--{section}.{name}={value}")
    return arguments


def _check_overrides(overrides: Sequence[str]) -> list[str]:
    for argument in overrides:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise UserError(f"cannot read {argument!r}; overrides have the form --section.field=value")
        _check_key(key.replace("-", "_"), "argument")
    return [_capital_truth(argument) for argument in overrides]


def _capital_truth(argument: str) -> str:
    """Let booleans be written as TOML writes them."""
    key, _, value = argument.partition("=")
    return f"{key}={value.capitalize()}" if value in ("true", "false") else argument


def _check_key(key: str, where: str) -> None:
    if key not in _known_keys():
        raise UserError(f"{where}: there is no key {key}; {_suggest(key)}")


def _known_keys() -> list[str]:
    sections = typing.get_type_hints(RunConfig)
    return [f"{section}.{item.name}" for section, kind in sections.items() for item in dataclasses.fields(kind)]


def _suggest(key: str) -> str:
    """Name the nearest keys: by spelling, else those of the same name in another section."""
    known = _known_keys()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    near = near or [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:2]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"sections are {', '.join(dict.fromkeys(k.split('.')[0] for k in known))}"
