"""Looking at a dataset: is it whole, what is in it, and a few samples to read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.columns import exact_hash
from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import Manifest, dataset_id_of
from data_shards.reader import CorpusDataset, PairDataset, ShardReader, open_dataset
from data_shards.samples import Pair, Passage, text_hash
from data_shards.sidecar import sidecar_path
from data_shards.tar import scan_offsets

_PROGRESS_EVERY = 1000

Progress = Callable[[int, int], None]


def check_dataset(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Verify all of a dataset: checksums, archives, sidecars, every sample, and that a corpus has each id once.

    Raises:
        UserError: the folder is no dataset, its manifest contradicts itself, or an id comes twice.
        ShardCorruptError: a shard or a sidecar is damaged; the message names it and where.
    """
    dataset = open_dataset(folder)
    manifest = dataset.manifest
    if dataset_id_of(manifest.kind, manifest.shards) != manifest.dataset_id:
        raise UserError(f"the manifest of {folder} does not match its own dataset_id; it was edited: make it anew")
    for entry in manifest.shards:
        path = folder / entry.path
        if path.is_file():
            _check_sidecar(path)
        ShardReader(path, entry, verify=True)
    ids: set[int] = set()
    for item in _with_progress(dataset, progress):
        if isinstance(item, Passage):
            identity = exact_hash(item.id)
            if identity in ids:
                raise UserError(f"passage id {item.id!r} comes twice in {folder}; ids must be unique")
            ids.add(identity)
    return {**summary(folder, manifest), "whole": True}


def stats(folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Describe the samples of a dataset: how many, how long, how often repeated.

    Raises:
        UserError: the folder is no dataset.
        ShardCorruptError: a shard is damaged.
    """
    dataset = open_dataset(folder)
    words: dict[str, list[int]] = {}
    chars: dict[str, list[int]] = {}
    seen: dict[str, Counter[int]] = {}
    positives, negatives = Counter[int](), Counter[int]()

    def note(part: str, text: str) -> None:
        words.setdefault(part, []).append(len(text.split()))
        chars.setdefault(part, []).append(len(text))
        seen.setdefault(part, Counter())[text_hash(text)] += 1

    for item in _with_progress(dataset, progress):
        if isinstance(item, Passage):
            note("passage", item.content)
            continue
        note("query", item.query)
        positives[len(item.positives)] += 1
        negatives[len(item.negatives)] += 1
        for passage in item.positives:
            note("positive", passage.content)
        for passage in item.negatives:
            note("negative", passage.content)
    described = summary(folder, dataset.manifest)
    for part in words:
        repeated = sum(count - 1 for count in seen[part].values())
        described[part] = {"words": _spread(words[part]), "chars": _spread(chars[part]), "repeated": repeated}
    if positives:
        described["positives_per_query"] = {str(count): queries for count, queries in sorted(positives.items())}
        described["negatives_per_query"] = {str(count): queries for count, queries in sorted(negatives.items())}
    return described


def sample(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return some samples, drawn without repetition; the same seed draws the same.

    Raises:
        UserError: the folder is no dataset, or `count` is negative.
    """
    dataset = open_dataset(folder)
    if count < 0:
        raise UserError(f"{count} samples were asked for; wanted 0 or more")
    ordinals = random.Random(seed).sample(range(len(dataset)), min(count, len(dataset)))
    drawn = dataset.pairs(ordinals) if isinstance(dataset, PairDataset) else dataset.passages(ordinals)
    return [asdict(item) for item in drawn]


def summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return what the manifest says, in a few values."""
    return {
        "dir": str(folder),
        "kind": manifest.kind,
        "dataset_id": manifest.dataset_id,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "report": manifest.report,
    }


def _check_sidecar(tar_path: Path) -> None:
    """Compare a sidecar with its tar, before a reader would mend it."""
    offsets = scan_offsets(tar_path)
    path = sidecar_path(tar_path)
    if not path.exists():
        return
    wanted, found = offsets.astype("<u8").tobytes(), path.read_bytes()
    if found != wanted:
        shared = min(len(wanted), len(found))
        differing = np.flatnonzero(
            np.frombuffer(wanted[:shared], dtype=np.uint8) != np.frombuffer(found[:shared], dtype=np.uint8)
        )
        at = int(differing[0]) if len(differing) else shared
        raise ShardCorruptError(
            path, at, f"it does not match {tar_path.name}; delete it, it is made anew when needed"
        )


def _with_progress(dataset: PairDataset | CorpusDataset, progress: Progress | None) -> Iterator[Pair | Passage]:
    items: Iterable[Pair | Passage] = dataset
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None and (done % _PROGRESS_EVERY == 0 or done == len(dataset)):
            progress(done, len(dataset))


def _spread(values: list[int]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": round(float(np.mean(values)), 1), "p5": low, "p50": middle, "p95": high, "max": max(values)}
