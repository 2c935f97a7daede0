"""What a user may name as input, and the files that it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_shards.atomic import read_json
from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from data_shards.importing.columns import Columns
from data_shards.manifest import MANIFEST_NAME, Kind, Manifest

FileKind = Literal["jsonl", "tsv", "csv", "parquet", "arrow", "tar", "beir"]

_HUB = "hf:"
_ENDINGS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
}
_PACKED = ("jsonl", "tsv", "csv")  # what may also be .gz
_WANTED = ".jsonl, .tsv, .csv (or these .gz), .parquet, .tar, a folder, or hf:OWNER/NAME"
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "eval")
_BEIR_COLUMNS = Columns(id="_id", text="text")


@dataclass(frozen=True, kw_only=True)
class Input:
    """Rows from one file; of a BEIR folder's pairs, from three that are joined."""

    kind: FileKind
    path: Path
    """The file; of a BEIR folder's pairs the folder."""
    files: tuple[tuple[str, Path], ...]
    """(name for the manifest, path) of all that is read."""
    source: str
    """Name of the dataset."""
    columns: Columns
    """Of its rows."""

    @property
    def name(self) -> str:
        """The file's name in manifests and quarantine files; it holds no folder of this machine."""
        return self.files[0][0]

    @property
    def is_packed(self) -> bool:
        """Whether it is a gzip file, which can only be read from its beginning."""
        return self.path.suffix.lower() == ".gz"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """All that one location stands for."""

    inputs: list[Input]
    source: str
    version: str = ""
    """Of the source, where it says so itself."""


def resolve(location: str | Path, split: str, kind: Kind, columns: Columns) -> Resolved:
    """Find the files of a location.

    Args:
        location: a file, a folder (BEIR, our own shards, made by `save_to_disk`, or of data files) or a hub name.
        split: which part of what has several.
        kind: what is wanted of it.
        columns: of the user's files; BEIR folders and our own shards have names of their own.

    Raises:
        UserError: it is missing, of no known kind, or lacks the split.
    """
    if str(location).startswith(_HUB):
        from data_shards.importing.hub import hub_dataset

        found = hub_dataset(str(location).removeprefix(_HUB), split)
        files = [(f"{found.name}@{found.version}/{path.name}", path) for path in found.files]
        return Resolved(inputs=_inputs("arrow", files, found.name, columns), source=found.name, version=found.version)
    path = Path(location)
    source = source_name(path)
    if not path.exists():
        raise UserError(f"input {path} does not exist")
    if not path.is_dir():
        inputs = _inputs(_kind_of(path), [(path.name, path)], source, columns)
    elif BeirFolder.is_one(path):
        inputs = _beir(BeirFolder(path), split, kind, source)
    elif (path / MANIFEST_NAME).is_file():
        shards = [path / entry.path for entry in Manifest.load(path, kind).shards]
        inputs = _inputs("tar", _named(shards, path), source, Columns())
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        inputs = _inputs("arrow", _named(_saved_files(path, split), path), source, columns)
    else:
        inputs = [one for part in _data_files(path, split) for one in _inputs(*_part_of(part, path), source, columns)]
    return Resolved(inputs=inputs, source=source)


def source_name(path: Path) -> str:
    """Return a dataset's name: the file's or folder's, without its endings."""
    endings = "|".join(ending.removeprefix(".") for ending in _ENDINGS)
    return re.sub(rf"(\.({endings}))?(\.gz)?$", "", path.resolve().name, flags=re.IGNORECASE)


def _part_of(path: Path, folder: Path) -> tuple[FileKind, list[tuple[str, Path]]]:
    """Return a file's kind and its name within the folder that was given."""
    return _kind_of(path), _named([path], folder)


def _inputs(kind: FileKind, files: Iterable[tuple[str, Path]], source: str, columns: Columns) -> list[Input]:
    return [Input(kind=kind, path=file[1], files=(file,), source=source, columns=columns) for file in files]


def _named(paths: Iterable[Path], folder: Path) -> list[tuple[str, Path]]:
    top = folder.resolve().name
    return [(f"{top}/{path.relative_to(folder).as_posix()}", path) for path in paths]


def _kind_of(path: Path) -> FileKind:
    packed = path.suffix.lower() == ".gz"
    kind = _ENDINGS.get(Path(path.stem if packed else path.name).suffix.lower())
    if kind is None or (packed and kind not in _PACKED):
        raise UserError(f"input {path} is of no known kind; wanted {_WANTED}")
    return kind


def _beir(beir: BeirFolder, split: str, kind: Kind, source: str) -> list[Input]:
    corpus, queries = _named(beir.files, beir.folder)
    if kind == "corpus":
        return _inputs("jsonl", [corpus], source, _BEIR_COLUMNS)
    qrels = _named([beir.qrels_path(split)], beir.folder)[0]
    return [Input(kind="beir", path=beir.folder, files=(corpus, queries, qrels), source=source, columns=Columns())]


def _saved_files(folder: Path, split: str) -> list[Path]:
    """Return what `save_to_disk` wrote: Arrow streams, named in `state.json`; several splits have a folder each."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits", [])
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}; there are: {', '.join(map(str, splits))}")
        folder = folder / split
    return [folder / Path(str(part["filename"])).name for part in read_json(folder / "state.json")["_data_files"]]


def _data_files(folder: Path, split: str) -> list[Path]:
    """Return a folder's data files whose names hold the split; where no name holds any split, all are `train`."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_data(path, folder)]
    if not found:
        raise UserError(f"input folder {folder} holds no data; wanted a BEIR folder, shards, or files: {_WANTED}")
    named = {path: _splits_in(path.relative_to(folder), (*_SPLITS, split)) for path in found}
    chosen = [path for path in found if split in named[path]]
    if not chosen and split == "train" and not any(named.values()):
        chosen = found
    if not chosen:
        there = sorted({name for names in named.values() for name in names}) or ["train, as no file names a split"]
        raise UserError(f"{folder} has no split {split!r}; there are: {', '.join(there)}")
    return chosen


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    bare = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return not hidden and bare.suffix.lower() in _ENDINGS


def _splits_in(path: Path, splits: Iterable[str]) -> set[str]:
    """Return the splits that a path names as words of their own: `data/train-00000-of-00002.parquet`."""
    return {name for name in splits if re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", path.as_posix().lower())}
