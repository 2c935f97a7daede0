"""What a quickstart ends with: metrics beside their baselines, `result.json`, `report.html`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.atomic import write_json
from data_shards.beir import BeirFolder
from data_shards.negatives import published_versions
from encoder.embed import embed_texts
from encoder.snapshot import load_encoder
from index_build.bm25 import bm25_run
from index_build.evaluate import dense_run, evaluate_run, paired_interval
from index_build.search import Searcher
from launch.report import write_report

if TYPE_CHECKING:
    from data_shards.docstrings import DocstringData
    from index_build.index_manifest import IndexManifest
    from launch.config import RunConfig
    from launch.local import Outcome

_DEPTH = 100
_EXAMPLES = 3
_HITS = 5


def finish(
    out: Path,
    config: RunConfig,
    data: DocstringData,
    outcome: Outcome,
    plain: Outcome | None,
    index: IndexManifest,
    *,
    began: float,
) -> dict[str, Any]:
    """Evaluate, show examples, write `result.json` and `report.html`.

    Args:
        out: the quickstart's folder.
        config: of the training.
        data: what it was trained on.
        outcome: the training.
        plain: the same without refresh, under --compare.
        index: over the corpus, by the trained encoder.
        began: when the quickstart did, on the monotonic clock.
    """
    run = outcome.run
    result: dict[str, Any] = {
        "seconds": 0.0,
        "pairs": data.queries["train"],
        "passages": data.passages,
        "steps": outcome.step,
        "world_size": config.run.ranks,
        "negatives_versions": len(published_versions(run.negatives)),
        **_metrics(data, outcome, plain),
        "index": {"factory": index.factory, "ntotal": index.ntotal, f"recall@{index.recall.k}": index.recall.value},
        "wandb_dir": str(run.root / "wandb"),
        "snapshot": str(run.final),
        "index_dir": str(out / "index"),
        "examples": _examples(out, outcome, data),
        "similarity": _similarity(outcome, data),
        "report": str(out / "report.html"),
    }
    result["seconds"] = round(time.monotonic() - began, 1)
    write_json(out / "result.json", {name: value for name, value in result.items() if name != "similarity"})
    about = (
        "A small bi-encoder that finds Python code by its docstring: trained, refreshed and indexed on this machine, "
        "tested on modules of the standard library that training never saw."
    )
    write_report(run.root, result, out / "report.html", title="Dipole quickstart", about=about, index=index.to_dict())
    shown: tuple[str, ...] = (
        "seconds",
        "pairs",
        "passages",
        "steps",
        "world_size",
        "negatives_versions",
        "metrics",
        "index",
    )
    shown += ("comparison",) if plain is not None else ()
    return {name: result[name] for name in (*shown, "examples", "wandb_dir", "snapshot", "index_dir", "report")}


def _metrics(data: DocstringData, outcome: Outcome, plain: Outcome | None) -> dict[str, Any]:
    """Return `metrics` of all systems on the test split and, where there are two trainings, their `comparison`."""
    beir = BeirFolder(data.beir)
    qrels, texts = beir.qrels("test"), beir.queries()
    queries = {name: texts[name] for name in qrels}
    snapshots = {"untrained": outcome.run.initial, "trained": outcome.run.final}
    if plain is not None:
        snapshots["no_refresh"] = plain.run.final
    runs = {"bm25": bm25_run(queries, beir.corpus(), _DEPTH)}
    for name, snapshot in snapshots.items():
        runs[name] = dense_run(load_encoder(snapshot), queries, beir.corpus(), _DEPTH)
    found: dict[str, Any] = {"metrics": {name: evaluate_run(run, qrels) for name, run in runs.items()}}
    if plain is not None:
        found["comparison"] = {"interval": list(paired_interval(runs["trained"], runs["no_refresh"], qrels))}
    return found


def _examples(out: Path, outcome: Outcome, data: DocstringData) -> list[dict[str, Any]]:
    """Search for three test queries, spread over the split: not chosen by how well they do."""
    beir = BeirFolder(data.beir)
    qrels, texts = beir.qrels("test"), beir.queries()
    names = sorted(qrels)
    chosen = [names[len(names) * (2 * k + 1) // (2 * _EXAMPLES)] for k in range(min(_EXAMPLES, len(names)))]
    found = Searcher(out / "index", outcome.run.final).search([texts[name] for name in chosen], _HITS)
    return [
        {
            "query": texts[name],
            "relevant": sorted(qrels[name]),
            "hits": [
                {"id": hit.id, "title": hit.title, "score": round(hit.score, 4), "relevant": hit.id in qrels[name]}
                for hit in hits
            ],
        }
        for name, hits in zip(chosen, found, strict=True)
    ]


def _similarity(outcome: Outcome, data: DocstringData) -> dict[str, dict[str, list[float]]]:
    """Score test queries against their own passage and against the next query's, before and after training."""
    beir = BeirFolder(data.beir)
    qrels, texts = beir.qrels("test"), beir.queries()
    passages = {passage.id: passage.content for passage in beir.corpus()}
    names = sorted(qrels)
    own = [passages[next(iter(qrels[name]))] for name in names]
    similarity = {}
    for moment, snapshot in (("before", outcome.run.initial), ("after", outcome.run.final)):
        encoder = load_encoder(snapshot)
        query_qD = embed_texts(encoder, [texts[name] for name in names], side="query")
        passage_qD = embed_texts(encoder, own, side="passage")
        similarity[moment] = {
            "positive": np.einsum("qd,qd->q", query_qD, passage_qD).round(4).tolist(),
            "negative": np.einsum("qd,qd->q", query_qD, np.roll(passage_qD, 1, axis=0)).round(4).tolist(),
        }
    return similarity
