"""Launch folders: all that was sent, and what became of it.

launches/20261201-125033-tldr/config.toml     the run's config, as the jobs read it
launches/20261201-125033-tldr/all.toml        the same with what says where it runs; launches again
launches/20261201-125033-tldr/train.sh …      one script a job; each stands alone
launches/20261201-125033-tldr/code.diff       what differed from the commit named in launch.json
launches/20261201-125033-tldr/launch.json     kind, jobs in order, ids once they are submitted
launches/20261201-125033-tldr/logs/           what jobs print
launches/20261201-125033-tldr/train.exit      a job's exit code, once it has come to its end
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T")
Kind = Literal["local", "slurm", "ray"]
_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchedJob:
    """One job of a launch."""

    name: str
    """`train`, `embed`, `index` or `evaluate`."""
    id: str | None = None
    """The cluster's name for it; None until it is submitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A launch folder's own record."""

    folder: Path
    kind: Kind
    created: float
    """Seconds since 1970."""
    run: str
    """The run folder."""
    jobs: tuple[LaunchedJob, ...]
    """In order."""
    code: dict[str, Any]
    """See `snapshot_code`."""
    cancelled: bool = False
    """Whether a person has cancelled it."""

    @property
    def name(self) -> str:
        """What people call it by."""
        return self.folder.name

    def script(self, job: str) -> Path:
        """The script of a job."""
        return self.folder / f"{job}.sh"

    def logs(self, job: str) -> list[Path]:
        """What a job has printed, oldest first: a job that was submitted again has several."""
        found = (self.folder / "logs").glob(f"{job}*.log")
        return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))

    def exit_code(self, job: str) -> int | None:
        """The exit code of a job that has come to its end, as its script wrote it down."""
        path = self.folder / f"{job}.exit"
        text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        return int(text) if text.lstrip("-").isdigit() else None

    def with_id(self, job: str, number: str) -> Launch:
        """Return it with the id of a job that was submitted."""
        return replace(self, jobs=tuple(replace(row, id=number) if row.name == job else row for row in self.jobs))

    def save(self) -> None:
        """Write the record, whole or not at all."""
        row = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_json(self.folder / "launch.json", {"schema_version": _SCHEMA_VERSION, **row})


def read_section(made: Launch, kind: type[_T], section: str) -> _T:
    """Return a section of the config that a launch was made with.

    Raises:
        UserError: it is missing or damaged.
    """
    path = made.folder / "all.toml"
    try:
        return kind(**tomllib.loads(path.read_text(encoding="utf-8")).get(section, {}))
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); launch anew") from None


def new_folder(root: Path, name: str) -> Path:
    """Make an empty launch folder that nobody else has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = root / f"{stamp}-{name}{suffix}"
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}); choose another launch.folder") from None
        return folder
    raise UserError(f"{root} already holds a hundred launches of this second; wait a moment")


def open_launch(folder: Path) -> Launch:
    """Read a launch folder.

    Raises:
        UserError: it is none.
    """
    path = folder / "launch.json"
    if not path.exists():
        raise UserError(f"{folder} is no launch folder; `dipole launch list` shows them")
    row = read_json(path)
    if row.pop("schema_version", None) != _SCHEMA_VERSION:
        raise UserError(f"{path} was written by another dipole; this one reads schema version {_SCHEMA_VERSION}")
    jobs = tuple(LaunchedJob(**job) for job in row.pop("jobs"))
    return Launch(folder=folder.absolute(), jobs=jobs, **row)


def find_launch(wanted: str, root: Path) -> Launch:
    """Find a launch by its folder, its name, the beginning of it, or `last`.

    Raises:
        UserError: there is none, or several begin so.
    """
    if (Path(wanted) / "launch.json").exists():
        return open_launch(Path(wanted))
    names = [launch.name for launch in list_launches(root)]
    if not names:
        raise UserError(f"{root.absolute()} holds no launches; give the launch folder, or --folder where they are")
    if wanted == "last":
        return open_launch(root / names[-1])
    near = [name for name in names if name.startswith(wanted) or re.sub(r"^\d+-\d+-", "", name) == wanted]
    if wanted in near:
        near = [wanted]
    if len(near) != 1:
        said = f"{len(near)} launches match {wanted!r}: {', '.join(near[-5:])}" if near else f"no launch {wanted!r}"
        raise UserError(f"{said}; `dipole launch list` shows them")
    return open_launch(root / near[0])


def list_launches(root: Path) -> list[Launch]:
    """Return all launches, oldest first."""
    return [open_launch(path.parent) for path in sorted(root.glob("*/launch.json"))]
