"""Finds the cheapest search that reaches the wanted recall, and measures what others would give.

Queries are cut in two halves. One chooses the search parameters; on the other, which chose nothing, all that is told
is measured: queries that chose would measure too well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index_build.faiss_shape import graph, lists_of, refined
from index_build.recall import Recall, RecallProbe, summarise
from index_build.slot_search import SlotSearch

Float64s = NDArray[np.float64]
Setting = dict[str, int]

_LATENCY_QUERIES = 100
_REFINED = (2, 4, 8, 16, 32)
_MOST_EF = 1_024
_CURVE_BELOW, _CURVE_ABOVE = 16, 4  # the curve goes so many times below and above what was chosen


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one setting of the search gives."""

    search: Setting
    recall: Recall
    latency_ms: dict[str, float]
    queries_per_s: float

    def row(self) -> dict[str, Any]:
        """Return the form that a manifest's curve has."""
        return {
            "search": self.search,
            "recall": self.recall.value,
            "low": self.recall.low,
            "high": self.recall.high,
            "latency_ms": self.latency_ms["median"],
            "queries_per_s": self.queries_per_s,
        }


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The chosen setting, and its neighbours."""

    chosen: Measured
    curve: list[Measured]
    """From the cheapest on; the chosen one among them."""


def calibrate(searched: SlotSearch, probe: RecallProbe, wanted: float, queries_from: str) -> Calibration:
    """Choose the search parameters of an index, set them, and measure.

    Args:
        searched: the index; its parameters are those that were chosen afterwards.
        probe: queries with their true neighbours.
        wanted: recall to reach.
        queries_from: where the queries come from, for the record.
    """
    choosing, measuring = probe.every_second(0), probe.every_second(1)

    def shares(setting: Setting) -> Float64s:
        searched.set(setting)
        return choosing.hits(searched.search)

    search = choose_setting(searched, shares, wanted)
    curve = [measure(searched, measuring, setting, queries_from) for setting in settings_around(searched, search)]
    chosen = next(point for point in curve if point.search == search)
    searched.set(search)
    return Calibration(chosen=chosen, curve=curve)


def choose_setting(searched: SlotSearch, shares: Callable[[Setting], Float64s], wanted: float) -> Setting:
    """Return the cheapest setting that reaches the wanted recall by a standard error; without one, the most.

    The error is that of the recall as these queries measure it: a setting that meets the wanted recall exactly on
    them misses it on others half of the time.

    Args:
        searched: the index, to be set and timed.
        shares: found shares of each query's true neighbours, by setting.
        wanted: recall to reach.
    """
    name, most = effort(searched)
    if not name:
        return {}
    if wanted >= 1.0:  # no sample can promise it of other queries: only looking at everything does
        return {name: most, **({"k_factor": _REFINED[-1]} if refined(searched.index) is not None else {})}
    if refined(searched.index) is None:
        return {name: cheapest(lambda value: reaches(shares({name: value}), wanted), 1, most)}
    found: list[Setting] = []
    for factor in _REFINED:
        best: Setting = {name: most, "k_factor": factor}
        if not reaches(shares(best), wanted):
            continue
        value = cheapest(lambda v, factor=factor: reaches(shares({name: v, "k_factor": factor}), wanted), 1, most)  # type: ignore[misc]
        found.append({name: value, "k_factor": factor})
        if len(found) > 1 and found[-1][name] == found[-2][name]:
            break  # scoring more of them again finds nothing sooner
    if not found:
        return {name: most, "k_factor": _REFINED[-1]}
    # Probing costs what the lists hold, refining what it scores: fewest probes first, and of those fewest scores.
    return min(found, key=lambda setting: (setting[name], setting["k_factor"]))


def effort(searched: SlotSearch) -> tuple[str, int]:
    """Return the parameter that trades time for recall, and its most; an empty name for an exact search."""
    if graph(searched.index) is not None:
        return "efSearch", _MOST_EF
    lists = lists_of(searched.index)
    return ("nprobe", lists) if lists else ("", 0)


def reaches(shares: Float64s, wanted: float) -> bool:
    """Whether the mean is the wanted recall and a standard error more; where that is past 1, whether all is found."""
    error = float(shares.std(ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return bool(shares.mean() >= min(1.0, wanted + error))


def cheapest(enough: Callable[[int], bool], least: int, most: int) -> int:
    """Return the smallest number that is enough, by doubling and then halving the gap; `most` where none is known.

    More is taken to be no worse, which recall is but for noise.
    """
    low, high = least - 1, least
    while high < most and not enough(high):
        low, high = high, min(2 * high, most)
    while high - low > max(1, low // 16):  # finer than a sixteenth saves nothing that could be measured
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def settings_around(searched: SlotSearch, chosen: Setting) -> Iterator[Setting]:
    """Yield the chosen setting and powers of two about it, the cheapest first."""
    name, most = effort(searched)
    if not name:
        yield chosen
        return
    middle = chosen[name]
    powers = [2**power for power in range(most.bit_length())]
    values = {value for value in powers if middle <= value * _CURVE_BELOW and value <= middle * _CURVE_ABOVE}
    for value in sorted(values | {middle}):
        yield {**chosen, name: value}


def measure(searched: SlotSearch, probe: RecallProbe, setting: Setting, queries_from: str) -> Measured:
    """Measure recall, the time of one query, and queries a second."""
    searched.set(setting)
    shares = probe.hits(searched.search)  # also warms up what the times below would pay for
    begin = time.perf_counter()
    searched.search(probe.queries, probe.k)
    rate = len(probe.queries) / max(time.perf_counter() - begin, 1e-9)
    return Measured(
        search=setting,
        recall=summarise(shares, probe.k, queries_from),
        latency_ms=_latency_ms(searched, probe),
        queries_per_s=round(rate, 1),
    )


def _latency_ms(searched: SlotSearch, probe: RecallProbe) -> dict[str, float]:
    times = []
    for query in probe.queries[:_LATENCY_QUERIES]:
        begin = time.perf_counter()
        searched.search(query[None], probe.k)
        times.append(1e3 * (time.perf_counter() - begin))
    median, p95 = (float(np.percentile(times, q)) if times else 0.0 for q in (50, 95))
    return {"median": round(median, 4), "p95": round(p95, 4), "threads": faiss.omp_get_max_threads()}
