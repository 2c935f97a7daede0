"""Writes `report.html`: one file that shows a run, readable offline and on a phone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_shards.atomic import atomic_path
from launch.pages import render_page
from launch.report_data import (
    METRIC_NAMES,
    SYSTEM_NAMES,
    History,
    duration,
    known_systems,
    missed,
    oldest_use,
    read_history,
    refresh_verdict,
    separation,
    summary,
)
from launch.report_figures import draw_baselines, draw_similarity, draw_training, inline_svg


def write_report(
    run_dir: Path,
    result: Mapping[str, Any],
    out: Path,
    *,
    title: str = "Dipole run",
    about: str = "",
    index: Mapping[str, Any] | None = None,
    commands: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Write one self-contained HTML file: no script, font, style or picture comes from elsewhere.

    Args:
        run_dir: its `metrics.jsonl` gives the curves and the refreshes; a missing file leaves them out.
        result: what `result.json` holds. Optional on top: `examples`, a list of `{"query", "relevant": [ids],
            "hits": [{"id", "title", "score", "relevant"}]}`; `similarity`, `{"before"|"after": {"positive":
            [cosines], "negative": [cosines]}}`; `comparison.interval`, see `refresh_verdict`.
        out: the file; replaced atomically.
        title: the page's heading.
        about: a sentence or two on what was trained on what.
        index: the manifest of the index, which knows more than `result["index"]`.
        commands: what to do next, as (what it does, command line); by default what `result`'s paths allow.
    """
    history = read_history(run_dir / "metrics.jsonl")
    page = render_page(
        "report.html",
        title=title,
        about=about,
        summary=summary(result.get("metrics", {})),
        tiles=_tiles(result),
        facts=_facts(result),
        figures=_figures(result, history),
        separations={
            moment: separation(values["positive"], values["negative"])
            for moment, values in result.get("similarity", {}).items()
        },
        verdict=refresh_verdict(result, history),
        refreshes=_refresh_table(history),
        index=_index_rows(index or result.get("index", {})),
        examples=[{**example, "missed": missed(example)} for example in result.get("examples", [])],
        commands=default_commands(result) if commands is None else commands,
    )
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def default_commands(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader can do with this run's snapshot, index and W&B folder, as (what it does, command)."""
    commands = []
    snapshot, index, wandb_dir = (result.get(key) for key in ("snapshot", "index_dir", "wandb_dir"))
    if snapshot and index:
        line = ["dipole", "search", "--index", str(index), "--model", str(snapshot), "parse a date from a string"]
        commands.append(("Search the corpus", shlex.join(line)))
    if snapshot:
        code = f"from sentence_transformers import SentenceTransformer; SentenceTransformer({str(snapshot)!r})"
        commands.append(("Load the encoder anywhere else", shlex.join(["python", "-c", code])))
    if wandb_dir:
        commands.append(("Send the run to Weights & Biases", shlex.join(["wandb", "sync", str(wandb_dir)])))
    return commands


def _tiles(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the headline: nDCG@10 of each system, the trained one first."""
    metrics = result.get("metrics", {})
    systems = [name for name in ("trained", "untrained", "bm25", "no_refresh") if name in metrics]
    return [
        {"name": SYSTEM_NAMES[name], "value": f"{metrics[name]['ndcg@10']:.3f}", "kind": name} for name in systems
    ]


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the run's plain numbers, those that there are."""
    facts = []
    if "seconds" in result:
        facts.append(("time", duration(result["seconds"])))
    for key, name in (("pairs", "pairs"), ("passages", "passages"), ("steps", "steps"), ("world_size", "ranks")):
        if key in result:
            facts.append((name, f"{result[key]:,}"))
    if "negatives_versions" in result:
        facts.append(("refreshes", str(result["negatives_versions"])))
    return facts


def _figures(result: Mapping[str, Any], history: History) -> dict[str, Markup]:
    """Return the figures for which there is data, as inline SVG."""
    figures = {}
    metrics, similarity = result.get("metrics", {}), result.get("similarity", {})
    if metrics:
        numbers = "; ".join(
            f"{SYSTEM_NAMES.get(system, system)}: "
            + ", ".join(
                f"{METRIC_NAMES[key]} {value:.3f}" for key, value in metrics[system].items() if key in METRIC_NAMES
            )
            for system in known_systems(metrics)
        )
        figures["baselines"] = inline_svg(
            lambda width: draw_baselines(metrics, width), name="baselines", label=numbers
        )
    if history.steps:
        last = history.steps[-1]
        label = f"Training loss, {last['loss']:.3f} at step {last['step']}, and dev nDCG@10 over steps"
        figures["training"] = inline_svg(lambda width: draw_training(history, width), name="training", label=label)
    if similarity:
        label = "Distributions of the cosine similarity of queries with right and wrong passages"
        figures["similarity"] = inline_svg(
            lambda width: draw_similarity(similarity, width), name="similarity", label=label
        )
    return figures


def _refresh_table(history: History) -> dict[str, Any]:
    """Return the refreshes as columns, their figures as rows in groups: those that occur in the events."""
    refreshes = history.refreshes

    def rows_of(group: str, how: str) -> dict[str, list[str]]:
        keys = dict.fromkeys(key for row in refreshes for key in row.get(group, {}))
        return {key: [_cell(row.get(group, {}).get(key), how) for row in refreshes] for key in keys}

    def rows_at(names: Mapping[str, str], how: str) -> dict[str, list[str]]:
        found = {key: name for key, name in names.items() if any(key in row for row in refreshes)}
        return {name: [_cell(row.get(key), how) for row in refreshes] for key, name in found.items()}

    ages = [oldest_use(history, row["version"]) for row in refreshes]
    groups = {
        "Steps": rows_at({"from_step": "used from", "to_step": "until"}, ",")
        | {"age at last use": [_cell(age, ",") for age in ages]},
        "Seconds": rows_of("seconds", ".1f") | rows_at({"waited_s": "the trainer waited"}, ".1f"),
        "Neighbours, by what became of them": rows_of("filters", ","),
        "Mean similarity": rows_at({"positive_score": "to positives", "negative_score": "to mined negatives"}, ".3f"),
    }
    return {"versions": [f"v{row['version']}" for row in refreshes], "groups": groups}


def _cell(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)


def _index_rows(index: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what is known of the index, as (name, value, note)."""
    rows = []
    for key in (key for key in index if key.startswith("recall@")):
        recall = index[key] if isinstance(index[key], Mapping) else {"value": index[key]}
        note = f"95% interval {recall['low']:.3f} – {recall['high']:.3f}" if "low" in recall else ""
        rows.append((f"{key} against exact search", f"{recall['value']:.3f}", note))
    if latency := index.get("latency_ms"):
        note = f"95% within {latency['p95']:.2f} ms, threads {latency['threads']}"
        rows.append(("median time of a query", f"{latency['median']:.2f} ms", note))
    if "factory" in index:
        note = ", ".join(f"{key} {value}" for key, value in index.get("search", {}).items())
        rows.append(("FAISS factory", str(index["factory"]), note))
    if "ntotal" in index:
        note = f"{index['dim']} dimensions" if "dim" in index else ""
        rows.append(("passages", f"{index['ntotal']:,}", note))
    return rows
