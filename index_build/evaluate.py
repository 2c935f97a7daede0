"""Retrieval quality on a BEIR folder: the encoder beside its baselines, by exact search and a metrics library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG
from numpy.typing import NDArray

from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from data_shards.qrels import Qrels, Run, untied
from data_shards.samples import Passage
from encoder.embed import Precision, embed_texts
from encoder.model import Encoder, reinitialised
from encoder.snapshot import load_encoder
from index_build.bm25 import bm25_run
from index_build.exact import exact_search

Metrics = dict[str, float]
Progress = Callable[[int, int], None]

MODEL, BM25, UNTRAINED = "model", "bm25", "untrained"
BASELINES = (BM25, UNTRAINED)

_MEASURES = {"ndcg@10": nDCG @ 10, "mrr@10": RR @ 10, "recall@100": R @ 100}
_DEPTH = 100
_BLOCK_PASSAGES = 8_192
_UNTRAINED_SEED = 0
_RESAMPLES = 2_000


def evaluate_run(run: Run, qrels: Qrels) -> Metrics:
    """Return nDCG@10, MRR@10 and Recall@100, averaged over the judged queries.

    A judged query that the run does not answer counts as 0.
    """
    judged = {query: grades for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    if not judged:
        raise UserError("no query has a relevant passage; wanted judgements with a grade above 0")
    values = ir_measures.calc_aggregate(list(_MEASURES.values()), judged, untied(run))
    return {name: float(values[measure]) for name, measure in _MEASURES.items()}


def paired_interval(run: Run, other: Run, qrels: Qrels, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the difference in nDCG@10, `run` minus `other`, over the judged queries.

    Queries are resampled in pairs: what is hard for one system is mostly hard for the other. It says what other
    queries might give, not what another training run would.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3, percentile interval.
    """
    measure = _MEASURES["ndcg@10"]
    by_query = []
    for answers in (run, other):
        values = {row.query_id: row.value for row in ir_measures.iter_calc([measure], qrels, untied(answers))}
        by_query.append(np.array([values.get(query, 0.0) for query in qrels]))
    difference = by_query[0] - by_query[1]
    dice = np.random.default_rng(seed)
    means = [difference[dice.integers(len(difference), size=len(difference))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def dense_run(
    encoder: Encoder,
    queries: Mapping[str, str],
    corpus: Iterable[Passage],
    k: int = _DEPTH,
    *,
    precision: Precision = "float32",
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Return the k nearest passages of each query by exact search.

    The corpus is embedded and searched block by block; in memory are one block and the results.

    Args:
        encoder: of queries and passages.
        queries: text by id.
        corpus: passages, read once.
        k: passages a query.
        precision: in which the encoder computes.
        progress: called with the passages done, after each block.
    """
    query_vectors = embed_texts(encoder, list(queries.values()), side="query", precision=precision)
    ids: list[str] = []

    def blocks() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for block in _in_blocks(corpus, _BLOCK_PASSAGES):
            first = len(ids)
            ids.extend(passage.id for passage in block)
            texts = [passage.content for passage in block]
            yield first, embed_texts(encoder, texts, side="passage", precision=precision)
            if progress:
                progress(len(ids))

    found = exact_search(query_vectors, blocks(), k)
    return {
        query: {
            ids[row]: float(score)
            for row, score in zip(found.rows[at].tolist(), found.scores[at].tolist(), strict=True)
            if row >= 0
        }
        for at, query in enumerate(queries)
    }


def evaluate_beir(
    model: Encoder | Path | None,
    beir_dir: Path,
    split: str = "test",
    baselines: Sequence[str] = (),
    *,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> dict[str, Metrics]:
    """Measure an encoder and its baselines on one split of a BEIR folder.

    Args:
        model: an encoder or the folder of one; None measures baselines alone.
        beir_dir: the data set.
        split: which judgements.
        baselines: any of `bm25` and `untrained` (the model's architecture with fresh weights).
        precision: in which the encoder computes.
        progress: called with (passages done, passages in all), over all encoders.

    Returns:
        `ndcg@10`, `mrr@10` and `recall@100` under `model` and under each baseline's name.

    Raises:
        UserError: the data set, split or model is not there; a baseline is unknown, or needs a model.
    """
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"no baseline {unknown[0]!r}; there are: {', '.join(BASELINES)}")
    if UNTRAINED in baselines and model is None:
        raise UserError("baseline 'untrained' takes its architecture from a model; give one")
    data = BeirFolder(beir_dir)
    qrels = data.qrels(split)
    queries = _judged_queries(data, qrels, split)
    encoders: dict[str, Encoder] = {}
    if model is not None:
        encoders[MODEL] = load_encoder(model) if isinstance(model, Path) else model
    if UNTRAINED in baselines:
        encoders[UNTRAINED] = reinitialised(encoders[MODEL], seed=_UNTRAINED_SEED)
    results: dict[str, Metrics] = {}
    passages = sum(1 for _ in data.corpus()) if progress else 0
    for number, (name, encoder) in enumerate(encoders.items()):

        def step(done: int, before: int = number * passages) -> None:
            if progress:
                progress(before + done, len(encoders) * passages)

        run = dense_run(encoder, queries, data.corpus(), precision=precision, progress=step)
        results[name] = evaluate_run(run, qrels)
    if BM25 in baselines:
        results[BM25] = evaluate_run(bm25_run(queries, data.corpus(), _DEPTH), qrels)
    return results


def _judged_queries(data: BeirFolder, qrels: Qrels, split: str) -> dict[str, str]:
    texts = data.queries()
    missing = [query for query in qrels if query not in texts]
    if missing:
        raise UserError(
            f"{data.folder}: split {split} judges query {missing[0]!r} and {len(missing) - 1} others that "
            "queries.jsonl does not hold; take both files from the same release"
        )
    return {query: texts[query] for query in qrels}


def _in_blocks(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    iterator = iter(passages)
    while block := list(islice(iterator, size)):
        yield block
