"""The figures of a dataset's report, drawn as those of a run are: see `report_figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from data_shards.findings.language import UNSURE
from launch.report_figures import ACCENT, INK, MUTED, PALE, RULE, SOFT, WARM, WIDE, heading, new_figure

_COLOURS = (ACCENT, WARM, SOFT, MUTED)
_TOLD_SHARE = 0.08  # narrower pieces of a bar have no room for a name


def draw_lengths(histograms: Mapping[str, Mapping[str, Any]], width: int) -> Figure:
    """Draw how long the texts of each part are, one panel a part, on one logarithmic axis."""
    figure = new_figure(width, 44 + 112 * len(histograms))
    panels = np.atleast_1d(figure.subplots(len(histograms), 1, sharex=True))
    longest = max(row["edges"][-1] for row in histograms.values())
    for axes, (name, row) in zip(panels, histograms.items(), strict=True):
        _steps(axes, row["edges"], row["counts"])
        heading(axes, name)
    panels[-1].set_xlim(0.8, max(longest, 10))
    panels[-1].set_xlabel(next(iter(histograms.values()))["unit"])
    return figure


def draw_languages(shares: Mapping[str, Mapping[str, float]], shown: Sequence[str], width: int) -> Figure:
    """Draw one bar a part, cut by languages; those not in `shown` are put together near its end."""
    figure = new_figure(width, 30 + 46 * len(shares))
    axes = figure.subplots()
    room = 1.0 if width == WIDE else 2.2
    for row, share in enumerate(shares.values()):
        begin = 0.0
        pieces = [(code, share.get(code, 0.0), colour) for code, colour in zip(shown, _COLOURS, strict=False)]
        unsure = share.get(UNSURE, 0.0)
        others = max(0.0, 1.0 - unsure - sum(value for _, value, _ in pieces))
        for code, value, colour in [*pieces, ("others", others, PALE), (UNSURE, unsure, RULE)]:
            axes.barh(row, value, left=begin, height=0.5, color=colour)
            if value >= _TOLD_SHARE * room:
                axes.annotate(
                    f"{code} {value:.0%}", (begin, row), (2, 21), textcoords="offset points", va="center", size=11
                )
            begin += value
    axes.set_yticks(range(len(shares)), list(shares))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shares) - 0.5, -0.75)
    axes.grid(False)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def draw_counts(counts: Mapping[str, int], what: str, width: int) -> Figure:
    """Draw how many queries have so many of something, one bar a number."""
    figure = new_figure(width, 190)
    axes = figure.subplots()
    places = range(len(counts))
    axes.bar(places, list(counts.values()), width=0.62, color=ACCENT)
    for place, count in zip(places, counts.values(), strict=True):
        axes.annotate(f"{count:,}", (place, count), (0, 4), textcoords="offset points", ha="center", size=11)
    axes.set_xticks(places, list(counts))
    axes.set_xlim(-0.7, max(len(counts), 6 if width == WIDE else 3) - 0.3)
    axes.set_ylim(top=1.18 * max(counts.values()))
    axes.set_xlabel(what)
    _no_count_axis(axes)
    return figure


def draw_weights(histogram: Mapping[str, Any], what: str, width: int) -> Figure:
    """Draw how weights or scores are spread, on a logarithmic axis."""
    figure = new_figure(width, 170)
    axes = figure.subplots()
    _steps(axes, histogram["edges"], histogram["counts"])
    axes.set_xlabel(what)
    return figure


def _steps(axes: Axes, edges: Sequence[float], counts: Sequence[int]) -> None:
    """Draw a histogram over a logarithmic axis; what is 0 stands at its left end."""
    # Bars of a logarithmic axis are compared by area: counts over the logarithm of the bin's width.
    borders = np.asarray(edges, dtype=np.float64)
    borders = np.where(borders > 0, borders, 0.8)
    heights = np.asarray(counts, dtype=np.float64) / np.diff(np.log(borders))
    axes.stairs(heights, borders, fill=True, color=ACCENT, alpha=0.28)
    axes.stairs(heights, borders, color=ACCENT, linewidth=1.4)
    axes.set_xscale("log")
    few_decades = borders[-1] < 100 * borders[0]
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if few_decades else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_ylim(bottom=0)
    _no_count_axis(axes)


def _no_count_axis(axes: Axes) -> None:
    axes.set_yticks([])
    axes.grid(False)
