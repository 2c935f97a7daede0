"""Builds a FAISS index over an embedding set, chooses its search parameters, and measures its recall."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_dir, sha256_file
from data_shards.npy import npy_bytes
from index_build.calibration import Calibration, calibrate
from index_build.embedding_set import EmbeddingSet
from index_build.index_choice import budget_bytes, choose
from index_build.index_config import IndexConfig
from index_build.index_fill import Filling, Progress, Workers, drop_work, fill, room_on, sampled_rows
from index_build.index_manifest import IndexManifest, write_manifest
from index_build.index_rows import IndexedRows, gather, write_ids
from index_build.index_version import (
    IDS_NAME,
    INDEX_NAME,
    LIST_SIZES_NAME,
    LISTS_NAME,
    QUERIES_NAME,
    make_current,
    next_version,
    one_writer,
    version_dir,
)
from index_build.index_wear import SAMPLE_ROWS, wear_of
from index_build.recall import RecallProbe
from index_build.slot_search import SlotSearch
from index_build.slots import SLOTS_NAME, Slots

__all__ = ["IndexConfig", "build_index"]  # the config is part of the call

_log = logging.getLogger(__name__)

Float32s = NDArray[np.float32]
Report = Callable[[IndexManifest, Path], None]


def build_index(
    vectors: EmbeddingSet,
    root: Path,
    config: IndexConfig,
    queries: Float32s | None = None,
    progress: Progress | None = None,
    *,
    workers: Workers | None = None,
    report: Report | None = None,
) -> IndexManifest:
    """Build the next version of an index and make it current.

    A build that is killed leaves its trained index and its finished chunks; the next one over the same vectors, with
    the same config, goes on from there.

    Args:
        vectors: what to index; every file is verified first.
        root: folder of all versions.
        config: how.
        queries: [Q, dim] to choose search parameters and to measure recall with; without them, sampled rows of
            the corpus stand in, each left out of its own result.
        progress: called with (vectors added, vectors in all).
        workers: who adds the vectors; by default this process.
        report: given the manifest and the folder before they are published, to put a page beside them.

    Returns:
        The manifest of the new version.

    Raises:
        UserError: the set is damaged, FAISS cannot build this factory on it, it does not fit, or a disk is full.
    """
    vectors.verify()
    budget = budget_bytes(config)
    choice = choose(vectors.rows, vectors.dim, config, budget)
    _log.info("%s", choice.why)
    job = Filling(
        vectors=vectors,
        choice=choice,
        config=config,
        budget=budget,
        workers=workers or Workers(),
        progress=progress,
    )
    seconds: dict[str, float] = {}
    root.mkdir(parents=True, exist_ok=True)
    with one_writer(root), room_on(root):
        version = next_version(root)
        with atomic_dir(version_dir(root, version)) as folder:
            with timed(seconds, "fill"):
                index, training = fill(job, root / f".work-{job.key()}", folder)
            with timed(seconds, "calibrate"):
                probe, queries_from = prepare_probe(vectors, config, queries)
                searched = SlotSearch(index)
                found = calibrate(searched, probe, config.wanted_recall, queries_from)
            sample = gather(vectors, sampled_rows(vectors, SAMPLE_ROWS, config.seed, "wear"))
            slots = Slots.fresh(vectors.rows)
            with timed(seconds, "write"):
                files = write_files(folder, index, vectors, slots, queries if queries_from == "given" else None)
            manifest = replace(
                made_of(vectors, found, config.wanted_recall),
                version=version,
                factory=choice.factory,
                ntotal=vectors.rows,
                training=training,
                files=files,
                choice=choice.why,
                on_disk=choice.on_disk,
                wear=wear_of(index, slots, {}, sample, 0),
                seconds=seconds,
            )
            publish_into(folder, manifest, report)
        make_current(root, version)
        drop_work(root)
    warn(manifest)
    return manifest


def prepare_probe(
    vectors: EmbeddingSet, config: IndexConfig, queries: Float32s | None, rows: IndexedRows | None = None
) -> tuple[RecallProbe, str]:
    """Choose the queries, spread evenly over those given, and find their true neighbours.

    Args:
        vectors: the embedding set.
        config: how many, and to how many neighbours.
        queries: [Q, dim] that were given.
        rows: those of the set that the index holds; by default all.
    """
    held = rows or IndexedRows(vectors)
    if queries is not None and len(queries) >= 2:
        used = np.linspace(0, len(queries) - 1, min(len(queries), config.recall_queries)).astype(np.int64)
        return RecallProbe.prepare(held, queries[used], config.recall_k), "given"
    chosen = held.sample(sampled_rows(vectors, config.recall_queries, config.seed, "recall", held.rows))
    probe = RecallProbe.prepare(held, held.gather(chosen), config.recall_k, chosen)
    return probe, "corpus rows, each without itself"


def write_files(
    folder: Path, index: faiss.Index, vectors: EmbeddingSet, slots: Slots, queries: Float32s | None
) -> dict[str, str]:
    """Write a version's files, the lists on disk being there already; return their checksums."""
    names = [INDEX_NAME, IDS_NAME]
    if (folder / LISTS_NAME).exists():
        names += [LISTS_NAME, LIST_SIZES_NAME]
    else:
        faiss.write_index(index, str(folder / INDEX_NAME))
    write_ids(folder / IDS_NAME, vectors)
    if not (len(slots) == vectors.rows and slots.fresh_order):
        slots.write(folder)
        names.append(SLOTS_NAME)
    if queries is not None:
        (folder / QUERIES_NAME).write_bytes(npy_bytes(queries))
        names.append(QUERIES_NAME)
    return {name: sha256_file(folder / name) for name in names}


def made_of(vectors: EmbeddingSet, found: Calibration, wanted: float) -> IndexManifest:
    """Return a manifest of what was measured and what it was measured on; the version itself is left open."""
    return IndexManifest(
        version=0,
        factory="",
        metric="inner_product",
        dim=vectors.dim,
        ntotal=0,
        search=found.chosen.search,
        recall=found.chosen.recall,
        latency_ms=found.chosen.latency_ms,
        training={},
        embedding_set={"path": str(vectors.folder.absolute()), "hash": vectors.hash, "kept": vectors.kept},
        snapshot=vectors.snapshot,
        corpus=vectors.corpus,
        versions={"faiss": faiss.__version__, "numpy": np.__version__},
        files={},
        wanted_recall=wanted,
        queries_per_s=found.chosen.queries_per_s,
        curve=[point.row() for point in found.curve],
    )


def publish_into(folder: Path, manifest: IndexManifest, report: Report | None) -> None:
    """Write what makes a folder a version; its manifest comes last."""
    if report is not None:
        report(manifest, folder)
    write_manifest(folder, manifest)


def shortfall(manifest: IndexManifest) -> str:
    """Say what to make of a recall below the wanted one; empty where it is reached."""
    recall, wanted = manifest.recall, manifest.wanted_recall
    if recall.value >= wanted:
        return ""
    if recall.high >= wanted:
        return f"which may be chance, with {recall.queries:,} queries"
    return "finer codes (SQfp16, Flat) would reach it"


def warn(manifest: IndexManifest) -> None:
    """Tell a person what falls short."""
    recall = manifest.recall
    if short := shortfall(manifest):
        _log.warning(
            "%s reaches recall@%d %.3f, wanted %.3f: %s",
            *(manifest.factory, recall.k, recall.value, manifest.wanted_recall, short),
        )
    if manifest.rebuild_due:
        _log.warning("a rebuild is due: %s; run `dipole index build`", manifest.rebuild_due)


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note what a step takes."""
    begin = time.perf_counter()
    yield
    seconds[step] = round(seconds.get(step, 0.0) + time.perf_counter() - begin, 3)
