"""A report's figures: drawn by matplotlib, coloured by the page.

A figure is drawn in stand-in colours that become CSS variables of the page, so that one drawing serves light and
dark, and its text stays text. Each is drawn twice, for a wide page and for a phone, and the page shows one of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from launch.report_data import METRIC_NAMES, SYSTEM_NAMES, History, known_systems

# Stand-in colour -> CSS variable of the page. Nobody else draws in these.
INK, MUTED, RULE = "#010101", "#010102", "#010103"
ACCENT, SOFT, WARM, PALE = "#010104", "#010105", "#010106", "#010107"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", SOFT: "soft", WARM: "warm", PALE: "pale"}
_SYSTEM_COLOURS = {"untrained": PALE, "bm25": MUTED, "no_refresh": SOFT, "trained": ACCENT}

WIDE, NARROW = 820, 360
"""Widths in CSS pixels; one typographic point of the drawing is one pixel."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}


def inline_svg(draw: Callable[[int], Figure], *, name: str, label: str) -> Markup:
    """Return a figure as two SVG elements for use inside a page, wide and narrow.

    Args:
        draw: takes a width in pixels.
        name: unique on the page; the drawings' ids begin with it.
        label: what a screen reader says instead.
    """
    return Markup("").join(
        _one_svg(draw, width, name=f"{name}-{kind}", kind=kind, label=label)
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )


def _one_svg(draw: Callable[[int], Figure], width: int, *, name: str, kind: str, label: str) -> Markup:
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        draw(width).savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # The page gives the size and needs no XML prolog: of matplotlib's own opening tag only the view box is kept.
    opening, _, body = buffer.getvalue().partition("<svg")[2].partition(">")
    view_box = re.search(r'viewBox="([^"]+)"', opening)
    assert view_box is not None
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#|url\(#', lambda match: f"{match[0]}{name}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    head = Markup('<svg class="{}" viewBox="{}" role="img" aria-label="{}">').format(kind, view_box[1], label)
    return head + Markup(body)


def new_figure(width: int, height: int) -> Figure:
    """Return an empty figure; sizes in CSS pixels."""
    layout = ConstrainedLayoutEngine(h_pad=9 / 72, w_pad=2 / 72)
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def draw_training(history: History, width: int) -> Figure:
    """Draw the loss and the dev metric over steps, with a line where each negatives version came into use."""
    figure = new_figure(width, 380 if width == WIDE else 400)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.15, 1])
    steps = [row["step"] for row in history.steps]
    loss = np.array([row["loss"] for row in history.steps], dtype=np.float64)
    top.plot(steps, loss, color=SOFT, linewidth=0.9)
    top.plot(steps, _smooth(loss), color=ACCENT, linewidth=2)
    heading(top, "training loss")
    heading(bottom, "dev nDCG@10")
    if history.dev:
        dev_steps, dev = [row["step"] for row in history.dev], [row["ndcg@10"] for row in history.dev]
        bottom.plot(dev_steps, dev, color=ACCENT, linewidth=2, marker="o", markersize=4.5)
        bottom.annotate(
            f"{dev[-1]:.3f}", (dev_steps[-1], dev[-1]), (0, 7), textcoords="offset points", ha="right", weight="bold"
        )
        bottom.set_ylim(top=max(*dev, 1e-9) * 1.25)
    bottom.set_xlabel("step")
    bottom.set_xlim(left=0)
    bottom.xaxis.set_major_locator(MaxNLocator(8 if width == WIDE else 5, integer=True))
    for axes in (top, bottom):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        for row in history.refreshes:
            axes.axvline(row["from_step"], color=WARM, linewidth=1, linestyle=(0, (2, 3)))
    for row in history.refreshes:
        place = {"xycoords": top.get_xaxis_transform(), "textcoords": "offset points"}
        top.annotate(f"v{row['version']}", (row["from_step"], 1.0), (4, -4), **place, color=WARM, size=11, va="top")
    return figure


def draw_baselines(metrics: Mapping[str, Mapping[str, float]], width: int) -> Figure:
    """Draw one group of horizontal bars a metric, one bar a system, each with its number."""
    systems = known_systems(metrics)
    wide = width == WIDE
    rows = len(systems)
    figure = new_figure(width, 46 + 32 * rows if wide else 3 * (40 + 27 * rows))
    panels = figure.subplots(*((1, 3) if wide else (3, 1)), sharey=True)
    for axes, (metric, title) in zip(panels, METRIC_NAMES.items(), strict=True):
        values = [metrics[system].get(metric, float("nan")) for system in systems]
        colours = [_SYSTEM_COLOURS.get(system, MUTED) for system in systems]
        axes.barh(range(rows), values, height=0.62, color=colours)
        for row, (system, value) in enumerate(zip(systems, values, strict=True)):
            if np.isnan(value):
                continue
            weight = "bold" if system == "trained" else "normal"
            axes.annotate(
                f"{value:.3f}", (value, row), (6, 0), textcoords="offset points", va="center", weight=weight
            )
        heading(axes, title)
        axes.set_yticks(range(rows), [SYSTEM_NAMES.get(system, system) for system in systems])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlim(0, max(np.nanmax(values, initial=0.0), 1e-9) * 1.28)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        axes.axvline(0, color=RULE, linewidth=1.6)
    panels[0].invert_yaxis()  # shared: this turns all three
    return figure


def draw_similarity(similarity: Mapping[str, Mapping[str, Sequence[float]]], width: int) -> Figure:
    """Draw how similar queries are to right and to wrong passages, before training above and after it below."""
    moments = [moment for moment in ("before", "after") if moment in similarity]
    figure = new_figure(width, 40 + 150 * len(moments))
    panels = np.atleast_1d(figure.subplots(len(moments), 1, sharex=True))
    arrays = {
        (moment, kind): np.asarray(similarity[moment][kind], dtype=np.float64)
        for moment in moments
        for kind in ("negative", "positive")
    }
    everything = np.concatenate(list(arrays.values()))
    bins = int(np.clip(1.5 * min(map(len, arrays.values())) ** 0.5, 16, 60))
    edges = np.linspace(everything.min() - 0.02, everything.max() + 0.02, bins + 1)
    for axes, moment in zip(panels, moments, strict=True):
        for kind, colour in (("negative", WARM), ("positive", ACCENT)):
            _distribution(axes, arrays[moment, kind], edges, colour)
        axes.set_yticks([])
        axes.grid(False)
        heading(axes, f"{moment} training")
    panels[-1].set_xlabel("cosine similarity")
    return figure


def _distribution(axes: Axes, values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], colour: str) -> None:
    counts, _ = np.histogram(values, bins=edges)
    share = counts / max(1, len(values))
    first, last = np.flatnonzero(counts)[[0, -1]]  # no line along the empty rest
    share, edges = share[first : last + 1], edges[first : last + 2]
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.28)
    axes.stairs(share, edges, color=colour, linewidth=1.4)
    axes.plot([values.mean()] * 2, [0, share.max()], color=colour, linewidth=1, linestyle=(0, (2, 3)))


def heading(axes: Axes, text: str) -> None:
    """Write a panel's heading above its left end."""
    axes.set_title(text, loc="left", size=12, weight="bold", color=INK, pad=8)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a running mean over a twentieth of the run, centred, narrower at the ends so that they stay true."""
    half = max(1, len(values) // 40)
    return np.array([values[max(0, k - half) : k + half + 1].mean() for k in range(len(values))])
