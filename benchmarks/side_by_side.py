"""Two sides, measured in turn in one run and compared by ratio: the machines are shared and noisy."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """Values of one side, one a round."""

    values: list[float]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    def spread(self) -> str:
        """Return median, least and most."""
        return f"{self.median:,.0f} ({min(self.values):,.0f} to {max(self.values):,.0f})"


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Measured]:
    """Call every side once a round; the first round warms caches up and is not counted."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            value = measure()
            if number:
                values[name].append(value)
    return {name: Measured(found) for name, found in values.items()}


def ratios(ours: Measured, theirs: Measured) -> dict[str, float]:
    """Return median, least and most of the ratio, round by round."""
    found = [mine / other for mine, other in zip(ours.values, theirs.values, strict=True)]
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def machine() -> str:
    """Return what the figures were measured on."""
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} CPUs, {model}, Python {platform.python_version()}"


def show(title: str, rows: Mapping[str, str], answer: Mapping[str, Any], as_json: bool) -> None:
    """Print a table for people, or one JSON object."""
    if as_json:
        json.dump({"title": title, "machine": machine(), **answer}, sys.stdout)
        print()
        return
    print(f"{title}\n{machine()}")
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
