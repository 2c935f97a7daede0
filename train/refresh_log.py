"""What a run shows of a refresh: an event with its numbers, and a table of a few queries with what was mined."""

from __future__ import annotations

from typing import Any

from data_shards.errors import UserError
from data_shards.negatives import NegativesManifest, NegativesVersion
from train.tracker import Tracker

SAMPLE_COLUMNS = ("query", "positive", "positive_score", "negative", "negative_score", "teacher")
_SEARCHING = ("index", "search")


def refresh_values(manifest: NegativesManifest) -> dict[str, Any]:
    """Return what is logged of a version, as JSON holds it; nested numbers are shown under `group/name`.

    Returns:
        `version`, `from_step`, `to_step`, `queries` (with negatives), `sources`, `seconds` by step and
        `search_share` of them, `filters` by name and `filter_share`, `positive_score`, `negative_score`, `index`, and
        the manifest's statistics: `gap`, `still_hard`, `false_negative_share`, …; what it lacks is left out.
    """
    judged, taken = sum(manifest.filters.values()), sum(manifest.seconds.values())
    statistics = {name: value for name, value in manifest.statistics.items() if name != "queries"}
    return {
        "version": manifest.version,
        "from_step": manifest.from_step,
        "to_step": manifest.to_step,
        "queries": sum(shard.samples for shard in manifest.shards),
        "sources": ", ".join(manifest.sources),
        "seconds": manifest.seconds,
        "search_share": sum(manifest.seconds.get(name, 0.0) for name in _SEARCHING) / taken if taken else 0.0,
        "filters": manifest.filters,
        "filter_share": {name: count / judged for name, count in manifest.filters.items()} if judged else {},
        **{f"{name}_score": value for name, value in manifest.scores.items()},
        "index": manifest.index,
        "asked_queries": manifest.statistics.get("queries", 0),
        **statistics,
    }


def log_refresh(
    tracker: Tracker,
    version: NegativesVersion,
    *,
    step: int,
    waited_s: float,
    age_steps: int,
    waited_share: float = 0.0,
) -> None:
    """Log the `refresh` event of a version that comes into use, and a table of its sample.

    Args:
        tracker: of the run.
        version: opened.
        step: from which on it is used.
        waited_s: how long the trainer stood still for it.
        age_steps: of its snapshot, at that step.
        waited_share: of the time since the refresh before.
    """
    times = {"waited_s": waited_s, "waited_share": waited_share, "age_steps": age_steps}
    values = {**refresh_values(version.manifest), **times}
    tracker.log("refresh", step, values)
    if rows := _sample_rows(version):
        tracker.table("refresh/sample", step, SAMPLE_COLUMNS, rows)


def _sample_rows(version: NegativesVersion) -> list[list[Any]]:
    """Return a row for each sampled query and negative; a query without any has a row too."""
    rows: list[list[Any]] = []
    try:
        for sampled in version.sample():
            first: dict[str, Any] = next(iter(sampled["positives"]), {})
            head = [sampled["query"], _content(first), first.get("score")]
            rows += [
                [*head, _content(negative), negative.get("score"), negative.get("teacher")]
                for negative in sampled["negatives"] or [{}]
            ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{version.folder / 'sample.json'} holds no sample ({error!r}); mine anew") from None
    return rows


def _content(passage: dict[str, Any]) -> str:
    return " ".join(part for part in (passage.get("title"), passage.get("text")) if part)
