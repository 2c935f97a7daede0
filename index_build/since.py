"""A set made from an older one: what has not changed is copied, what is new or changed embedded, the rest named.

    OUT/.since/{ids,contents,rows}.npy     of the older set, sorted by id, while the new one is made
    OUT/removed.parquet                    ids of the older set that the new one lacks

A passage is the same where its id is and every letter that the encoder reads. What is copied is copied as it is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.atomic import atomic_dir, atomic_path, drop_dir
from data_shards.errors import UserError
from data_shards.npy import npy_bytes
from data_shards.samples import Passage, id_hash
from index_build.embedding_part import Provenance, exact_content, part_files
from index_build.embedding_set import EmbeddingSet
from index_build.kept_vectors import Stored

Int64s = NDArray[np.int64]

REMOVED_NAME = "removed.parquet"
_FOLDER = ".since"
_COLUMNS = ("ids", "contents", "rows")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What became of an older set's passages."""

    hash: str
    """Of the older set."""
    same: int
    """Passages whose vectors were copied."""
    changed: int
    """Passages under an old id with another content."""
    new: int
    """Passages under a new id."""
    removed: int
    """Old ids that are gone; `removed.parquet` has them."""


class OldRows:
    """Finds a passage's row in the older set, through tables that all workers of a machine share."""

    def __init__(self, since: Path, out: Path) -> None:
        """Open what `prepared` has written."""
        self._since = since
        self._ids, self._contents, self._rows = (
            np.load(out / _FOLDER / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _COLUMNS
        )

    def of(self, passages: Sequence[Passage]) -> Int64s:
        """Return the row of each passage that has not changed; -1 for the others."""
        if not len(self._ids):
            return np.full(len(passages), -1, dtype=np.int64)
        ids = np.array([id_hash(passage.id) for passage in passages], dtype=np.int64)
        contents = np.array([exact_content(passage) for passage in passages], dtype=np.int64)
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        same = (self._ids[place] == ids) & (self._contents[place] == contents)
        return np.where(same, self._rows[place], -1)


def open_old(folder: Path, wanted: Provenance) -> EmbeddingSet:
    """Open an older set, once its vectors are such as the new one's are to be.

    Args:
        folder: of the older set.
        wanted: what the new set's parts will say; its shard does not matter.

    Raises:
        UserError: there is no set, or it is of another snapshot, precision, form or length.
    """
    found = EmbeddingSet.open(folder)
    by = found.parts[0].provenance
    for name, what in (("snapshot_hash", "by snapshot"), ("precision", "at"), ("kept", "as"), ("dim", "cut to")):
        was, now = getattr(by, name), getattr(wanted, name)
        if was != now:
            raise UserError(
                f"--since {folder} was made {what} {was or 'its full length'}, and this set is to be {what} "
                f"{now or 'its full length'}; embed anew without --since"
            )
    if "exact_hash" not in pq.read_schema(part_files(folder, 0).ids).names:
        raise UserError(f"--since {folder} is of a Dipole that kept no exact hashes; embed anew without --since")
    return found


@contextmanager
def prepared(old: EmbeddingSet, out: Path) -> Iterator[None]:
    """Verify an older set and write its tables for the workers; they are removed when the block ends.

    Raises:
        UserError: the older set is damaged.
    """
    old.verify()
    place = out / _FOLDER
    drop_dir(place)
    ids = old.hashes.ids
    order = np.argsort(ids, kind="stable")
    with atomic_dir(place) as folder:
        for name, column in zip(_COLUMNS, (ids[order], old.exact_hashes[order], order), strict=True):
            (folder / f"{name}.npy").write_bytes(npy_bytes(column.astype(np.int64)))
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


def join_rows(old: EmbeddingSet, rows: Int64s, fresh: Stored) -> Stored:
    """Return rows as they are kept: the older set's where `rows` names one, elsewhere the fresh ones in order."""
    if not len(rows):
        return fresh
    copied = rows >= 0
    joined = np.empty((len(rows), *fresh.shape[1:]), dtype=fresh.dtype)
    joined[copied] = old.gather_stored(rows[copied])
    joined[~copied] = fresh
    return joined


def changes(old: EmbeddingSet, ids: Int64s, contents: Int64s, folder: Path) -> Changes:
    """Compare, and write the ids that are gone.

    Args:
        old: the older set.
        ids: [rows] id hashes of the new set.
        contents: [rows] exact hashes of the new set.
        folder: of the new set.
    """
    order = np.argsort(old.hashes.ids, kind="stable")
    sorted_ids, sorted_contents = old.hashes.ids[order], old.exact_hashes[order]
    place = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    known = sorted_ids[place] == ids if len(sorted_ids) else np.zeros(len(ids), dtype=np.bool_)
    same = known & (sorted_contents[place] == contents)
    gone = np.flatnonzero(~np.isin(old.hashes.ids, ids)).tolist()
    with atomic_path(folder / REMOVED_NAME) as temporary:
        names = pa.array([old.ids[row] for row in gone], pa.string())
        pq.write_table(pa.table({"id": names}), temporary, compression="zstd")
    return Changes(
        hash=old.hash,
        same=int(same.sum()),
        changed=int((known & ~same).sum()),
        new=int((~known).sum()),
        removed=len(gone),
    )
