"""The unit of an import's work: a part of one input, made clean on its own, by any process on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_shards.cleaning.config import CleaningConfig
from data_shards.importing.beir_join import joined_rows
from data_shards.importing.columnar_rows import arrow_rows, parquet_rows
from data_shards.importing.columns import pair_of, passage_of
from data_shards.importing.config import OnError
from data_shards.importing.inputs import Input
from data_shards.importing.refine import CountTokens, refiner
from data_shards.importing.segments import PartRecord, SegmentWriter, finished_part
from data_shards.importing.tar_rows import tar_rows
from data_shards.manifest import Kind
from data_shards.rows import Row, RowError, csv_rows, jsonl_rows, tsv_rows
from data_shards.samples import Pair, Passage


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of an input: bytes of a text file, row groups of a Parquet file, queries of a BEIR folder, or all."""

    key: str
    """Hash of all that the result depends on: the inputs' bytes, the settings, this program's version."""
    input: Input
    begin: int = 0
    end: int | None = None
    join: Path | None = None
    """Of a BEIR folder's pairs: where they were joined."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How parts become segments; goes to other processes."""

    work: Path
    kind: Kind
    cleaning: CleaningConfig
    on_error: OnError
    evaluation: tuple[str, ...]
    """Checksums of what cleaning compares with."""
    count_tokens: CountTokens | None = None

    def __call__(self, part: Part) -> PartRecord:
        """Convert a part, unless that is done.

        Raises:
            UserError: the input is damaged, or a row is malformed and shall stop the import; the message names it.
        """
        done = finished_part(self.work, part.key)
        if done is not None:
            return done
        with SegmentWriter(self.work, part.key, self.cleaning, part.input.name) as writer:
            for row in part_rows(part, writer.counts):
                self._take(row, part.input, writer)
        assert writer.record is not None
        return writer.record

    def _take(self, row: Row, source: Input, writer: SegmentWriter) -> None:
        try:
            if row.problem:
                raise row.error(row.problem)
            samples = self._samples(row, source, writer.counts)
        except RowError as error:
            if self.on_error == "error":
                raise
            writer.quarantine(row, error.what)
            return
        for sample in samples:
            writer.add(sample)

    def _samples(self, row: Row, source: Input, counts: Counter[str]) -> list[Pair] | list[Passage]:
        refine = refiner(self.cleaning, self.count_tokens, self.evaluation)
        if self.kind == "pairs":
            raw = pair_of(row, source.columns, source.source)
            counts["pairs_read"] += 1
            pair = refine.pair(raw, counts)
            return [pair] if pair is not None else []
        passage = passage_of(row.values, row, source.columns)
        counts["passages_read"] += 1
        return refine.passages(passage, counts)


def part_rows(part: Part, counts: Counter[str]) -> Iterator[Row]:
    """Yield a part's rows; what cannot be joined is counted."""
    path, begin, end = part.input.path, part.begin, part.end
    kind = part.input.kind
    if kind == "jsonl":
        return jsonl_rows(path, begin, end)
    if kind == "tsv":
        return tsv_rows(path, begin, end)
    if kind == "csv":
        return csv_rows(path)
    if kind == "parquet":
        return parquet_rows(path, begin, end)
    if kind == "arrow":
        return arrow_rows(path)
    if kind == "tar":
        return tar_rows(path)
    assert part.join is not None
    assert end is not None
    qrels = part.input.files[-1][1]
    return joined_rows(part.join, qrels, begin, end, counts)
