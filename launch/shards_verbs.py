"""`dipole shards pairs|corpus`: raw text to shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import UserError
from launch.progress import progress_bar

if TYPE_CHECKING:
    from data_shards.findings.find import ChecksConfig, Findings
    from data_shards.manifest import Kind


@dataclass(frozen=True, kw_only=True)
class _Import:
    out: Path
    """Where the dataset goes; must be empty or not there."""
    input: tuple[str, ...] = ()
    """BEIR folders, JSONL, TSV or CSV (plain or .gz), Parquet, tars, folders of these or made by save_to_disk, or
    hf:OWNER/NAME[:CONFIG]."""
    config: Path | None = None
    """TOML file with sections input, columns, cleaning, checks and output; --section.field=value goes on top."""
    split: str | None = None
    """Which split of a dataset, or which judgements of a BEIR folder; by default train."""
    source: str | None = None
    """Name of the dataset, for the manifest; by default that of the inputs."""
    licence: str | None = None
    """Licence of the data, for the manifest."""
    samples_per_shard: int | None = None
    """A shard is closed at so many samples, by default 65,536,"""
    max_shard_mib: int | None = None
    """or at so many MiB, by default 256, whichever comes first."""
    workers: int = 1
    """Processes that read and clean."""
    ray_address: str | None = None
    """Spread them over this Ray cluster, which must share the file system; `local` starts a Ray here."""

    def _flags(self) -> dict[str, Any]:
        """Return the flags that stand for keys of the config."""
        return {
            "input.split": self.split,
            "output.source": self.source,
            "output.licence": self.licence,
            "output.samples_per_shard": self.samples_per_shard,
            "output.max_shard_mib": self.max_shard_mib,
        }

    def _run(self, kind: Kind, overrides: Sequence[str]) -> dict[str, object]:
        from data_shards.check import summary
        from data_shards.findings.find import check_places
        from data_shards.importing.importers import ImportTools, import_dataset
        from launch.import_config import load_import_config

        if self.workers < 1:
            raise UserError(f"--workers must be at least 1, came {self.workers}")
        flags = [f"--{key}={value}" for key, value in self._flags().items() if value is not None]
        sections = load_import_config(self.config, [*flags, *overrides])
        # What is named is looked for now, not when all is read and cleaned.
        check_places(sections.checks)
        tokenizer = sections.cleaning.tokenizer
        if tokenizer:
            _counter(tokenizer)
        seen: list[Findings] = []
        with _workers(self.workers, self.ray_address) as run_parts:
            tools = ImportTools(
                run_parts=run_parts,
                progress=progress_bar,
                count_tokens=TokenCounter(folder=tokenizer) if tokenizer else None,
                validate=_validation(sections.checks, tokenizer, seen),
            )
            paths = self.input or sections.input.paths
            manifest = import_dataset(kind, paths, self.out, sections.for_data_shards(), tools)
        return {**summary(self.out, manifest), **_told(seen[-1], self.out)}


@dataclass(frozen=True, kw_only=True)
class ShardsPairs(_Import):
    """Write training shards: queries with their positive passages, and given negatives where there are some."""

    query_column: str | None = None
    """Column of the query; by default `query`, `anchor` or `question`."""
    positive_column: str | None = None
    """Column of the positive passages; by default `positive`, `pos`, `passage` and the like."""
    negative_column: str | None = None
    """Column of given negatives; by default `negative`, `neg` and the like, where there is one."""
    weight: float | None = None
    """The dataset's share where several are mixed."""

    def _flags(self) -> dict[str, Any]:
        return {
            **super()._flags(),
            "columns.query": self.query_column,
            "columns.positive": self.positive_column,
            "columns.negative": self.negative_column,
            "output.weight": self.weight,
        }

    def run_with(self, overrides: Sequence[str]) -> dict[str, object]:
        """Import, and return what was written."""
        return self._run("pairs", overrides)


@dataclass(frozen=True, kw_only=True)
class ShardsCorpus(_Import):
    """Write corpus shards: passages to embed, each id once."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, object]:
        """Import, and return what was written."""
        return self._run("corpus", overrides)


@dataclass(frozen=True, kw_only=True)
class TokenCounter:
    """Counts tokens with a tokenizer that each process loads for itself."""

    folder: str
    """Snapshot or transformers folder."""

    def __call__(self, text: str) -> int:
        """Return how many tokens a text has, special ones included."""
        return _counter(self.folder)([text])[0]


@lru_cache(maxsize=1)
def _counter(folder: str) -> Callable[[Sequence[str]], list[int]]:
    from encoder.tokenizer import load_counter

    return load_counter(Path(folder))[0]


@contextmanager
def _workers(
    count: int, ray_address: str | None
) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]]:
    """Yield what spreads the work."""
    if ray_address is not None:
        from index_build.ray_map import ray_map

        with ray_map(count, None if ray_address == "local" else ray_address) as run:
            yield run
    elif count > 1:
        from launch.process_pool import process_pool

        with process_pool(count) as run:
            yield run
    else:
        from data_shards.importing.plan import serially

        yield serially


def _told(findings: Findings, out: Path) -> dict[str, object]:
    """Return what a person should hear of the findings after an import that went well."""
    counts = Counter("allowed" if finding.allowed else finding.severity for finding in findings.findings)
    quarantine = {"quarantine": str(out / "quarantine.jsonl")} if (out / "quarantine.jsonl").exists() else {}
    return {"findings": dict(counts), "validation": str(out / "validation.html"), **quarantine}


def _validation(config: ChecksConfig, tokenizer: str, seen: list[Findings]) -> Callable[[Path], None]:
    """Return the look at a dataset that decides whether it is published; what it finds is added to `seen`."""

    def validate(folder: Path) -> None:
        from data_shards.findings.find import find
        from launch.data_report import write_data_report

        count_tokens = _counter(tokenizer) if tokenizer else None
        with progress_bar("looking at the texts") as progress:
            findings = find(folder, config, count_tokens=count_tokens, progress=progress)
        seen.append(findings)
        findings.save(folder)
        report = write_data_report(folder, findings)
        if findings.fatal:
            told = {
                finding.name: f"{finding.name} ({finding.count} of {finding.of})" for finding in findings.findings
            }
            names = ", ".join(told[name] for name in findings.fatal)
            allow = ",".join([*config.allow, *findings.fatal])
            raise UserError(f"fatal findings: {names}; see {report}, and allow them with --checks.allow={allow}")

    return validate
