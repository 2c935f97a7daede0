"""The format of a negatives version: mined negatives for a stretch of the global order.

    ROOT/v000003/train-000000.tar        one member per touched sample, keyed as in the training shard
    ROOT/v000003/train-000000.tar.idx    its sidecars, and .crc
    ROOT/v000003/train-000000.rows.npy   int64, sorted: the rows of the training shard that have a member, in order
    ROOT/v000003/sample.json             a few queries with positives, negatives and scores, to look at
    ROOT/v000003/manifest.json

The mining side writes it, the training side reads it, and both see only whole versions: the folder is filled under
a temporary name and renamed. Passages are in it with their texts, so that the trainer never looks one up at random.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_dir, read_json, sha256_file, write_json
from data_shards.errors import DamagedVersionError, ShardCorruptError, UserError
from data_shards.manifest import MANIFEST_NAME, ShardEntry
from data_shards.npy import npy_bytes
from data_shards.samples import Passage
from data_shards.shard_reader import ShardReader
from data_shards.sidecar import save_sidecars
from data_shards.tar import write_tar

SAMPLE_NAME = "sample.json"
_VERSION_NAME = re.compile(r"v(\d{6,})")
_OPEN_SHARDS = 128  # two for each of 64 lanes
_DIGITS = 6  # of scores, behind the point


class NegativesSource(Protocol):
    """What the trainer needs of mined negatives."""

    def mined(self, stem: str, row: int) -> list[MinedNegative]:
        """Return the negatives of one training sample, best first; none where there are none."""
        ...


class MinedNegative(NamedTuple):
    """A passage that was found near a query and is no positive of it."""

    passage: Passage
    score: float
    """Its similarity to the query, by the snapshot that mined it."""
    teacher: float | None = None
    """A teacher model's score of it, to distil from; None where none was asked."""


class NegativesRow(NamedTuple):
    """The mined negatives of one training sample."""

    shard_stem: str
    """Of its training shard."""
    row: int
    """In that shard."""
    key: str
    """Its member's key there."""
    negatives: list[MinedNegative]
    """Best first."""


class _OpenShard(NamedTuple):
    reader: ShardReader
    rows: NDArray[np.int64]
    """Which rows of the training shard its samples are of."""


@dataclass(frozen=True, kw_only=True)
class NegativesShard(ShardEntry):
    """One file of a version; its samples are the touched rows of one training shard."""

    rows_sha256: str
    """Hex checksum of the `.rows.npy` file."""


@dataclass(frozen=True, kw_only=True)
class NegativesManifest:
    """Where a version came from and what it covers."""

    version: int
    """Counted from 1."""
    dataset_id: str
    """Of the training dataset whose rows it names."""
    from_step: int
    """First step of the stretch that was mined for."""
    to_step: int
    """The step after its last."""
    snapshot_hash: str
    """Of the encoder that mined it."""
    snapshot_step: int
    """The step at which that encoder was taken; age counts from here."""
    per_query: int
    """Negatives wanted for each query; fewer where the filters left fewer."""
    index: dict[str, Any]
    """The searched index: `factory`, measured `recall@10`, …"""
    filters: dict[str, int]
    """How many neighbours each filter dropped."""
    scores: dict[str, float]
    """Mean similarity of the queries to their positives (`positive`) and to what was mined (`negative`)."""
    seconds: dict[str, float]
    """How long each part of the refresh took."""
    sources: tuple[str, ...] = ("dense",)
    """Where candidates came from; without `dense` no snapshot was asked, and scores are BM25's."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """Negatives per query, gaps, estimates: see `docs/guides/mining.md`; empty in versions that are older."""
    sample_sha256: str = ""
    """Hex checksum of `sample.json`; empty where there is none. Filled in when the version is written."""
    shards: tuple[NegativesShard, ...] = ()
    """Filled in when the version is written."""


class NegativesVersion:
    """One published version, verified when opened."""

    def __init__(self, folder: Path, manifest: NegativesManifest) -> None:
        """Take over a verified folder; use `open`."""
        self.folder = folder
        self.manifest = manifest
        self._shards = {shard.stem: shard for shard in manifest.shards}
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, root: Path, version: int, dataset_id: str | None = None) -> NegativesVersion:
        """Open a version and compare every file with its checksum.

        Args:
            root: the folder of all versions.
            version: which one.
            dataset_id: the training dataset it must belong to, if given.

        Raises:
            UserError: it is not published, or it was mined for another dataset.
            DamagedVersionError: its manifest is damaged.
            ShardCorruptError: a file is not what the manifest says.
        """
        folder = version_dir(root, version)
        manifest = load_manifest(folder)
        if dataset_id is not None and manifest.dataset_id != dataset_id:
            raise UserError(
                f"{folder} was mined for dataset {manifest.dataset_id}, training reads {dataset_id}; "
                "choose another run folder or mine anew"
            )
        for shard in manifest.shards:
            ShardReader(folder / shard.path, shard, verify=True)
            _verify_file(_rows_path(folder, shard.stem), shard.rows_sha256)
        if manifest.sample_sha256:
            _verify_file(folder / SAMPLE_NAME, manifest.sample_sha256)
        return cls(folder, manifest)

    def __len__(self) -> int:
        """Return how many training samples have negatives here."""
        return sum(shard.samples for shard in self.manifest.shards)

    def mined(self, stem: str, row: int) -> list[MinedNegative]:
        """Return the negatives of one training sample with their scores, best first; none where there are none.

        Raises:
            ShardCorruptError: what is there is damaged.
        """
        if stem not in self._shards:
            return []
        reader, rows = self._shard(stem)
        at = int(np.searchsorted(rows, row))
        if at == len(rows) or rows[at] != row:
            return []
        payload = reader.payload(at)
        try:
            return [_negative_of(negative) for negative in json.loads(payload)["negatives"]]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"row {at} holds no mined negatives ({type(error).__name__}: {error})"
            raise ShardCorruptError(reader.path, int(reader.offsets[at]), what) from None

    def negatives(self, stem: str, row: int) -> list[Passage]:
        """Return the negatives of one training sample, best first; none where there are none."""
        return [negative.passage for negative in self.mined(stem, row)]

    def touched(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield each training shard's stem, and its rows that have negatives."""
        for stem, shard in self._shards.items():
            yield stem, np.array(_load_rows(self.folder, shard))

    def sample(self) -> list[dict[str, Any]]:
        """Return a few queries with `positives` and `negatives`, each with its `score`; none where none was kept."""
        rows: list[dict[str, Any]] = read_json(self.folder / SAMPLE_NAME) if self.manifest.sample_sha256 else []
        return rows

    def _shard(self, stem: str) -> _OpenShard:
        """Return an open shard; the least recently used are let go, since each takes two descriptors."""
        with self._lock:
            found = self._open.pop(stem, None)
            if found is None:
                shard = self._shards[stem]
                found = _OpenShard(ShardReader(self.folder / shard.path, shard), _load_rows(self.folder, shard))
            self._open[stem] = found
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return found


def write_negatives(
    root: Path,
    manifest: NegativesManifest,
    rows: Iterable[NegativesRow],
    *,
    sample: list[dict[str, Any]] | None = None,
    timed: bool = False,
) -> Path:
    """Publish a version: its folder appears whole, or not at all.

    Args:
        root: the folder of all versions.
        manifest: all but its `shards`.
        rows: ordered by shard and row; a row without negatives is left out.
        sample: see `NegativesVersion.sample`.
        timed: add the seconds that publishing took to the manifest's.

    Returns:
        The version's folder.

    Raises:
        UserError: this version is there already.
        ValueError: the rows are out of order.
    """
    folder = version_dir(root, manifest.version)
    if folder.exists():
        raise UserError(f"negatives version {folder} is there already and is never overwritten; take the next number")
    began = time.perf_counter()
    shards: list[NegativesShard] = []
    with atomic_dir(folder) as place:
        for stem, touched in groupby(rows, key=lambda row: row.shard_stem):
            if shards and stem <= shards[-1].stem:
                raise ValueError(f"rows of {stem} came after rows of {shards[-1].stem}; sort them by shard and row")
            shard = _write_shard(place, stem, touched)
            shards += [shard] if shard is not None else []
        written = {**asdict(manifest), "shards": [asdict(shard) for shard in shards]}
        if sample is not None:
            write_json(place / SAMPLE_NAME, sample)
            written["sample_sha256"] = sha256_file(place / SAMPLE_NAME)
        if timed:
            written["seconds"] = {**manifest.seconds, "publish": round(time.perf_counter() - began, 3)}
        write_json(place / MANIFEST_NAME, written)
    return folder


def published_versions(root: Path) -> list[int]:
    """Return the numbers of all whole versions, oldest first."""
    if not root.is_dir():
        return []
    names = (_VERSION_NAME.fullmatch(place.parent.name) for place in root.glob(f"v*/{MANIFEST_NAME}"))
    return sorted(int(name[1]) for name in names if name)


def version_dir(root: Path, version: int) -> Path:
    """Return the folder of a version."""
    return root / f"v{version:06d}"


def _write_shard(place: Path, stem: str, touched: Iterable[NegativesRow]) -> NegativesShard | None:
    rows: list[int] = []

    def members() -> Iterator[tuple[str, bytes]]:
        for entry in touched:
            if not entry.negatives:
                continue
            if rows and entry.row <= rows[-1]:
                raise ValueError(f"row {entry.row} of {stem} came after row {rows[-1]}; sort them by shard and row")
            rows.append(entry.row)
            found = [_row_of(negative) for negative in entry.negatives]
            payload = json.dumps({"negatives": found}, ensure_ascii=False, separators=(",", ":"))
            yield f"{entry.key}.json", payload.encode()

    path = place / f"{stem}.tar"
    summary = write_tar(path, members())
    if not rows:
        path.unlink()
        return None
    save_sidecars(path, summary)
    rows_path = _rows_path(place, stem)
    rows_path.write_bytes(npy_bytes(np.array(rows, dtype=np.int64)))
    return NegativesShard(
        path=path.name,
        samples=len(rows),
        bytes=summary.bytes,
        sha256=summary.sha256,
        rows_sha256=sha256_file(rows_path),
    )


def _row_of(negative: MinedNegative) -> dict[str, Any]:
    """Return the JSON form; where there is no teacher's score it is as before there were any."""
    row: dict[str, Any] = {**negative.passage.to_dict(), "score": round(float(negative.score), _DIGITS)}
    if negative.teacher is not None:
        row["teacher"] = round(_finite(negative.teacher), _DIGITS)
    return row


def _negative_of(row: dict[str, Any]) -> MinedNegative:
    teacher = row.get("teacher")
    score = float(row["score"])
    return MinedNegative(Passage.from_dict(row), score, None if teacher is None else _finite(teacher))


def _finite(teacher: Any) -> float:
    if not math.isfinite(score := float(teacher)):
        raise ValueError(f"a teacher's score is {score}, wanted a finite number")
    return score


def _rows_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.rows.npy"


def load_manifest(folder: Path) -> NegativesManifest:
    """Read a version's manifest; its files are verified by `NegativesVersion.open` alone.

    Raises:
        UserError: the version is not published.
        DamagedVersionError: the manifest is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        known = ", ".join(str(version) for version in published_versions(folder.parent)) or "none"
        raise UserError(f"{folder} is no published negatives version; there are: {known}")
    try:
        manifest = _manifest_of(read_json(path))
    except UserError as error:
        raise DamagedVersionError(str(error)) from None
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        what = f"{path} is no negatives manifest ({error}); delete the folder and mine anew"
        raise DamagedVersionError(what) from None
    if version_dir(folder.parent, manifest.version) != folder:
        raise DamagedVersionError(f"{path} is of version {manifest.version}; delete the folder and mine anew")
    return manifest


def _manifest_of(row: dict[str, Any]) -> NegativesManifest:
    shards = tuple(NegativesShard(**shard) for shard in row["shards"])
    manifest = NegativesManifest(**{**row, "shards": shards, "sources": tuple(row.get("sources", ("dense",)))})
    for name in ("version", "from_step", "to_step", "snapshot_step", "per_query"):
        if type(getattr(manifest, name)) is not int:
            raise ValueError(f"`{name}` is {getattr(manifest, name)!r}, wanted a whole number")
    for name in ("index", "filters", "scores", "seconds", "statistics"):
        if not isinstance(getattr(manifest, name), dict):
            raise ValueError(f"`{name}` is {getattr(manifest, name)!r}, wanted an object")
    return manifest


def _verify_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ShardCorruptError(path, 0, "the file is missing, though the manifest names it")
    if (found := sha256_file(path)) != sha256:
        raise ShardCorruptError(path, 0, f"its sha256 is {found}, the manifest says {sha256}")


def _load_rows(folder: Path, shard: NegativesShard) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = np.load(_rows_path(folder, shard.stem), mmap_mode="r", allow_pickle=False)
    return rows
