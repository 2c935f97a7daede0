"""A config of sections: a TOML file, `--section.field=value` on top, checked key by key.

Works for any dataclass whose fields are dataclasses of plain values and tuples of such.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import sys
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
import tyro

from data_shards.errors import UserError
from launch.parsing import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T")


def load_sections(kind: type[_T], path: Path | None, overrides: Sequence[str] = ()) -> _T:
    """Read a TOML file and put `--section.field=value` on top of it.

    A tuple is given as `--section.field=a,b` or `--section.field=[a, b]`.

    Raises:
        UserError: the file is missing or no TOML, a key does not exist (the nearest one is suggested), or a value
            does not fit.
    """
    keys = _Keys(kind)
    given = _from_toml(path, keys) if path else {}
    given |= _from_overrides(overrides, keys)
    arguments = [f"--{key}={value}" for key, values in given.items() for value in values]
    # One argument a value, so that values may hold anything; tyro appends them to the default, which has to go.
    config = (tyro.conf.FlagConversionOff, tyro.conf.UseAppendAction)
    return parse(kind, arguments, prog="config", config=config, default=_without(kind(), keys.tuples & given.keys()))


def to_toml(config: Any) -> str:
    """Return the whole config, defaults written out; fields that are None are left out."""
    sections = {
        section: {name: value for name, value in fields.items() if value is not None}
        for section, fields in asdict(config).items()
    }
    return tomli_w.dumps(sections)


class _Keys:
    """The keys of a config, `section.field`, and which of them hold several values."""

    def __init__(self, kind: type) -> None:
        self.names: list[str] = []
        self.tuples: set[str] = set()
        for section, owner in typing.get_type_hints(kind).items():
            kinds = typing.get_type_hints(owner)
            for item in dataclasses.fields(owner):
                self.names.append(f"{section}.{item.name}")
                if typing.get_origin(kinds[item.name]) is tuple:
                    self.tuples.add(self.names[-1])

    def check(self, key: str, where: str) -> None:
        if key not in self.names:
            raise UserError(f"{where}: there is no key {key}; {self.suggest(key)}")

    def suggest(self, key: str) -> str:
        """Name the nearest keys: by spelling, else those of the same name in another section."""
        near = difflib.get_close_matches(key, self.names, n=1, cutoff=0.75)
        near = near or [k for k in self.names if k.split(".")[-1] == key.split(".")[-1]][:2]
        near = near or difflib.get_close_matches(key, self.names, n=1, cutoff=0.5)
        if near:
            return f"did you mean {' or '.join(near)}?"
        return f"sections are {', '.join(dict.fromkeys(k.split('.')[0] for k in self.names))}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist; configs/ holds commented examples") from None
    except IsADirectoryError:
        raise UserError(f"config {path} is a folder; give the TOML file, such as {path / 'config.toml'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid TOML: {error}") from None


def _from_toml(path: Path, keys: _Keys) -> dict[str, list[Any]]:
    """Return each key's value, or values, checked to be a key."""
    given = {}
    for section, fields in _read_toml(path).items():
        if not isinstance(fields, dict):
            raise UserError(f"config {path}: {section} stands outside of a [section]; {keys.suggest(section)}")
        for name, value in fields.items():
            key = f"{section}.{name}"
            keys.check(key, f"config {path}")
            given[key] = value if key in keys.tuples and isinstance(value, list) else [value]
    return given


def _from_overrides(overrides: Sequence[str], keys: _Keys) -> dict[str, list[Any]]:
    given = {}
    for argument in overrides:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise UserError(f"cannot read {argument!r}; overrides have the form --section.field=value")
        key = name.replace("-", "_")
        keys.check(key, "argument")
        given[key] = _listed(value) if key in keys.tuples else [_capital_truth(value)]
    return given


def _without(config: _T, keys: Iterable[str]) -> _T:
    """Empty some tuples of a config, unchecked: an empty one may be a mistake, but it will not stay empty."""
    for key in sorted(keys):
        section, _, name = key.partition(".")
        emptied = copy.copy(getattr(config, section))
        object.__setattr__(emptied, name, ())
        config = dataclasses.replace(config, **{section: emptied})  # type: ignore[type-var]
    return config


def _listed(value: str) -> list[str]:
    """Read several values as TOML writes them, or parted by commas where the shell took the quotes away."""
    try:
        found = tomllib.loads(f"x = {value}")["x"]
        if isinstance(found, list):
            return [str(item) for item in found]
    except tomllib.TOMLDecodeError:
        pass
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [item.strip() for item in bare.split(",") if item.strip()]


def _capital_truth(value: str) -> str:
    """Let booleans be written as TOML writes them."""
    return value.capitalize() if value in ("true", "false") else value
