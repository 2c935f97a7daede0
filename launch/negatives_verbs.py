"""`dipole negatives show`: which versions a run has, and what was mined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from data_shards.errors import UserError
from train.run_folder import RunFolder

if TYPE_CHECKING:
    from data_shards.negatives import NegativesManifest, NegativesVersion

_TEXT_WIDTH = 90
_SHOWN_QUERIES = 5


@dataclass(frozen=True, kw_only=True)
class NegativesShow:
    """List a run's negatives versions, or show one in full.

    In full: filters, scores, seconds, and a few queries with what was mined; the version is verified first.
    """

    run_dir: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder."""
    version: int | None = None
    """Number of the version to show in full; without it all are listed."""
    by_hand: bool = False
    """Those of `dipole mine`, in RUN/mined, in place of the trainer's."""

    def run(self) -> dict[str, Any]:
        """Look them up."""
        from data_shards.negatives import NegativesVersion, load_manifest, published_versions, version_dir

        run = RunFolder(self.run_dir)
        if not run.identity.exists():
            raise UserError(f"{self.run_dir} is not a run folder; give one that `dipole train` made")
        root = run.root / "mined" if self.by_hand else run.negatives
        numbers = published_versions(root)
        if self.version is not None:
            shown = _in_full(NegativesVersion.open(root, self.version))
            return {**shown, "text": _full_text(shown)}
        if not numbers:
            hint = "`dipole mine` makes one" if self.by_hand else "--by-hand shows those of `dipole mine`"
            raise UserError(f"{root} holds no negatives version yet; {hint}")
        listed = [_head(load_manifest(version_dir(root, number))) for number in numbers]
        return {"negatives": str(root), "versions": listed, "text": _list_text(root, listed)}


def _head(manifest: NegativesManifest) -> dict[str, Any]:
    """Return one version in short."""
    known = ("negatives_per_query", "gap", "still_hard", "false_negative_share")
    return {
        "version": manifest.version,
        "from_step": manifest.from_step,
        "to_step": manifest.to_step,
        "snapshot_step": manifest.snapshot_step,
        "sources": list(manifest.sources),
        "queries": sum(shard.samples for shard in manifest.shards),
        "total_s": round(sum(manifest.seconds.values()), 3),
        **{name: manifest.statistics[name] for name in known if name in manifest.statistics},
    }


def _in_full(version: NegativesVersion) -> dict[str, Any]:
    manifest = version.manifest
    return {
        **_head(manifest),
        "folder": str(version.folder),
        "snapshot_hash": manifest.snapshot_hash,
        "dataset_id": manifest.dataset_id,
        "per_query": manifest.per_query,
        "scores": manifest.scores,
        "filters": manifest.filters,
        "seconds": manifest.seconds,
        "index": manifest.index,
        "statistics": manifest.statistics,
        "sample": version.sample(),
    }


def _list_text(root: Path, listed: list[dict[str, Any]]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "version": lambda row: f"v{row['version']}",
        "steps": lambda row: f"{row['from_step']}-{row['to_step']}",
        "snapshot": lambda row: str(row["snapshot_step"]),
        "sources": lambda row: "+".join(row["sources"]),
        "queries": lambda row: f"{row['queries']:,}",
        "a query": lambda row: _number(row.get("negatives_per_query"), ".2f"),
        "gap": lambda row: _number(row.get("gap"), ".3f"),
        "still hard": lambda row: _number(row.get("still_hard"), ".0%"),
        "false": lambda row: _number(row.get("false_negative_share"), ".1%"),
        "seconds": lambda row: f"{row['total_s']:.1f}",
    }
    table = [list(columns), *([show(row) for show in columns.values()] for row in listed)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([str(root), *lines, "--version N shows one in full"])


def _full_text(shown: dict[str, Any]) -> str:
    statistics, scores, taken = shown["statistics"], shown["scores"], sum(shown["seconds"].values())
    lines = [
        f"{shown['folder']}: {shown['queries']:,} queries of steps {shown['from_step']} to {shown['to_step']}, "
        f"by the snapshot of step {shown['snapshot_step']}, from {' + '.join(shown['sources'])}",
        "",
        "candidates, by what became of them",
        *_bars(shown["filters"], ","),
        "",
        f"seconds, {taken:.1f} in all",
        *_bars(shown["seconds"], ".2f"),
        "",
        f"mean score   positives {_number(scores.get('positive'), '.3f')}, "
        f"negatives {_number(scores.get('negative'), '.3f')}, gap {_number(statistics.get('gap'), '.3f')}",
        f"a query      {_number(statistics.get('negatives_per_query'), '.2f')} negatives of {shown['per_query']} "
        f"wanted; {_number(statistics.get('without_negatives_share'), '.1%')} have none",
        f"still hard   {_number(statistics.get('still_hard'), '.1%')} of the version before",
        f"false        {_number(statistics.get('false_negative_share'), '.1%')} of the candidates, "
        f"judged by {statistics.get('false_negatives_by', 'nobody')}",
        f"index        {', '.join(f'{name} {value}' for name, value in shown['index'].items()) or 'none'}",
    ]
    for sampled in shown["sample"][:_SHOWN_QUERIES]:
        lines += ["", f"“{_short(sampled['query'])}”"]
        lines += [_passage_line("+", passage) for passage in sampled["positives"]]
        lines += [_passage_line("-", passage) for passage in sampled["negatives"]]
    if len(shown["sample"]) > _SHOWN_QUERIES:
        lines += ["", f"{len(shown['sample']) - _SHOWN_QUERIES} more with --json"]
    return "\n".join(lines)


def _bars(values: dict[str, float], how: str) -> list[str]:
    """Return a line for each value above zero: name, number, share."""
    total = sum(values.values()) or 1
    width = max(map(len, values), default=0)
    return [
        f"  {name:<{width}}  {format(value, how):>11}  {value / total:6.1%}"
        for name, value in values.items()
        if value
    ]


def _passage_line(sign: str, passage: dict[str, Any]) -> str:
    teacher = f"  teacher {passage['teacher']:.3f}" if "teacher" in passage else ""
    content = " ".join(part for part in (passage["title"], passage["text"]) if part)
    return f"  {sign} {_number(passage['score'], '.3f')}{teacher}  {_short(content)}"


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _TEXT_WIDTH else flat[: _TEXT_WIDTH - 1] + "…"
