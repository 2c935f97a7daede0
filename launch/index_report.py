"""Writes an index version's `report.html`: how well and how quickly it finds, and why it is made as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from data_shards.atomic import atomic_path
from index_build.index import shortfall
from index_build.index_manifest import IndexManifest
from launch.pages import render_page
from launch.report_figures import ACCENT, INK, MUTED, PALE, WIDE, heading, inline_svg, new_figure

REPORT_NAME = "report.html"

Rows = Sequence[Mapping[str, Any]]

_FEWEST_POINTS = 2  # one point is no curve
_WEAR = {
    "dead_share": ("dead rows", ".1%"),
    "added_share": ("rows since the build", ".1%"),
    "imbalance": ("imbalance of the lists", ".2f"),
    "distance": ("squared distance to the list's centre", ".4f"),
}


def write_index_report(manifest: IndexManifest, folder: Path) -> None:
    """Write one self-contained HTML file into a version's folder."""
    row = manifest.to_dict()
    recall = manifest.recall
    short = bool(shortfall(manifest))
    figure = None
    if len(manifest.curve) >= _FEWEST_POINTS:
        label = "; ".join(
            f"{settings(point['search'])}: recall {point['recall']:.3f}, {point['latency_ms']:.3g} ms"
            for point in manifest.curve
        )
        figure = inline_svg(
            lambda width: draw_curve(manifest.curve, manifest.search, manifest.wanted_recall, width),
            name="curve",
            label=label,
        )
    page = render_page(
        "index.html",
        styles=("report.css", "index.css"),
        title=f"Index version {manifest.version}",
        about=manifest.choice,
        k=recall.k,
        tiles=_tiles(manifest),
        verdict=_verdict(manifest),
        short=short,
        figure=figure,
        curve=_table(manifest),
        made=_made(manifest),
        wear=_worn(row["wear"]),
        changes=[(name, f"{count:,}") for name, count in manifest.changes.items()],
        base=manifest.base_version,
        rebuild_due=manifest.rebuild_due,
        origins=_origins(manifest),
    )
    with atomic_path(folder / REPORT_NAME) as temporary:
        temporary.write_text(page, encoding="utf-8")


def settings(search: Mapping[str, int]) -> str:
    """Show search parameters."""
    return ", ".join(f"{name} {value}" for name, value in search.items()) or "exact"


def draw_curve(curve: Rows, chosen: Mapping[str, int], wanted: float, width: int) -> Figure:
    """Draw recall over the time of a query, a point a setting, with its interval; the chosen one stands out."""
    figure = new_figure(width, 320)
    axes = figure.subplots()
    times = np.array([max(point["latency_ms"], 1e-4) for point in curve])
    values, low, high = (np.array([point[key] for point in curve]) for key in ("recall", "low", "high"))
    order = np.argsort(times, kind="stable")
    axes.fill_between(times[order], low[order], high[order], color=PALE, linewidth=0, alpha=0.55)
    axes.plot(times[order], values[order], color=ACCENT, linewidth=2, marker="o", markersize=4.5)
    axes.axhline(wanted, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    axes.annotate(
        f"wanted {wanted:g}", (0, wanted), (4, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
        color=MUTED, size=11,
    )  # fmt: skip
    for place, point in enumerate(curve):
        if point["search"] == dict(chosen):
            axes.plot(times[place], values[place], marker="o", markersize=11, color=ACCENT)
            right = times[place] > times.max() * (times.min() / times.max()) ** 0.3
            axes.annotate(
                settings(point["search"]),
                (times[place], values[place]),
                (6 if right else 10, -26 if right else -18),  # under a rising curve there is room
                textcoords="offset points",
                ha="right" if right else "left",
                weight="bold",
                color=INK,
            )
    axes.set_xscale("log")
    few = times.max() < 20 * times.min()
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if few or width == WIDE else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(top=1.005)
    axes.set_xlabel("milliseconds a query, one at a time (median)")
    heading(axes, "recall")
    return figure


def _tiles(manifest: IndexManifest) -> list[dict[str, str]]:
    recall = manifest.recall
    return [
        {"value": f"{recall.value:.3f}", "name": f"recall@{recall.k}", "kind": "trained"},
        {"value": f"{manifest.latency_ms['median']:.3g} ms", "name": "a query, median", "kind": ""},
        {"value": f"{manifest.queries_per_s:,.0f}", "name": "queries a second", "kind": ""},
    ]


def _verdict(manifest: IndexManifest) -> str:
    recall, short = manifest.recall, shortfall(manifest)
    where = "queries that were given" if recall.queries_from == "given" else recall.queries_from
    measured = (
        f"95% interval {recall.low:.3f} to {recall.high:.3f}, against exact search, on {recall.queries:,} held-out "
        f"queries ({where}) that chose nothing."
    )
    wanted = f"{manifest.wanted_recall:g} was wanted"
    return f"{measured} {wanted}{f', and is not reached: {short}' if short else ''}."


def _table(manifest: IndexManifest) -> list[dict[str, Any]]:
    return [
        {
            "name": settings(point["search"]),
            "chosen": point["search"] == manifest.search,
            "cells": [
                f"{point['recall']:.3f}",
                f"{point['low']:.3f} – {point['high']:.3f}",
                f"{point['latency_ms']:.3g}",
                f"{point['queries_per_s']:,.0f}",
            ],
        }
        for point in manifest.curve
    ]


def _made(manifest: IndexManifest) -> list[tuple[str, str, str]]:
    rows = [
        ("passages", f"{manifest.ntotal:,}", ""),
        ("FAISS factory", manifest.factory, "lists on disk" if manifest.on_disk else "in memory"),
        ("search", settings(manifest.search), f"threads {manifest.latency_ms['threads']:g}"),
        ("95% of queries within", f"{manifest.latency_ms['p95']:.3g} ms", "one at a time"),
        ("dimensions", f"{manifest.dim:,}", manifest.metric.replace("_", " ")),
    ]
    if manifest.training:
        rows.append(("trained on", f"{manifest.training['rows']:,} rows", f"seed {manifest.training['seed']}"))
    if manifest.seconds:
        steps = ", ".join(f"{name} {taken:,.2f}" for name, taken in manifest.seconds.items())
        rows.append(("seconds", f"{sum(manifest.seconds.values()):,.2f}", steps))
    return rows


def _origins(manifest: IndexManifest) -> list[tuple[str, str]]:
    return [
        ("snapshot", manifest.snapshot["hash"]),
        ("embedding set", manifest.embedding_set["hash"]),
        ("corpus", manifest.corpus["dataset_id"]),
    ]


def _worn(wear: Mapping[str, float]) -> list[tuple[str, str, str]]:
    return [
        (
            what,
            format(wear[name], how),
            f"{wear[f'{name}_built']:{how}} at the build" if f"{name}_built" in wear else "",
        )
        for name, (what, how) in _WEAR.items()
        if name in wear
    ]
