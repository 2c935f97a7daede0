"""One part of an embedding set: a corpus shard's vectors, ids, and the marker that says both are whole.

    part-000000.npy            a row a passage, as `kept_vectors` says; can be memory-mapped
    part-000000.ids.parquet    id and hashes of each row's passage
    part-000000.done.json      checksums, provenance, what was left out; written last: the part counts from here on

A restart redoes what has no valid marker, and nothing else. A passage that no encoder can take is left out of the
rows and listed in the marker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.atomic import atomic_path, read_json, sha256_file, write_json
from data_shards.errors import UserError
from data_shards.importing.columns import exact_hash
from data_shards.npy import npy_bytes
from data_shards.samples import Passage, id_hash, text_hash
from index_build.kept_vectors import Kept, Stored, pack

_log = logging.getLogger(__name__)

Float32s = NDArray[np.float32]

_SIGNED = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a part's vectors depend on: two parts with the same provenance are the same."""

    snapshot_hash: str
    """Of the encoder, tokenizer and prompts."""
    precision: str
    """In which the encoder computed."""
    shard: str
    """Name of the unit of work: a corpus shard's file, or some rows of a Parquet file."""
    shard_sha256: str
    """Its checksum; of a remote Parquet file, what its store tells of its version."""
    kept: Kept = "float16"
    """In what form the vectors are kept."""
    dim: int | None = None
    """To what length they were cut; None where they were not."""


class LeftOut(NamedTuple):
    """A passage in quarantine."""

    id: str
    row: int
    """Its place: in the part's unit of work, or in the whole corpus for what a set tells."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What a done marker says."""

    rows: int
    """Passages in the part."""
    dim: int
    """Length of a vector."""
    vectors_bytes: int
    """Size of the `.npy` file."""
    vectors_sha256: str
    """Its checksum."""
    ids_bytes: int
    """Size of the `.ids.parquet` file."""
    ids_sha256: str
    """Its checksum."""
    provenance: Provenance
    """Where the vectors come from."""
    quarantined: tuple[LeftOut, ...] = ()
    """Passages of the unit that have no row, in order."""

    @property
    def passages(self) -> int:
        """Passages of the unit, those in quarantine counted."""
        return self.rows + len(self.quarantined)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> PartRecord:
        """Read the JSON form.

        Raises:
            TypeError, KeyError: it is none.
        """
        left_out = tuple(LeftOut(**each) for each in row.get("quarantined", ()))
        return cls(**{**row, "provenance": Provenance(**row["provenance"]), "quarantined": left_out})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "quarantined": [each._asdict() for each in self.quarantined]}


class PartFiles(NamedTuple):
    """The three files of a part."""

    vectors: Path
    ids: Path
    done: Path


def part_files(folder: Path, part: int) -> PartFiles:
    """Return the paths of a part's files."""
    stem = f"part-{part:06d}"
    return PartFiles(folder / f"{stem}.npy", folder / f"{stem}.ids.parquet", folder / f"{stem}.done.json")


def write_part(
    folder: Path,
    part: int,
    vectors: Float32s,
    passages: Sequence[Passage],
    provenance: Provenance,
    quarantined: Sequence[LeftOut] = (),
) -> PartRecord:
    """Write a part; its done marker goes last, and an old one goes first.

    Args:
        folder: of the set.
        part: number of the corpus shard.
        vectors: [rows, dim], kept as `provenance` says.
        passages: the same rows.
        provenance: where the vectors come from.
        quarantined: passages of the unit that have no row.

    Raises:
        UserError: a vector is not finite: the encoder that made it is broken.
    """
    if len(vectors) != len(passages):
        raise ValueError(f"{len(vectors)} vectors came for {len(passages)} passages")
    stored = pack_finite(vectors, passages, provenance)
    return write_stored(folder, part, stored, vectors.shape[1], passages, provenance, quarantined)


def pack_finite(vectors: Float32s, passages: Sequence[Passage], provenance: Provenance) -> Stored:
    """Return vectors in the form in which they are kept.

    Raises:
        UserError: one is not finite; its passage is named.
    """
    _refuse_infinite(vectors, passages, "its training has diverged: take an earlier snapshot")
    stored = pack(vectors, provenance.kept)
    if provenance.kept == "float16":
        _refuse_infinite(stored, passages, "as float16, whose largest number is 65504: --keep float32")
    return stored


def write_stored(
    folder: Path,
    part: int,
    stored: Stored,
    dim: int,
    passages: Sequence[Passage],
    provenance: Provenance,
    quarantined: Sequence[LeftOut] = (),
) -> PartRecord:
    """Write a part whose vectors have the form already in which they are kept; see `write_part`."""
    files = part_files(folder, part)
    files.done.unlink(missing_ok=True)
    with atomic_path(files.vectors) as temporary, open(temporary, "wb") as file:
        file.write(npy_bytes(stored))
    with atomic_path(files.ids) as temporary:
        pq.write_table(_id_table(passages), temporary, compression="zstd")
    record = PartRecord(
        rows=len(stored),
        dim=dim,
        vectors_bytes=files.vectors.stat().st_size,
        vectors_sha256=sha256_file(files.vectors),
        ids_bytes=files.ids.stat().st_size,
        ids_sha256=sha256_file(files.ids),
        provenance=provenance,
        quarantined=tuple(quarantined),
    )
    write_json(files.done, record.to_dict())
    return record


def finished_part(folder: Path, part: int, provenance: Provenance) -> PartRecord | None:
    """Return the record of a part that is done and whole; None where it has to be (re)done.

    Raises:
        UserError: the part was made by another snapshot, at another precision, from another shard, or is kept
            otherwise.
    """
    files = part_files(folder, part)
    if not files.done.exists():
        return None
    record = _read_record(files.done)
    if record is None:
        return None
    if record.provenance != provenance:
        _refuse(folder, files, record.provenance, provenance)
    if (what := damage(folder, part, record)) is not None:
        _log.warning("%s; the part is done again", what)
        return None
    return record


def damage(folder: Path, part: int, record: PartRecord) -> str | None:
    """Compare a part's files with its record: size first, then checksum. None means that it is whole."""
    files = part_files(folder, part)
    wanted = (
        (files.vectors, record.vectors_bytes, record.vectors_sha256),
        (files.ids, record.ids_bytes, record.ids_sha256),
    )
    for path, size, sha256 in wanted:
        if not path.exists():
            return f"{path} is missing, though its part is marked done"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, its done marker says {size}"
        if (found := sha256_file(path)) != sha256:
            return f"{path} has sha256 {found}, its done marker says {sha256}"
    return None


def exact_content(passage: Passage) -> int:
    """Hash what the encoder reads of a passage, letter by letter, to a signed 64-bit number.

    `content_hash` folds case and white space, by which an encoder may tell texts apart.
    """
    unsigned = exact_hash(passage.content)
    return unsigned - 2 * _SIGNED if unsigned >= _SIGNED else unsigned


def _id_table(passages: Sequence[Passage]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array([passage.id for passage in passages], pa.string()),
            "id_hash": pa.array([id_hash(passage.id) for passage in passages], pa.int64()),
            "content_hash": pa.array([passage.content_hash for passage in passages], pa.int64()),
            "text_hash": pa.array([text_hash(passage.text) for passage in passages], pa.int64()),
            "exact_hash": pa.array([exact_content(passage) for passage in passages], pa.int64()),
        }
    )


def _refuse_infinite(vectors: NDArray[Any], passages: Sequence[Passage], fix: str) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        name = passages[int(finite.argmin())].id
        raise UserError(f"the snapshot gives a vector that is not finite for passage {name!r}; {fix}")


def _read_record(path: Path) -> PartRecord | None:
    try:
        return PartRecord.from_dict(read_json(path))
    except (UserError, TypeError, KeyError) as error:
        _log.warning("%s cannot be read (%s); the part is done again", path, error)
        return None


def _refuse(folder: Path, files: PartFiles, found: Provenance, wanted: Provenance) -> None:
    pairs = [(field.name, getattr(found, field.name), getattr(wanted, field.name)) for field in fields(Provenance)]
    differing = [f"{name} {was} (now {now})" for name, was, now in pairs if was != now]
    raise UserError(
        f"{folder} already holds {files.vectors.name} with {', '.join(differing)}; a set is never mixed: "
        "choose another --out"
    )
