"""Writes `validation.html`: one file that shows what is in a dataset and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_shards.atomic import atomic_path
from data_shards.findings.find import Findings
from data_shards.findings.language import UNSURE
from launch.data_figures import draw_counts, draw_languages, draw_lengths, draw_weights
from launch.data_text import LENGTH_UNITS, PARTS, percent, verdict
from launch.pages import render_page
from launch.report_figures import inline_svg

REPORT_NAME = "validation.html"

_PER_QUERY = {"positives_per_query": "positives", "negatives_per_query": "negatives"}
_MOST_LANGUAGES = 4


def write_data_report(folder: Path, findings: Findings, out: Path | None = None) -> Path:
    """Write one self-contained HTML file and return its place.

    Args:
        folder: the dataset.
        findings: of the dataset; the page's heading is their source, or the folder's name where that is not known.
        out: the file; by default `validation.html` in the folder.
    """
    row = findings.to_dict()
    numbers = row["numbers"]
    page = render_page(
        "validation.html",
        styles=("report.css", "validation.css"),
        title=findings.source or folder.resolve().name,
        about=f"{findings.samples:,} {'pairs' if findings.kind == 'pairs' else 'passages'} in {_shards(findings)}",
        verdict=verdict(findings),
        severities=[(level, sum(one.severity == level for one in findings.findings)) for level in _LEVELS],
        facts=_facts(numbers),
        findings=[{**one, "percent": percent(one["count"], one["of"])} for one in row["findings"]],
        figures=_figures(numbers),
        lengths=_length_rows(numbers),
        unit=next((part["histogram"]["unit"] for part in numbers.values() if "histogram" in part), ""),
        sources=list(numbers.get("sources", {}).items()),
        dataset_id=findings.dataset_id,
        skipped=findings.skipped,
    )
    place = out or folder / REPORT_NAME
    with atomic_path(place) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return place


_LEVELS = ("fatal", "warning", "note")


def _shards(findings: Findings) -> str:
    return f"{findings.shards:,} shard{'s' if findings.shards != 1 else ''}"


def _facts(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how many there are of each part, and what they are like in a word."""
    facts = [(names, f"{numbers[part]['count']:,}") for part, names in PARTS.items() if part in numbers]
    for name, what in _PER_QUERY.items():
        counts = numbers.get(name, {})
        total = sum(counts.values())
        if total and set(counts) != {"0"}:
            most = max(counts, key=lambda value: counts[value])
            facts.append((f"{what} per query, mostly", most))
    if "weights" in numbers:
        facts.append(("effective share of the weights", f"{numbers['weights']['effective_share']:.1%}"))
    return facts


def _length_rows(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table: parts as columns, percentiles of each unit as rows in groups."""
    parts = [part for part in PARTS if part in numbers]
    groups = {}
    for unit in LENGTH_UNITS:
        if any(unit in numbers[part] for part in parts):
            groups[unit] = {
                key: [f"{numbers[part][unit][key]:,}" if unit in numbers[part] else "–" for part in parts]
                for key in ("mean", "p5", "p50", "p95", "max")
            }
    return {"parts": [PARTS[part] for part in parts], "groups": groups}


def _figures(numbers: Mapping[str, Any]) -> dict[str, Markup]:
    """Return the figures for which there is data, as inline SVG."""
    figures = {}
    parts = {PARTS[part]: numbers[part] for part in PARTS if part in numbers}
    if parts:
        label = "; ".join(f"{name}: median {part['words']['p50']} words" for name, part in parts.items())
        histograms = {name: part["histogram"] for name, part in parts.items()}
        figures["lengths"] = inline_svg(lambda width: draw_lengths(histograms, width), name="lengths", label=label)
    shares = {name: part["languages"]["shares"] for name, part in parts.items() if "languages" in part}
    if shares:
        shown = _main_languages(list(shares.values()))
        label = "; ".join(f"{name}: {_listed(share)}" for name, share in shares.items())
        figures["languages"] = inline_svg(
            lambda width: draw_languages(shares, shown, width), name="languages", label=label
        )
    for key, what in _PER_QUERY.items():
        counts = numbers.get(key, {})
        if len(counts) > 1:
            label = ", ".join(f"{count} queries with {value}" for value, count in counts.items())
            figures[what] = inline_svg(
                lambda width, counts=counts, what=what: draw_counts(counts, f"{what} per query", width),  # type: ignore[misc]
                name=what,
                label=label,
            )
    for key in ("weights", "scores"):
        if key in numbers:
            row = numbers[key]
            label = f"{key} from {row['min']:g} to {row['max']:g}, mean {row['mean']:g}"
            figures[key] = inline_svg(
                lambda width, row=row, key=key: draw_weights(row["histogram"], key, width),  # type: ignore[misc]
                name=key,
                label=label,
            )
    return figures


def _main_languages(shares: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the languages that are told apart in the figure: the greatest over all parts."""
    codes = {code for share in shares for code in share}
    greatest = sorted(codes, key=lambda code: (-max(share.get(code, 0.0) for share in shares), code))
    return [code for code in greatest if code != UNSURE][:_MOST_LANGUAGES]


def _listed(share: Mapping[str, float]) -> str:
    return ", ".join(f"{code} {value:.1%}" for code, value in list(share.items())[:_MOST_LANGUAGES])
