"""Which parts an import has: a function of inputs and settings alone, so that a killed one finds its parts again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from data_shards.atomic import atomic_path, fsync_dir, sha256_file
from data_shards.beir import BeirFolder, folder_and_split
from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.importing.beir_join import build_join, count_queries
from data_shards.importing.columnar_rows import parquet_borders
from data_shards.importing.config import ImportConfig, OnError
from data_shards.importing.inputs import Input
from data_shards.importing.parts import Part
from data_shards.importing.segments import quarantine_line
from data_shards.manifest import Kind
from data_shards.rows import Row, line_borders
from data_shards.writer import dipole_version

_FORMAT = 1  # of the files in the work folder
_QUERIES_PER_PART = 1 << 14

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")

RunParts = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Calls a function, which can go to another process, for each item; yields the results in any order."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A file as it was when the import began."""

    path: Path
    sha256: str
    bytes: int
    changed_ns: int

    @classmethod
    def now(cls, path: Path) -> Checked:
        """Read a file for its checksum.

        Raises:
            UserError: it is missing.
        """
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        status = path.stat()
        return cls(path=path, sha256=sha256_file(path), bytes=status.st_size, changed_ns=status.st_mtime_ns)

    def refuse_change(self) -> None:
        """Raise UserError where the file has changed since."""
        status = self.path.stat() if self.path.exists() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (self.bytes, self.changed_ns):
            raise UserError(f"{self.path} was changed while it was imported; run again when it is at rest")


def serially(job: Callable[[_Job], _Done], items: Sequence[_Job]) -> Iterator[_Done]:
    """Call a function for each item, here and one after the other: the plainest `RunParts`."""
    return map(job, items)


def settings_of(config: ImportConfig) -> dict[str, Any]:
    """Return what the samples depend on, for the manifest: without folders of this machine, and without defaults."""
    cleaning = asdict(config.cleaning)
    cleaning["decontaminate"] = [place.rpartition("/")[2] for place in config.cleaning.decontaminate]
    cleaning["tokenizer"] = Path(config.cleaning.tokenizer).name
    output = asdict(config.output)
    columns = {name: column for name, column in asdict(config.columns).items() if column}
    return {
        "split": config.input.split,
        "on_error": config.input.on_error,
        "columns": columns,
        "cleaning": json.loads(json.dumps(cleaning)),
        "samples_per_shard": output["samples_per_shard"],
        "max_shard_mib": output["max_shard_mib"],
    }


def hash_of(value: Any) -> str:
    """Return the hex SHA-256 of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def evaluation_hashes(cleaning: CleaningConfig) -> tuple[str, ...]:
    """Return the checksums of the files that cleaning compares with or counts tokens by: samples depend on them."""
    found: list[Path] = []
    for place in cleaning.decontaminate:
        path = Path(place)
        if path.is_file():
            found.append(path)
        else:
            folder, split = folder_and_split(place)
            if Path(folder).is_dir():  # if not, the cleaner says what is wrong
                beir = BeirFolder(folder)
                found += [*beir.files, beir.qrels_path(split)]
    if cleaning.tokenizer:
        found += sorted(Path(cleaning.tokenizer).glob("tokenizer*.json"))
    return tuple(map(sha256_file, found))


def plan_parts(
    inputs: Sequence[Input], files: Mapping[Path, Checked], config: ImportConfig, kind: Kind, extra: Any, work: Path
) -> list[Part]:
    """Cut the inputs into parts; the pairs of BEIR folders are joined on the way, unless that is done.

    Args:
        inputs: in order.
        files: all of theirs.
        config: the settings.
        kind: of the samples.
        extra: what else the samples depend on, such as the checksums of evaluation data.
        work: where joins are kept.

    Raises:
        UserError: an input is damaged.
    """
    settings = [_FORMAT, dipole_version(), kind, config.input.on_error, config.cleaning.settings_hash(), extra]
    parts = []
    for source in inputs:
        checksums = [files[path].sha256 for _, path in source.files]
        names = [name for name, _ in source.files]
        whole = [settings, checksums, names, source.kind, source.source, asdict(source.columns)]
        join = None
        if source.kind == "beir":
            join = work / f"{hash_of(whole)[:32]}.sqlite"
            _join(source, join, config.input.on_error)
        for begin, end in _pieces(source, config.input.part_mib << 20, join):
            key = hash_of([*whole, begin, end])[:32]
            parts.append(Part(key=key, input=source, begin=begin, end=end, join=join))
    return parts


def _pieces(source: Input, part_bytes: int, join: Path | None) -> list[tuple[int, int | None]]:
    if join is not None:
        queries = count_queries(join)
        borders = [*range(0, queries, _QUERIES_PER_PART), queries]
    elif source.kind == "parquet":
        borders = parquet_borders(source.path, part_bytes)
    elif source.kind in ("jsonl", "tsv") and not source.is_packed:
        borders = line_borders(source.path, part_bytes)
    else:
        return [(0, None)]
    return list(pairwise(borders))


def _join(source: Input, join: Path, on_error: OnError) -> None:
    """Join a BEIR folder; its malformed rows stop that, or go to a quarantine file beside the join."""
    if join.is_file():
        return
    corpus, queries, qrels = (path for _, path in source.files)
    names = {path: name for name, path in source.files}
    unchecked = join.with_suffix(".unchecked")
    with atomic_path(join_quarantine(join)) as temporary, open(temporary, "wb") as file:

        def on_bad_row(row: Row, problem: str) -> None:
            if on_error == "error":
                raise row.error(problem)
            file.write(quarantine_line(names[row.path], row, problem))

        build_join(corpus, queries, qrels, unchecked, on_bad_row)
    os.replace(unchecked, join)  # only now: where the join is, its quarantine file is too
    fsync_dir(join.parent)


def join_quarantine(join: Path) -> Path:
    """Return the place of the malformed rows that were met while joining."""
    return join.with_suffix(".quarantine.jsonl")
