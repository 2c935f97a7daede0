"""Builds a FAISS index over an embedding set, chooses its search parameters, and measures its recall."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_dir, sha256_file, write_json
from data_shards.errors import UserError
from data_shards.permutation import permute, round_keys
from index_build.embedding_set import EmbeddingSet
from index_build.exact import Neighbours
from index_build.gpu import Device, Layout
from index_build.index_version import (
    IDS_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    IndexManifest,
    faiss_search,
    make_current,
    set_search_parameters,
    version_dir,
    write_ids,
)
from index_build.recall import RecallProbe, Search, summarise

_log = logging.getLogger(__name__)

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]

_MIN_ROWS_PER_LIST = 39  # fewer, and FAISS's k-means warns that its centroids mean little
_LATENCY_QUERIES = 100
_CPP_PLACE = re.compile(r"^Error in .*\.(cpp|h):\d+: (Error: )?")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How an index is built."""

    factory: str = "auto"
    """FAISS factory string. `auto`: exact (`Flat`) up to `flat_up_to` rows, then `IVF…,SQfp16`: see `auto_factory`"""
    flat_up_to: int = 5_000
    """Largest corpus that `auto` searches exactly."""
    wanted_recall: float = 0.95
    """The cheapest search parameters that reach it are chosen."""
    recall_k: int = 10
    """Neighbours at which recall is measured."""
    recall_queries: int = 1_000
    """Most queries used: half of them choose the search parameters, the other half measure."""
    train_rows_per_list: int = 64
    """Sampled vectors for each list that k-means is trained on; at least 10,000 in all where there are so many."""
    device: Device = "auto"
    """Where mining searches: `auto` takes the GPUs if there are any. Building and measuring are done on the CPU."""
    gpu_layout: Layout = "replicate"
    """On several GPUs: the whole index on each, or `shard`: a part of it."""
    seed: int = 0
    """Of the samples."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.wanted_recall <= 1:
            raise UserError(f"index.wanted_recall is {self.wanted_recall}, wanted above 0 and at most 1")
        if self.recall_k < 1 or self.recall_queries < 2 or self.train_rows_per_list < 1:
            raise UserError("index.recall_k and train_rows_per_list must be at least 1, recall_queries at least 2")
        if "IDMap" in self.factory:
            raise UserError(
                f"index.factory {self.factory!r}: rows number themselves, and an ID map over IVF mixes ids up; "
                "leave IDMap out"
            )


def build_index(
    vectors: EmbeddingSet,
    root: Path,
    config: IndexConfig,
    queries: Float32s | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexManifest:
    """Build the next version of an index and make it current.

    Args:
        vectors: what to index; every file is verified first.
        root: folder of all versions.
        config: how.
        queries: [Q, dim] to choose search parameters and to measure recall with; without them, sampled rows of
            the corpus stand in, each left out of its own result.
        progress: called with (vectors added, vectors in all).

    Returns:
        The manifest of the new version.

    Raises:
        UserError: the set is damaged, or FAISS cannot build this factory on it.
    """
    vectors.verify()
    factory = auto_factory(vectors.rows, config) if config.factory == "auto" else config.factory
    version = next_version(root)
    with atomic_dir(version_dir(root, version)) as folder:
        index, training = _fill(vectors, factory, config, progress)
        probe, queries_from = _probe(vectors, config, queries)
        # Two halves: queries that chose the search parameters would measure too well.
        search = _tune(index, probe.every_second(0), config)
        measure = probe.every_second(1)
        recall = summarise(measure.hits(_search_of(index)), config.recall_k, queries_from)
        faiss.write_index(index, str(folder / INDEX_NAME))
        write_ids(folder / IDS_NAME, vectors.ids)
        manifest = IndexManifest(
            version=version,
            factory=factory,
            metric="inner_product",
            dim=vectors.dim,
            ntotal=index.ntotal,
            search=search,
            recall=recall,
            latency_ms=_latency_ms(index, measure.queries, config.recall_k),
            training=training,
            embedding_set={"path": str(vectors.folder.absolute()), "hash": vectors.hash},
            snapshot=vectors.snapshot,
            corpus=vectors.corpus,
            versions={"faiss": faiss.__version__, "numpy": np.__version__},
            files={name: sha256_file(folder / name) for name in (INDEX_NAME, IDS_NAME)},
        )
        write_json(folder / MANIFEST_NAME, manifest.to_dict())
    make_current(root, version)
    if recall.value < config.wanted_recall:
        _log.warning(
            "%s reaches recall@%d %.3f, wanted %.3f; a finer factory (SQfp16, Flat) would",
            *(factory, recall.k, recall.value, config.wanted_recall),
        )
    return manifest


def auto_factory(rows: int, config: IndexConfig) -> str:
    """Choose a factory by the corpus's size.

    Up to `flat_up_to` rows the exact search is quick and needs no tuning. Above, lists about twice the square root
    of the rows in number, a power of two, balance finding the lists against scanning them, and never get so many
    that k-means would see too few rows for each. Their codes are float16, as the embedding set is: nothing is lost,
    so enough probes reach any recall. (8-bit codes halve the memory, and on a barely trained encoder, whose vectors
    lie close together, stopped at recall@10 0.92.)
    """
    if rows <= config.flat_up_to:
        return "Flat"
    lists: int = 2 ** round(math.log2(2 * math.sqrt(rows)))
    while lists > 1 and rows < lists * _MIN_ROWS_PER_LIST:
        lists //= 2
    return f"IVF{lists},SQfp16"


def sampled_rows(vectors: EmbeddingSet, wanted: int, seed: int, purpose: str) -> Int64s:
    """Return distinct row numbers, sorted: a sample without replacement that depends on the arguments alone."""
    size = min(wanted, vectors.rows)
    return np.sort(permute(np.arange(size), vectors.rows, round_keys(f"{vectors.hash} {purpose}\n{seed}")))


def next_version(root: Path) -> int:
    """Return the number after the highest that was ever given, whole or not."""
    numbers = [int(place.name[1:]) for place in root.glob("v*") if place.name[1:].isdigit()]
    return max(numbers, default=0) + 1


def _fill(
    vectors: EmbeddingSet, factory: str, config: IndexConfig, progress: Callable[[int, int], None] | None
) -> tuple[faiss.Index, dict[str, int]]:
    """Train and fill an index.

    Rows are added in order, so FAISS's own ids are row numbers, whatever the factory.
    """
    training: dict[str, int] = {}
    try:
        index = faiss.index_factory(vectors.dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            wanted = max(config.train_rows_per_list * _lists(index), 10_000)
            sample = sampled_rows(vectors, wanted, config.seed, "training")
            index.train(vectors.gather(sample))
            training = {"rows": len(sample), "seed": config.seed}
    except RuntimeError as error:  # FAISS's only exception; it names C++ source before the reason
        reason = _CPP_PLACE.sub("", str(error).strip().splitlines()[0])
        raise UserError(
            f"index.factory {factory!r} cannot be built on {vectors.rows} vectors of {vectors.dim}: {reason}"
        ) from error
    for _, block in vectors.blocks():
        index.add(block)
        if progress:
            progress(index.ntotal, vectors.rows)
    return index, training


def _lists(index: faiss.Index) -> int:
    inverted = faiss.try_extract_index_ivf(index)
    return int(inverted.nlist) if inverted is not None else 0


def _probe(vectors: EmbeddingSet, config: IndexConfig, queries: Float32s | None) -> tuple[RecallProbe, str]:
    """Choose the queries, spread evenly over those given, and find their true neighbours."""
    if queries is not None and len(queries) >= 2:
        used = np.linspace(0, len(queries) - 1, min(len(queries), config.recall_queries)).astype(np.int64)
        return RecallProbe.prepare(vectors, queries[used], config.recall_k), "given"
    rows = sampled_rows(vectors, config.recall_queries, config.seed, "recall")
    probe = RecallProbe.prepare(vectors, vectors.gather(rows), config.recall_k, rows)
    return probe, "corpus rows, each without itself"


def _search_of(index: faiss.Index) -> Search:
    def search(queries: Float32s, k: int) -> Neighbours:
        return faiss_search(index, queries, k)

    return search


def _tune(index: faiss.Index, probe: RecallProbe, config: IndexConfig) -> dict[str, int]:
    """Set the smallest power of two as nprobe that reaches the wanted recall; without one, all lists."""
    lists = _lists(index)
    if lists == 0:
        return {}
    nprobe = 1
    set_search_parameters(index, {"nprobe": nprobe})
    while nprobe < lists and probe.hits(_search_of(index)).mean() < config.wanted_recall:
        nprobe = min(2 * nprobe, lists)
        set_search_parameters(index, {"nprobe": nprobe})
    return {"nprobe": nprobe}


def _latency_ms(index: faiss.Index, queries: Float32s, k: int) -> dict[str, float]:
    times = []
    for query in queries[:_LATENCY_QUERIES]:
        begin = time.perf_counter()
        index.search(query[None], k)
        times.append(1e3 * (time.perf_counter() - begin))
    median, p95 = (float(np.percentile(times, q)) if times else 0.0 for q in (50, 95))
    return {"median": round(median, 4), "p95": round(p95, 4), "threads": faiss.omp_get_max_threads()}
