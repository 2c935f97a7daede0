"""An embedding set: a corpus embedded by one snapshot, one part a corpus shard.

    DIR/part-000000.{npy,ids.parquet,done.json} …    see `embedding_part`
    DIR/embedding_set.json                           written once every part is done

Rows follow the corpus, so a row's number in the set is its passage's ordinal, less the passages in quarantine that
come before it. A set is of one snapshot, one precision, one form and one corpus: whoever brings another is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from index_build.embedding_part import LeftOut, PartRecord, damage, part_files
from index_build.kept_vectors import Kept, Stored, is_stored_as, unpack

MANIFEST_NAME = "embedding_set.json"
SCHEMA_VERSION = 1
_BLOCK_ROWS = 65_536
_HASH_COLUMNS = ("id_hash", "content_hash", "text_hash")

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]


class RowHashes(NamedTuple):
    """int64 [rows] each: what a passage is recognised by without reading its text."""

    ids: Int64s
    """See `id_hash`."""
    contents: Int64s
    """Text hash of title and text."""
    texts: Int64s
    """Text hash of the text alone; the same passage may carry a title in one place and none in another."""

    def take(self, rows: Int64s) -> RowHashes:
        """Return the hashes of some rows."""
        return RowHashes(self.ids[rows], self.contents[rows], self.texts[rows])


class EmbeddingSet:
    """A finished set, opened to read. Vectors stay on disk until they are asked for."""

    def __init__(self, folder: Path, manifest: dict[str, Any], parts: list[PartRecord]) -> None:
        """Take over what `open` has read."""
        self.folder = folder
        self.parts = parts
        self.dim = parts[0].dim
        self.rows = sum(part.rows for part in parts)
        self.snapshot: dict[str, str] = manifest["snapshot"]
        self.corpus: dict[str, Any] = manifest["corpus"]
        """`path` and `dataset_id`; `left_out`, the ordinals in quarantine, where there are some."""
        self.hash: str = manifest["hash"]
        self.precision = parts[0].provenance.precision
        self.kept: Kept = parts[0].provenance.kept
        self._ends = np.cumsum([part.rows for part in parts], dtype=np.int64)

    @classmethod
    def open(cls, folder: Path) -> EmbeddingSet:
        """Open a set; sizes are compared with the manifest, contents only by `verify`.

        Raises:
            UserError: the folder holds no finished set, or a file is missing or of another size.
        """
        path = folder / MANIFEST_NAME
        if not path.exists():
            raise UserError(f"{folder} is no finished embedding set: it has no {MANIFEST_NAME}; run `dipole embed`")
        try:
            manifest = read_json(path)
            parts = [PartRecord.from_dict(row) for row in manifest["parts"]]
            found = cls(folder, manifest, parts)
        except (TypeError, KeyError, IndexError) as error:
            raise UserError(f"{path} is no manifest of an embedding set: {error!r}") from None
        for number, part in enumerate(parts):
            files = part_files(folder, number)
            for file, size in ((files.vectors, part.vectors_bytes), (files.ids, part.ids_bytes)):
                if not file.exists() or file.stat().st_size != size:
                    raise UserError(
                        f"{file} is missing or not of {size} bytes as written; run `dipole embed` again to mend it"
                    )
        return found

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            UserError: one is damaged.
        """
        for number, part in enumerate(self.parts):
            if (what := damage(self.folder, number, part)) is not None:
                raise UserError(f"{what}; run `dipole embed` again to mend it")

    @cached_property
    def quarantined(self) -> list[LeftOut]:
        """The corpus's passages that have no row, by their ordinals."""
        found: list[LeftOut] = []
        first = 0
        for part in self.parts:
            found += [each._replace(row=first + each.row) for each in part.quarantined]
            first += part.passages
        return found

    def stored(self) -> list[Stored]:
        """Return each part's rows in the form in which they are kept, memory-mapped.

        Raises:
            UserError: a file holds another form than the manifest speaks of.
        """
        return [self._part(number) for number in range(len(self.parts))]

    def blocks(self, rows: int = _BLOCK_ROWS) -> Iterator[tuple[int, Float32s]]:
        """Yield (number of the first row, float32 [at most `rows`, dim]), through the whole set in order."""
        first = 0
        for part in self.stored():
            for start in range(0, len(part), rows):
                yield first + start, unpack(part[start : start + rows], self.kept, self.dim)
            first += len(part)

    def span(self, first: int, stop: int) -> Float32s:
        """Return the vectors of the rows from `first` to before `stop`: float32 [stop - first, dim].

        Quicker than `gather`, and only the parts that hold them are opened: one at a time.

        Raises:
            IndexError: a row is not in the set.
        """
        if not 0 <= first <= stop <= self.rows:
            raise IndexError(f"rows {first} to {stop} of an embedding set of {self.rows}")
        found = np.empty((stop - first, self.dim), dtype=np.float32)
        at = first
        while at < stop:
            owner = int(np.searchsorted(self._ends, at, side="right"))
            end = min(stop, int(self._ends[owner]))
            begin = int(self._ends[owner]) - self.parts[owner].rows
            rows = self._part(owner)[at - begin : end - begin]
            found[at - first : end - first] = unpack(rows, self.kept, self.dim)
            at = end
        return found

    def gather(self, rows: Int64s) -> Float32s:
        """Return the vectors of any rows: float32 [len(rows), dim].

        Raises:
            IndexError: a row is not in the set.
        """
        return unpack(self.gather_stored(rows), self.kept, self.dim)

    def gather_stored(self, rows: Int64s) -> Stored:
        """Return any rows in the form in which they are kept; see `gather`.

        One part is mapped at a time: the kernel maps what lies around a page too, and scattered rows of many parts
        would bring most of a set into this process's memory.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an embedding set of {self.rows}")
        gathered = np.empty((len(rows), *self._part(0).shape[1:]), dtype=self._part(0).dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == owner)
            begin = int(self._ends[owner]) - self.parts[owner].rows
            gathered[mine] = self._part(owner)[rows[mine] - begin]
        return gathered

    @cached_property
    def ids(self) -> list[str]:
        """Passage ids by row; all of them in memory."""
        return list(self.iter_ids())

    def iter_ids(self) -> Iterator[str]:
        """Yield passage ids by row; one part's are in memory."""
        for number in range(len(self.parts)):
            yield from self._column(number, "id").to_pylist()

    @cached_property
    def hashes(self) -> RowHashes:
        """Hashes of every row's passage; 24 bytes a row in memory."""
        numbers = range(len(self.parts))
        return RowHashes(
            *(np.concatenate([self._column(number, name).to_numpy() for number in numbers]) for name in _HASH_COLUMNS)
        )

    @cached_property
    def exact_hashes(self) -> Int64s:
        """Exact hash of what the encoder read of every row; see `exact_content`."""
        numbers = range(len(self.parts))
        found: Int64s = np.concatenate([self._column(number, "exact_hash").to_numpy() for number in numbers])
        return found

    def _part(self, number: int) -> Stored:
        path = part_files(self.folder, number).vectors
        part: Stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if not is_stored_as(part, self.kept, self.dim) or len(part) != self.parts[number].rows:
            raise UserError(f"{path} holds no {self.kept} vectors of {self.dim}; run `dipole embed` again")
        return part

    def _column(self, part: int, name: str) -> pa.ChunkedArray:
        return pq.read_table(part_files(self.folder, part).ids, columns=[name]).column(name)


def retract_set(folder: Path) -> None:
    """Remove the manifest: the set is unfinished while a part is done again."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)


def publish_set(
    folder: Path,
    parts: list[PartRecord],
    *,
    snapshot: Mapping[str, str],
    corpus: Mapping[str, str],
    since: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest of a set whose parts are all done, and clear away what killed writers left.

    Args:
        folder: of the set.
        parts: in order, one a corpus shard.
        snapshot: `path` and `hash`.
        corpus: `path` and `dataset_id`.
        since: what became of an older set's rows, where this one was made from it.

    Raises:
        UserError: a passage id occurs twice in the corpus.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dim} {part.rows} {part.vectors_sha256} {part.ids_sha256}\n".encode())
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "hash": f"sha256:{digest.hexdigest()}",
        "snapshot": dict(snapshot),
        "corpus": dict(corpus),
        "kept": parts[0].provenance.kept,
        "dim": parts[0].dim,
        "rows": sum(part.rows for part in parts),
        **({"since": dict(since)} if since else {}),
        "parts": [part.to_dict() for part in parts],
    }
    found = EmbeddingSet(folder, manifest, parts)
    if found.quarantined:
        manifest["corpus"]["left_out"] = [each.row for each in found.quarantined]
    _refuse_repeated_ids(found)
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink(missing_ok=True)
    write_json(folder / MANIFEST_NAME, manifest)


def _refuse_repeated_ids(found: EmbeddingSet) -> None:
    order = np.argsort(found.hashes.ids, kind="stable")
    in_order = found.hashes.ids[order]
    repeated = np.flatnonzero(in_order[1:] == in_order[:-1])
    if len(repeated):
        name = found.ids[int(order[repeated[0]])]
        raise UserError(
            f"passage id {name!r} occurs twice in corpus {found.corpus['path']}; "
            "ids must be unique: make the corpus anew without the repetition"
        )
