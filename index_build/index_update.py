"""Makes a version from the one before it: passages are added, replaced and deleted, and all else stays where it is.

What a passage is, is told by the hashes of its id and of its content, which the version keeps itself: the embedding
set that it came from may be gone. Rows that are gone leave dead slots behind: see `slots`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_dir
from data_shards.errors import UserError
from index_build.calibration import calibrate
from index_build.embedding_set import EmbeddingSet
from index_build.faiss_shape import list_sizes
from index_build.index import Report, made_of, prepare_probe, publish_into, timed, warn, write_files
from index_build.index_check import hashes_of
from index_build.index_config import IndexConfig
from index_build.index_fill import Progress, add_rows, room_on, sampled_rows
from index_build.index_manifest import IndexManifest
from index_build.index_merge import ListWriter
from index_build.index_rows import IndexedRows, block_rows, gather, hash_columns, set_hash_columns
from index_build.index_version import (
    IDS_NAME,
    INDEX_NAME,
    LISTS_NAME,
    QUERIES_NAME,
    OpenIndex,
    make_current,
    next_version,
    one_writer,
    open_index,
    version_dir,
)
from index_build.index_wear import SAMPLE_ROWS, wear_of, why_rebuild
from index_build.slot_search import SlotSearch
from index_build.slots import DEAD, Slots

_log = logging.getLogger(__name__)

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changes from an index version to an embedding set."""

    slots: Int64s
    """Row of the new set that each old slot holds from now on; -1 where it holds none."""
    new_rows: Int64s
    """Rows of the new set that no slot holds, sorted."""
    counts: dict[str, int]
    """Passages `added`, `replaced`, `removed` and `kept`."""


def update_index(
    root: Path,
    vectors: EmbeddingSet,
    config: IndexConfig,
    queries: Float32s | None = None,
    progress: Progress | None = None,
    *,
    report: Report | None = None,
) -> IndexManifest:
    """Make the next version hold what an embedding set holds, and make it current.

    Args:
        root: folder of the versions.
        vectors: the new set, of the same snapshot. A passage whose id and content are as they were is not touched.
        config: its seed and number of queries count; how vectors are kept, and the wanted recall, stay as they were.
        queries: [Q, dim] to measure recall with; by default those of the version before, else rows of the corpus.
        progress: called with (vectors added, vectors to add).
        report: see `build_index`.

    Returns:
        The manifest of the new version; of the current one where nothing has changed.

    Raises:
        UserError: the set is damaged or of another snapshot, the current version is damaged, or a disk is full.
    """
    vectors.verify()
    with one_writer(root), room_on(root):
        opened = open_index(root)
        made = opened.manifest
        if made.snapshot["hash"] != vectors.snapshot["hash"] or made.dim != vectors.dim:
            raise UserError(
                f"{vectors.folder} was embedded by {vectors.snapshot['hash']}, {root} by {made.snapshot['hash']}: "
                "vectors of two snapshots cannot be compared; run `dipole index build`"
            )
        if made.embedding_set["kept"] != vectors.kept:
            raise UserError(
                f"{vectors.folder} keeps {vectors.kept} vectors, {root} was made of {made.embedding_set['kept']}; "
                "run `dipole index build`, or embed in that form"
            )
        difference = compare(opened, vectors)
        if made.embedding_set["hash"] == vectors.hash and not len(difference.new_rows):
            _log.info("%s already holds %s", opened.folder, vectors.folder)
            return made
        change = _Change(opened=opened, vectors=vectors, difference=difference, config=config, report=report)
        return change.publish(root, queries, progress)


def delete_ids(root: Path, ids: Iterable[str], config: IndexConfig, *, report: Report | None = None) -> IndexManifest:
    """Make a version that does not find some passages any more, and make it current.

    Args:
        root: folder of the versions.
        ids: of the passages.
        config: see `update_index`.
        report: see `build_index`.

    Raises:
        UserError: an id is not in the index, nothing would be left, or the embedding set that recall has to be
            measured on is gone.
    """
    with one_writer(root), room_on(root):
        opened = open_index(root)
        vectors = _own_set(opened)
        asked = sorted(set(ids))
        wanted = hashes_of(asked)
        held, _ = hash_columns(opened.folder / IDS_NAME)
        slots = opened.slots.rows.copy()
        there = held[slots[slots != DEAD]]
        if len(strange := np.flatnonzero(~np.isin(wanted, there))):
            raise UserError(
                f"{len(strange):,} of {len(wanted):,} ids are not in {opened.folder}, {asked[int(strange[0])]!r} "
                "for one; nothing was deleted"
            )
        if not asked:
            raise UserError("no id was given; nothing was deleted")
        if len(wanted) == len(there):
            raise UserError(f"these are all {len(there):,} passages of {opened.folder}; an index of none is no index")
        gone = (slots != DEAD) & np.isin(held[slots], wanted)
        slots[gone] = DEAD
        counts = {"added": 0, "replaced": 0, "removed": int(gone.sum()), "kept": int((slots != DEAD).sum())}
        difference = Difference(slots=slots, new_rows=np.empty(0, np.int64), counts=counts)
        change = _Change(opened=opened, vectors=vectors, difference=difference, config=config, report=report)
        return change.publish(root, None, None)


def compare(opened: OpenIndex, vectors: EmbeddingSet) -> Difference:
    """Compare a version with an embedding set, by hashes of id and content: 16 bytes a passage on either side."""
    old_ids, old_contents = hash_columns(opened.folder / IDS_NAME)
    new_ids, new_contents = set_hash_columns(vectors)
    before = opened.slots.rows
    living = np.flatnonzero(before != DEAD)
    order = np.argsort(new_ids, kind="stable")
    ids = old_ids[before[living]]
    places = np.minimum(np.searchsorted(new_ids, ids, sorter=order), max(len(order) - 1, 0))
    rows = order[places]
    same_id = new_ids[rows] == ids
    kept = same_id & (new_contents[rows] == old_contents[before[living]])
    slots = np.full(len(before), DEAD, dtype=np.int64)
    slots[living[kept]] = rows[kept]
    held = np.zeros(len(new_ids), dtype=np.bool_)
    held[rows[kept]] = True
    new_rows = np.flatnonzero(~held)
    replaced = int((same_id & ~kept).sum())
    counts = {
        "added": len(new_rows) - replaced,
        "replaced": replaced,
        "removed": int((~same_id).sum()),
        "kept": int(kept.sum()),
    }
    return Difference(slots=slots, new_rows=new_rows, counts=counts)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """From one version to the next."""

    opened: OpenIndex
    vectors: EmbeddingSet
    difference: Difference
    config: IndexConfig
    report: Report | None

    def publish(self, root: Path, queries: Float32s | None, progress: Progress | None) -> IndexManifest:
        """Write the next version, measured anew, and make it current."""
        made, vectors = self.opened.manifest, self.vectors
        config = replace(self.config, wanted_recall=made.wanted_recall, recall_k=made.recall.k)
        if queries is None and QUERIES_NAME in made.files:
            queries = np.load(self.opened.folder / QUERIES_NAME, allow_pickle=False)
        slots = Slots(np.concatenate([self.difference.slots, self.difference.new_rows]))
        seconds: dict[str, float] = {}
        version = next_version(root)
        with atomic_dir(version_dir(root, version)) as folder:
            with timed(seconds, "fill"):
                index = _changed(self.opened, vectors, self.difference.new_rows, folder, progress)
            with timed(seconds, "calibrate"):
                rows = IndexedRows(vectors, slots.living_rows(vectors.rows))
                probe, queries_from = prepare_probe(vectors, config, queries, rows)
                found = calibrate(SlotSearch(index, slots), probe, made.wanted_recall, queries_from)
            wear = self._wear(index, slots)
            with timed(seconds, "write"):
                files = write_files(folder, index, vectors, slots, queries)
            manifest = replace(
                made_of(vectors, found, made.wanted_recall),
                version=version,
                factory=made.factory,
                ntotal=len(slots) - slots.dead,
                training=made.training,
                files=files,
                choice=made.choice,
                on_disk=made.on_disk,
                base_version=made.version,
                changes=self.difference.counts,
                wear=wear,
                rebuild_due=why_rebuild(wear, found.chosen.recall, min(made.wanted_recall, made.recall.value)),
                seconds=seconds,
            )
            publish_into(folder, manifest, self.report)
        make_current(root, version)
        warn(manifest)
        return manifest

    def _wear(self, index: faiss.Index, slots: Slots) -> dict[str, float]:
        new_rows, built = self.difference.new_rows, self.opened.manifest.wear
        places = sampled_rows(self.vectors, SAMPLE_ROWS, self.config.seed, "wear", len(new_rows))
        sample = gather(self.vectors, new_rows[places])
        return wear_of(index, slots, built, sample, len(slots) - int(built["slots_built"]))


def _changed(
    opened: OpenIndex, vectors: EmbeddingSet, new_rows: Int64s, folder: Path, progress: Progress | None
) -> faiss.Index:
    """Return the index with new rows at its end, ids going on; one with its lists on disk is written anew."""
    index, first = opened.index, int(opened.index.ntotal)
    on_disk = (opened.folder / LISTS_NAME).exists()
    target = faiss.read_index(str(opened.folder / INDEX_NAME)) if on_disk else index  # on disk it is the empty one
    step = block_rows(vectors.dim)
    for begin in range(0, len(new_rows), step):
        rows = new_rows[begin : begin + step]
        add_rows(target, gather(vectors, rows), first + begin)
        if progress:
            progress(begin + len(rows), len(new_rows))
    if not on_disk:
        return target
    empty = faiss.read_index(str(opened.folder / INDEX_NAME))
    writer = ListWriter(folder, empty, list_sizes(index) + list_sizes(target))
    writer.add(index)
    writer.add(target)
    return writer.finish()


def _own_set(opened: OpenIndex) -> EmbeddingSet:
    """Open the set that a version came from.

    Raises:
        UserError: it is gone, or another is in its place.
    """
    made = opened.manifest.embedding_set
    vectors = EmbeddingSet.open(Path(made["path"]))
    if vectors.hash != made["hash"]:
        raise UserError(
            f"{vectors.folder} is {vectors.hash}, and {opened.folder} was made of {made['hash']}: recall cannot be "
            "measured; run `dipole index update` with the set that there is now"
        )
    vectors.verify()
    return vectors
