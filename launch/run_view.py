"""What a run looks like at this moment, in facts and in lines."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from launch.metrics_tail import last_rows
from train.heartbeats import furthest_behind, read_heartbeats
from train.run_folder import RunFolder

_BARS = "▁▂▃▄▅▆▇█"
_SILENT_S = 60.0
_RECENT = 50
_MOST_RANKS = 4_096


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One look at a run."""

    facts: dict[str, Any]
    """As `--json` prints them."""
    losses: list[float]
    """Of the newest steps."""
    dev: list[float]
    """The first dev metric of the newest evaluations."""

    @property
    def is_over(self) -> bool:
        """Whether the run is done, has failed, or was stopped."""
        return self.facts["state"] in ("done", "failed", "stopped")

    def text(self, width: int) -> str:
        """Return it in lines of at most this width."""
        facts = self.facts
        lines = [f"{facts['run']}", f"  {facts['state']}{': ' + facts['why'] if facts.get('why') else ''}"]
        if "step" in facts:
            share = facts["step"] / facts["steps"]
            bar = _bar(share, max(10, min(50, width - 50)))
            left = f", {_duration(facts['left_s'])} left" if facts.get("left_s") else ""
            lines.append(f"  step      {facts['step']} of {facts['steps']}  {bar} {share:.0%}{left}")
            lines.append(f"  loss      {facts['loss']:.4g}  {_spark(self.losses, max(10, width - 24))}")
        if "dev" in facts:
            named = ", ".join(f"{name} {value:.4f}" for name, value in facts["dev"].items())
            lines.append(f"  dev       {named}  {_spark(self.dev, max(10, width - 14 - len(named)))}")
        if "pairs_per_s" in facts:
            lines.append(
                f"  speed     {facts['pairs_per_s']:.0f} pairs/s, {facts['tokens_per_s']:.0f} tokens/s, "
                f"{facts['data_wait_share']:.0%} waiting for data, {facts['peak_memory_gib']:.2f} GiB"
            )
        if facts.get("negatives_version"):
            lines.append(
                f"  negatives version {facts['negatives_version']}, {facts['negatives_age_steps']} steps old"
                + (f"; mining it took {facts['refresh_s']:.1f} s" if "refresh_s" in facts else "")
            )
        if facts.get("behind"):
            lines.append(f"  ranks     {facts['behind']}")
        return "\n".join(line[:width] for line in lines)


def look(run: RunFolder, now: float | None = None) -> RunView:
    """Read a run folder.

    Args:
        run: the folder.
        now: seconds since 1970, by default this moment.
    """
    now = time.time() if now is None else now
    rows = last_rows(run.metrics)
    steps = [row for row in rows if row["event"] == "step"]
    evaluations = [row for row in rows if row["event"] == "dev"]
    refreshes = [row for row in rows if row["event"] == "refresh"]
    facts: dict[str, Any] = {"run": str(run.root), **_state(run, rows, now)}
    if steps:
        newest = steps[-1]
        facts |= {"step": newest["step"] + 1, "steps": newest["steps"], "loss": newest["loss"]}
        for name in ("pairs_per_s", "tokens_per_s", "data_wait_share", "peak_memory_gib", "epoch"):
            facts[name] = newest[name]
        for name in ("negatives_version", "negatives_age_steps"):
            facts[name] = newest.get(name, 0)
        recent = steps[-_RECENT:]
        if facts["state"] in ("running", "silent") and len(recent) > 1:
            per_step = (recent[-1]["time"] - recent[0]["time"]) / (len(recent) - 1)
            facts["left_s"] = round(per_step * (facts["steps"] - facts["step"]), 1)
    if evaluations:
        facts["dev"] = {name: value for name, value in evaluations[-1].items() if "@" in name}
    if refreshes:
        facts["refresh_s"] = round(sum(refreshes[-1]["seconds"].values()), 1)
    if facts["state"] in ("running", "silent") and (behind := _behind(run)):
        facts["behind"] = behind
    first = next(iter(facts.get("dev", {})), "")
    return RunView(
        facts=facts,
        losses=[row["loss"] for row in steps],
        dev=[row[first] for row in evaluations if first in row],
    )


def _state(run: RunFolder, rows: list[dict[str, Any]], now: float) -> dict[str, Any]:
    """Say what the run is doing, by the files that say so."""
    if run.done.exists():
        return {"state": "done"}
    newest = rows[-1]["time"] if rows else 0.0
    for name, path, key in (("failed", run.failure, "cause"), ("stopped", run.stopped, "reason")):
        if path.exists():
            return {"state": name, "why": str(json.loads(path.read_text(encoding="utf-8")).get(key, ""))}
    if run.mining.exists():
        return {"state": "mining"}
    if not rows:
        return {"state": "starting"}
    if now - newest > _SILENT_S:
        return {"state": "silent", "why": f"nothing logged for {_duration(now - newest)}"}
    return {"state": "running"}


def _behind(run: RunFolder) -> str:
    """Say which rank the others wait for; nothing where there are no heartbeats."""
    world = len(list((run.root / "heartbeats").glob("rank-*.json")))
    if not 1 < world <= _MOST_RANKS:
        return ""
    return furthest_behind(read_heartbeats(run, world), world, silent_s=_SILENT_S)[1]


def _spark(values: list[float], width: int) -> str:
    """Draw values as a row of bars: the newest ones, means of several where there are more than fit."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    size = -(-len(finite) // width)
    means = [sum(finite[at : at + size]) / len(finite[at : at + size]) for at in range(0, len(finite), size)]
    low, high = min(means), max(means)
    spread = (high - low) or 1.0
    return "".join(_BARS[int((value - low) / spread * (len(_BARS) - 1))] for value in means)


def _bar(share: float, width: int) -> str:
    full = int(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def _duration(seconds: float) -> str:
    """Say a duration as people do."""
    seconds = int(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
