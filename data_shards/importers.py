"""Raw text in, cleaned pairs and passages out, with a count of everything left out.

Accepted are BEIR folders and whatever `rows` reads, in the forms that `columns` knows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.atomic import sha256_file
from data_shards.beir import BeirFolder
from data_shards.columns import PairColumns, exact_hash, pair_of, passage_of
from data_shards.errors import UserError
from data_shards.manifest import Kind, Manifest
from data_shards.rows import read_rows
from data_shards.samples import Pair, Passage
from data_shards.writer import MAX_SHARD_BYTES, SAMPLES_PER_SHARD, ShardWriter

_PROGRESS_EVERY = 1000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How raw files become shards."""

    split: str = "train"
    """Which judgements of a BEIR folder, or which part of a saved dataset, to take."""
    query_column: str | None = None
    """Column of the query; by default `query`, `anchor` or `question`."""
    positive_column: str | None = None
    """Column of the positive passage or passages; by default `positive`, `pos`, `passage` and the like."""
    negative_column: str | None = None
    """Column of given negatives; by default `negative`, `neg` and the like, where there is one."""
    samples_per_shard: int = SAMPLES_PER_SHARD
    """A shard is closed at so many samples,"""
    max_shard_bytes: int = MAX_SHARD_BYTES
    """or at so many bytes, whichever comes first."""
    source: str = ""
    """Name of the dataset; by default that of the first input."""
    licence: str = ""
    """The data's licence, for the manifest."""
    weight: float = 1.0
    """The dataset's share where several are mixed."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.samples_per_shard < 1 or self.max_shard_bytes < 1:
            sizes = f"samples_per_shard {self.samples_per_shard}, max_shard_bytes {self.max_shard_bytes}"
            raise UserError(f"{sizes}: both must be at least 1")
        if self.weight <= 0:
            raise UserError(f"weight {self.weight} must be above 0")


def import_pairs(
    inputs: Sequence[Path], out: Path, config: ImportConfig | None = None, progress: Progress | None = None
) -> Manifest:
    """Write training shards from raw files; see `pairs_from`.

    Args:
        inputs: files and folders, read in order.
        out: must be empty or not there.
        config: how.
        progress: called now and then with the number of samples so far, twice: the total is not known beforehand.

    Raises:
        UserError: an input is missing, malformed or leaves no pair; `out` holds something already.
    """
    config = config or ImportConfig()
    report: Counter[str] = Counter()
    return _write("pairs", pairs_from(inputs, config, report), inputs, out, config, report, progress)


def import_corpus(
    inputs: Sequence[Path], out: Path, config: ImportConfig | None = None, progress: Progress | None = None
) -> Manifest:
    """Write corpus shards from raw files; see `corpus_from` and, for the arguments, `import_pairs`.

    Raises:
        UserError: an input is missing, malformed or leaves no passage; `out` holds something already.
    """
    config = config or ImportConfig()
    report: Counter[str] = Counter()
    return _write("corpus", corpus_from(inputs, config, report), inputs, out, config, report, progress)


def pairs_from(
    inputs: Sequence[Path], config: ImportConfig | None = None, report: Counter[str] | None = None
) -> Iterator[Pair]:
    """Yield cleaned pairs; a BEIR folder gives one pair per query, with all its positives.

    Left out and counted: blank queries and passages, a positive that its query had already (in this pair or an
    earlier one), a given negative with the text of a positive of its pair, pairs without a positive.

    Args:
        inputs: files and folders, read in order.
        config: columns, split and source.
        report: counts are added to it.

    Raises:
        UserError: an input is missing or malformed; the message names file and line.
    """
    config = config or ImportConfig()
    counts = report if report is not None else Counter()
    columns = PairColumns(query=config.query_column, positive=config.positive_column, negative=config.negative_column)
    seen: set[int] = set()
    for path in inputs:
        source = config.source or _source_name(path)
        if path.is_dir() and BeirFolder.is_one(path):
            raw = _beir_pairs(BeirFolder(path), config.split, source, counts)
        else:
            raw = (pair_of(row, columns, source) for row in read_rows(path, config.split))
        for pair in raw:
            counts["pairs_read"] += 1
            cleaned = _clean(pair, seen, counts)
            if cleaned is not None:
                counts["pairs_kept"] += 1
                yield cleaned


def corpus_from(
    inputs: Sequence[Path], config: ImportConfig | None = None, report: Counter[str] | None = None
) -> Iterator[Passage]:
    """Yield the passages of a corpus, each id once.

    Left out and counted: blank passages, and exact repetitions of a passage under its id. A passage that has no id
    gets one from its content.

    Raises:
        UserError: an input is missing or malformed, or one id names two different passages.
    """
    config = config or ImportConfig()
    counts = report if report is not None else Counter()
    seen: dict[int, int] = {}
    for path in inputs:
        if path.is_dir() and BeirFolder.is_one(path):
            raw = BeirFolder(path).corpus()
        else:
            raw = (passage_of(row.values, row) for row in read_rows(path, config.split))
        for passage in raw:
            counts["passages_read"] += 1
            if not passage.content.strip():
                counts["blank_passage"] += 1
                continue
            content = exact_hash(passage.title, passage.text)
            identity = exact_hash(passage.id)
            if identity in seen:
                if seen[identity] != content:
                    raise UserError(f"{path}: two different passages have the id {passage.id!r}; ids must be unique")
                counts["repeated_passage"] += 1
                continue
            seen[identity] = content
            counts["passages_kept"] += 1
            yield passage


def _write(
    kind: Kind,
    samples: Iterable[Pair | Passage],
    inputs: Sequence[Path],
    out: Path,
    config: ImportConfig,
    report: Counter[str],
    progress: Progress | None,
) -> Manifest:
    if not inputs:
        raise UserError("no input was given; name at least one file or folder with --input")
    writer = ShardWriter(
        out,
        kind,
        samples_per_shard=config.samples_per_shard,
        max_bytes=config.max_shard_bytes,
        source=config.source or ", ".join(dict.fromkeys(map(_source_name, inputs))),
        licence=config.licence,
        weight=config.weight,
    )
    with writer:
        done = 0
        for done, sample in enumerate(samples, 1):
            writer.add(sample)
            if progress is not None and done % _PROGRESS_EVERY == 0:
                progress(done, done)
        if not done:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(report.items())) or "they are empty"
            names = ", ".join(str(path) for path in inputs)
            raise UserError(f"nothing is left of {names} ({counts}); check the input")
        if progress is not None:
            progress(done, done)
        writer.report = dict(sorted((+report).items()))
        settings = {key: value for key, value in asdict(config).items() if value is not None}
        writer.made_by = {"inputs": _checksums(kind, inputs, config), "settings": settings}
    assert writer.manifest is not None
    return writer.manifest


def _beir_pairs(beir: BeirFolder, split: str, source: str, counts: Counter[str]) -> Iterator[Pair]:
    qrels = beir.qrels(split)
    queries = beir.queries()
    wanted = {passage for judged in qrels.values() for passage, grade in judged.items() if grade > 0}
    corpus = {passage.id: passage for passage in beir.corpus() if passage.id in wanted}
    for query_id, judged in qrels.items():
        if query_id not in queries:
            counts["query_not_in_queries"] += 1
            continue
        relevant = [passage for passage, grade in judged.items() if grade > 0]
        counts["positive_not_in_corpus"] += sum(passage not in corpus for passage in relevant)
        positives = tuple(corpus[passage] for passage in relevant if passage in corpus)
        yield Pair(query_id=query_id, query=queries[query_id], positives=positives, source=source)


def _clean(pair: Pair, seen: set[int], counts: Counter[str]) -> Pair | None:
    if not pair.query.strip():
        counts["blank_query"] += 1
        return None
    positives = []
    for passage in pair.positives:
        identity = exact_hash(pair.query, passage.title, passage.text)
        if not passage.content.strip():
            counts["blank_positive"] += 1
        elif identity in seen:
            counts["repeated_positive"] += 1
        else:
            seen.add(identity)
            positives.append(passage)
    if not positives:
        counts["pair_without_positive"] += 1
        return None
    contents = {passage.content_hash for passage in pair.positives}
    negatives = []
    for passage in pair.negatives:
        if not passage.content.strip():
            counts["blank_negative"] += 1
        elif passage.content_hash in contents:
            counts["negative_is_positive"] += 1
        else:
            negatives.append(passage)
    return Pair(
        query_id=pair.query_id,
        query=pair.query,
        positives=tuple(positives),
        negatives=tuple(negatives),
        source=pair.source,
        weight=pair.weight,
    )


def _source_name(path: Path) -> str:
    return re.sub(r"(\.(jsonl|ndjson|tsv|csv|parquet))?(\.gz)?$", "", path.resolve().name, flags=re.IGNORECASE)


def _checksums(kind: Kind, inputs: Sequence[Path], config: ImportConfig) -> list[dict[str, str]]:
    files: list[tuple[str, Path]] = []
    for path in inputs:
        if path.is_dir() and BeirFolder.is_one(path):
            beir = BeirFolder(path)
            parts = [*beir.files, beir.qrels_path(config.split)] if kind == "pairs" else beir.files[:1]
        elif path.is_dir():
            parts = sorted(part for part in path.rglob("*.arrow") if part.is_file())
        else:
            parts = [path]
        files += [(part.relative_to(path.parent).as_posix(), part) for part in parts]
    return [{"name": name, "sha256": sha256_file(part)} for name, part in files]
