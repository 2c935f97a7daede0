"""Raw text in, shards out: a dataset is made of whatever files the user has.

Three phases, each in memory that does not grow with the input. Parts of the inputs are made clean one by one, by as
many processes as there are (`parts`); what repeats is found over all of them by sorted hashes (`repeats`);
what stays is written in the inputs' order (`write`). The same inputs and settings give the same bytes, whoever
worked on them; a killed import goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.atomic import atomic_path, fsync_dir
from data_shards.errors import UserError
from data_shards.importing.config import ImportConfig
from data_shards.importing.inputs import Input, resolve
from data_shards.importing.parts import Conversion, Part
from data_shards.importing.plan import (
    Checked,
    RunParts,
    evaluation_hashes,
    hash_of,
    join_quarantine,
    plan_parts,
    serially,
    settings_of,
)
from data_shards.importing.refine import CountTokens
from data_shards.importing.segments import PartRecord, Segment, quarantine_line
from data_shards.importing.work_folder import keep_only, work_folder
from data_shards.importing.write import Drops, conflicts, find_drops, write_samples
from data_shards.manifest import Kind, Manifest
from data_shards.rows import Row
from data_shards.writer import ShardWriter, refuse_occupied

QUARANTINE_NAME = "quarantine.jsonl"

_DATASET = "dataset"

Tick = Callable[[int, int], None]


@contextmanager
def _unseen(label: str) -> Iterator[Tick]:
    yield lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class ImportTools:
    """What the import is lent by the floors above."""

    run_parts: RunParts = serially
    """Spreads the work over processes or machines that share the output's file system."""
    progress: Callable[[str], AbstractContextManager[Tick]] = _unseen
    """Shows a phase, of which so many of so many are done."""
    count_tokens: CountTokens | None = None
    """Counts tokens for chunks and limits; must be hashable, and fit to go to another process."""
    validate: Callable[[Path], None] | None = None
    """Looks at the dataset before it is published; may write into its folder, and raise."""


def import_dataset(
    kind: Kind,
    locations: Sequence[str | Path],
    out: Path,
    config: ImportConfig | None = None,
    tools: ImportTools | None = None,
) -> Manifest:
    """Write a dataset from raw files.

    Pairs: left out and counted are blank queries and passages, a positive that its query had already (in this pair or
    an earlier one), a given negative with the text of a positive of its pair, pairs without a positive. A BEIR folder
    gives one pair a query, with all its positives.

    Corpus: left out and counted are blank passages, and repetitions of a passage under its id. A passage that has no
    id gets one from its content.

    Args:
        kind: what to make.
        locations: files, folders and hub names, read in this order.
        out: must be empty or not there; the folder appears when it is whole.
        config: how.
        tools: who does the work, and who watches.

    Raises:
        UserError: an input is missing or damaged, malformed where that is no case for quarantine, or leaves nothing;
            one id names two passages; `out` holds something already; another import writes it.
    """
    config, tools = config or ImportConfig(), tools or ImportTools()
    if not locations:
        raise UserError("no input was given; name at least one file or folder with --input")
    refuse_occupied(out)
    out = out.resolve()  # `.` has no name of its own, and the work folder would come to lie in it
    with work_folder(out) as work:
        return _Import(kind, locations, config, tools, work).run(out)


class _Import:
    def __init__(
        self, kind: Kind, locations: Sequence[str | Path], config: ImportConfig, tools: ImportTools, work: Path
    ) -> None:
        self._kind: Kind = kind
        self._config, self._tools, self._work = config, tools, work
        self._locations = locations
        self._found = [resolve(place, config.input.split, kind, config.columns) for place in locations]
        self._counts: Counter[str] = Counter()

    def run(self, out: Path) -> Manifest:
        inputs = [one for found in self._found for one in found.inputs]
        files = self._check(inputs)
        extra = evaluation_hashes(self._config.cleaning)
        parts = plan_parts(inputs, files, self._config, self._kind, extra, self._work)
        keep_only(self._work, [*(part.key for part in parts), *(part.join.stem for part in parts if part.join)])
        records = self._convert(parts, extra)
        for file in files.values():
            file.refuse_change()
        segments = [segment for part in parts for segment in records[part.key].segments]
        self._refuse_nothing(segments)
        with self._tools.progress("looking for repetitions") as tick:
            drops = find_drops(segments, self._work, self._config.cleaning)
            tick(len(segments), len(segments))
        quarantine = self._quarantine(parts, records, segments, drops)
        place = self._work / _DATASET / out.name  # by its own name: the report's heading
        manifest = self._write(place, segments, drops, self._made_by(inputs, files, extra))
        if quarantine is not None:
            shutil.move(quarantine, place / QUARANTINE_NAME)
        if self._tools.validate is not None:
            self._tools.validate(place)
        _publish(place, out)
        return manifest

    def _check(self, inputs: Sequence[Input]) -> dict[Path, Checked]:
        """Read all files for their checksums: whether a part is done depends on them."""
        paths = list(dict.fromkeys(path for one in inputs for _, path in one.files))
        checked = {}
        with self._tools.progress("checking inputs") as tick:
            for done, file in enumerate(self._tools.run_parts(Checked.now, paths), 1):
                checked[file.path] = file
                tick(done, len(paths))
        return checked

    def _convert(self, parts: Sequence[Part], evaluation: tuple[str, ...]) -> dict[str, PartRecord]:
        conversion = Conversion(
            work=self._work,
            kind=self._kind,
            cleaning=self._config.cleaning,
            on_error=self._config.input.on_error,
            evaluation=evaluation,
            count_tokens=self._tools.count_tokens,
        )
        # Equal parts, of a file that is given twice, are done once.
        jobs = list({part.key: part for part in parts}.values())
        records = {}
        with self._tools.progress("reading and cleaning parts") as tick:
            for done, record in enumerate(self._tools.run_parts(conversion, jobs), 1):
                records[record.key] = record
                tick(done, len(jobs))
        for part in parts:
            self._counts.update(records[part.key].counts)
        return records

    def _quarantine(
        self, parts: Sequence[Part], records: dict[str, PartRecord], segments: Sequence[Segment], drops: Drops
    ) -> Path | None:
        """Collect the malformed rows of all parts in one file; None where there is none."""
        path = self._work / QUARANTINE_NAME
        names = [name for part in parts if (name := records[part.key].quarantine) is not None]
        joins = {part.join: part for part in parts if part.join is not None}
        with atomic_path(path) as temporary, open(temporary, "wb") as out:
            for source in (*map(join_quarantine, joins), *(self._work / name for name in names)):
                with open(source, "rb") as lines:
                    shutil.copyfileobj(lines, out)
            for join in joins:
                self._counts["quarantined"] += join_quarantine(join).read_bytes().count(b"\n")
            if self._kind == "corpus":
                self._set_conflicts_aside(segments, drops, out.write)
        return path if path.stat().st_size else None

    def _set_conflicts_aside(
        self, segments: Sequence[Segment], drops: Drops, write: Callable[[bytes], object]
    ) -> None:
        for source, passage in conflicts(segments, self._work, drops):
            if self._config.input.on_error == "error":
                raise UserError(f"{source}: two different passages have the id {passage.id!r}; ids must be unique")
            self._counts["quarantined"] += 1
            row = Row(passage.to_dict(), Path(source), 0, "line")
            write(quarantine_line(source, row, f"the id {passage.id!r} names another passage before"))

    def _refuse_nothing(self, segments: Sequence[Segment]) -> None:
        if segments:
            return
        keep_only(self._work, [])
        counts = ", ".join(f"{name} {count}" for name, count in sorted((+self._counts).items()))
        names = ", ".join(map(str, self._locations))
        if not counts:
            raise UserError(f"{names}: no rows were found; wanted one at least, check the input")
        raise UserError(f"nothing is left of {names} ({counts}); check the input")

    def _write(self, place: Path, segments: Sequence[Segment], drops: Drops, made_by: dict[str, Any]) -> Manifest:
        output = self._config.output
        shutil.rmtree(place.parent, ignore_errors=True)  # of an earlier try that was stopped behind this point
        writer = ShardWriter(
            place,
            self._kind,
            samples_per_shard=output.samples_per_shard,
            max_bytes=output.max_shard_mib << 20,
            source=output.source or _joined(found.source for found in self._found),
            licence=output.licence,
            weight=output.weight,
        )
        with self._tools.progress("writing shards") as tick, writer:
            write_samples(writer, segments, self._work, drops, self._counts, tick)
            writer.report = dict(sorted((+self._counts).items()))
            writer.made_by = made_by
        assert writer.manifest is not None
        return writer.manifest

    def _made_by(self, inputs: Sequence[Input], files: dict[Path, Checked], extra: Any) -> dict[str, Any]:
        read = [(name, files[path].sha256) for one in inputs for name, path in one.files]
        settings = settings_of(self._config)
        version = self._config.output.source_version or _joined(found.version for found in self._found)
        return {
            "inputs": [{"name": name, "sha256": checksum} for name, checksum in dict.fromkeys(read)],
            "inputs_hash": hash_of(read),
            "settings": settings,
            "settings_hash": hash_of([settings, extra]),
            "source_version": version,
        }


def _joined(names: Iterator[str]) -> str:
    return ", ".join(name for name in dict.fromkeys(names) if name)


def _publish(place: Path, out: Path) -> None:
    refuse_occupied(out)
    if out.exists():
        out.rmdir()
    fsync_dir(place)
    os.rename(place, out)
    fsync_dir(out.parent)
