"""Verifies an index: its files, the numbers inside, and that its ids are those of its embedding set and corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.corpora import open_corpus
from data_shards.errors import UserError
from data_shards.samples import id_hash
from index_build.embedding_set import MANIFEST_NAME as SET_MANIFEST, EmbeddingSet
from index_build.faiss_shape import blocked_lists, inverted
from index_build.index_rows import id_blocks, set_hash_blocks
from index_build.index_version import IDS_NAME, OpenIndex, current_version, list_versions, open_index

Int64s = NDArray[np.int64]


def check_index(root: Path, embeddings: Path | None = None, corpus: Path | str | None = None) -> dict[str, Any]:
    """Verify every version.

    Args:
        root: folder of the versions.
        embeddings: the set of the current version, where it has moved; without one each version's own is looked for.
        corpus: likewise the corpus; also a URL.

    Returns:
        `current`, and of each version its factory, ntotal and recall, and what its ids were `compared` with.

    Raises:
        UserError: a version is damaged, or its ids are not those of its set or corpus; the message says what.
    """
    current = current_version(root)
    report: dict[str, Any] = {"current": current, "versions": {}}
    hashes: dict[str, Int64s] = {}
    verified: set[str] = set()
    for version in list_versions(root):
        opened = open_index(root, version)
        rows = _check_ids(opened)
        _check_slots(opened, rows)
        given = version == current
        against = [
            _against_set(opened, embeddings if given else None, verified),
            _against_corpus(opened, corpus if given else None, hashes),
        ]
        manifest = opened.manifest
        report["versions"][version] = {
            "factory": manifest.factory,
            "ntotal": manifest.ntotal,
            f"recall@{manifest.recall.k}": manifest.recall.value,
            "compared": [name for name in against if name],
        }
    return report


def _check_ids(opened: OpenIndex) -> int:
    """See that hashes are those of the ids; return how many there are."""
    rows = 0
    for first, ids, hashes in id_blocks(opened.folder / IDS_NAME):
        found = hashes_of(ids)
        if (wrong := np.flatnonzero(found != hashes)).size:
            raise UserError(
                f"{opened.folder / IDS_NAME}: row {first + int(wrong[0])} has not the hash of its id; build it again"
            )
        rows = first + len(ids)
    return rows


def _check_slots(opened: OpenIndex, rows: int) -> None:
    """See that slots and lists hold each passage once."""
    slots, manifest = opened.slots, opened.manifest
    held = slots.rows[slots.rows >= 0]
    sizes = {"index": int(opened.index.ntotal), "slots": len(slots)}
    wanted = {"index": len(slots), "slots": len(slots)}
    sizes["living"], wanted["living"] = len(np.unique(held)), manifest.ntotal
    if sizes != wanted or len(held) != manifest.ntotal or (len(held) and held.max() >= rows):
        raise UserError(
            f"{opened.folder} should hold {manifest.ntotal} of {rows} passages, came {sizes}; build it again"
        )
    numbers = _numbers(opened.index)
    if numbers is not None and not np.array_equal(np.sort(numbers), np.arange(len(slots))):
        raise UserError(f"the lists of {opened.folder} do not hold each of {len(slots)} rows once; build it again")


def _numbers(index: faiss.Index) -> Int64s | None:
    """Return the ids that the lists hold; None where ids are places."""
    lists = inverted(index)
    if lists is None or blocked_lists(index):  # woven lists are read by FAISS alone
        return None
    held = lists.invlists
    sizes = ((number, held.list_size(number)) for number in range(lists.nlist))
    found = [faiss.rev_swig_ptr(held.get_ids(number), size).copy() for number, size in sizes if size]
    return np.concatenate([np.empty(0, np.int64), *found])


def _against_set(opened: OpenIndex, given: Path | None, verified: set[str]) -> str:
    """Compare the ids with those of the embedding set, row by row; empty where the set is not there any more."""
    made = opened.manifest.embedding_set
    folder = given or Path(made["path"])
    if given is None and not (folder / SET_MANIFEST).exists():
        return ""
    vectors = EmbeddingSet.open(folder)
    if vectors.hash != made["hash"]:
        if given is None:  # another was made in its place
            return ""
        raise UserError(f"{folder} is {vectors.hash}, and {opened.folder} was made of {made['hash']}; give that set")
    if str(folder) not in verified:
        vectors.verify()
        verified.add(str(folder))
    ours = (hashes for _, _, hashes in id_blocks(opened.folder / IDS_NAME))
    if not _same(ours, (hashes for _, hashes in set_hash_blocks(vectors))):
        raise UserError(f"the ids of {opened.folder} are not those of {folder}; build the index again")
    return "embedding set"


def _against_corpus(opened: OpenIndex, given: Path | str | None, known: dict[str, Int64s]) -> str:
    """See that every id is one of the corpus; empty where the corpus is not there any more, or is far away."""
    made = opened.manifest.corpus
    folder = given or str(made["path"])
    if given is None and not Path(folder).exists():  # a URL is read where it is given: that may take long
        return ""
    corpus = open_corpus(folder)
    if corpus.dataset_id != made["dataset_id"]:
        if given is None:
            return ""
        raise UserError(f"{folder} is {corpus.dataset_id}, and {opened.folder} is of {made['dataset_id']}; give that")
    if corpus.dataset_id not in known:
        known[corpus.dataset_id] = np.sort(np.fromiter((id_hash(passage.id) for passage in corpus), dtype=np.int64))
    hashes = known[corpus.dataset_id]
    for first, ids, found in id_blocks(opened.folder / IDS_NAME):
        places = np.searchsorted(hashes, found)
        strange = np.flatnonzero(hashes[np.minimum(places, max(len(hashes) - 1, 0))] != found) if len(hashes) else [0]
        if len(strange):
            at = int(strange[0])
            raise UserError(
                f"{opened.folder} holds passage {ids[at]!r} (row {first + at}), which is not in {folder}; build again"
            )
    return "corpus"


def hashes_of(ids: Sequence[str]) -> Int64s:
    """Return the hashes of ids."""
    return np.fromiter(map(id_hash, ids), dtype=np.int64, count=len(ids))


def _same(left: Any, right: Any) -> bool:
    """Whether two streams of blocks hold the same numbers, however they are cut."""
    rest: list[Int64s] = [np.empty(0, np.int64), np.empty(0, np.int64)]
    streams = [iter(left), iter(right)]
    while True:
        for side in (0, 1):
            if not len(rest[side]):
                rest[side] = next((block for block in streams[side] if len(block)), np.empty(0, np.int64))
        shared = min(len(rest[0]), len(rest[1]))
        if not shared:
            return not len(rest[0]) and not len(rest[1])
        if not np.array_equal(rest[0][:shared], rest[1][:shared]):
            return False
        rest = [block[shared:] for block in rest]
