"""Index versions on disk: written whole, numbered, one of them current.

ROOT/v000001/index.faiss      the FAISS index; its ids are row numbers of the embedding set
ROOT/v000001/ids.parquet      passage id of each row
ROOT/v000001/manifest.json    how it was built, measured recall, checksums
ROOT/CURRENT                  the name of the version that is searched, swapped atomically

A version is never changed once it is there; going back to one is a swap of `CURRENT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.atomic import atomic_path, read_json, sha256_file
from data_shards.errors import UserError
from index_build.exact import Neighbours
from index_build.gpu import Layout, to_gpus
from index_build.recall import Recall

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.faiss"
IDS_NAME = "ids.parquet"
CURRENT_NAME = "CURRENT"
SCHEMA_VERSION = 1

_VERSION_NAME = re.compile(r"v(\d{6,})")

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index version is, and how good."""

    version: int
    """Counted from 1."""
    factory: str
    """FAISS factory string."""
    metric: str
    """`inner_product`; of vectors of length 1 it is the cosine."""
    dim: int
    """Length of a vector."""
    ntotal: int
    """Vectors in the index."""
    search: dict[str, int]
    """Search parameters, `nprobe` where the index has lists; set when the index is opened."""
    recall: Recall
    """Measured against exact search; in the file under `recall@K`."""
    latency_ms: dict[str, float]
    """Of one query at a time: `median`, `p95`, and the `threads` that searched."""
    training: dict[str, int]
    """Sampled `rows` and the `seed` of the sample; empty for an index that is not trained."""
    embedding_set: dict[str, str]
    """`path` and `hash` of the vectors."""
    snapshot: dict[str, str]
    """`path` and `hash` of the encoder that made them."""
    corpus: dict[str, str]
    """`path` and `dataset_id` of the passages."""
    versions: dict[str, str]
    """Of the libraries."""
    files: dict[str, str]
    """Hex SHA-256 by file name."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        row = asdict(self)
        recall = row.pop("recall")
        return {"schema_version": SCHEMA_VERSION, **row, f"recall@{recall.pop('k')}": recall}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> IndexManifest:
        """Read the JSON form.

        Raises:
            TypeError, KeyError, ValueError: it is none, or carries no measured recall.
        """
        fields = dict(row)
        if fields.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {row['schema_version']}, this dipole reads {SCHEMA_VERSION}")
        measured = [name for name in fields if name.startswith("recall@")]
        if len(measured) != 1:
            raise ValueError("it carries no measured recall")
        recall = Recall(k=int(measured[0].removeprefix("recall@")), **fields.pop(measured[0]))
        return cls(recall=recall, **fields)


class OpenIndex:
    """One index version, verified and ready to search."""

    def __init__(self, folder: Path, manifest: IndexManifest, index: faiss.Index) -> None:
        """Take over a verified index; use `open_index`."""
        self.folder = folder
        self.manifest = manifest
        self._index = index

    def search(self, vectors: Float32s, k: int) -> Neighbours:
        """Return the k nearest rows of each vector.

        Returns:
            Scores and rows [Q, k]; row -1 (score -inf) where the index gives fewer than k.
        """
        return faiss_search(self._index, vectors, k)

    def on_gpus(self, gpus: int, layout: Layout) -> OpenIndex:
        """Return the index on so many GPUs; with none, itself. See `to_gpus`."""
        return OpenIndex(self.folder, self.manifest, to_gpus(self._index, gpus, layout)) if gpus else self

    @cached_property
    def ids(self) -> list[str]:
        """Passage ids by row; all of them in memory."""
        ids: list[str] = pq.read_table(self.folder / IDS_NAME).column("id").to_pylist()
        return ids


def faiss_search(index: faiss.Index, vectors: Float32s, k: int) -> Neighbours:
    """Search a FAISS index; missing neighbours come out as row -1 with score -inf."""
    if vectors.shape[1] != index.d:
        raise UserError(f"the index holds vectors of {index.d} dimensions, the query has {vectors.shape[1]}")
    scores, rows = index.search(np.ascontiguousarray(vectors, dtype=np.float32), k)
    return Neighbours(np.where(rows < 0, -np.inf, scores).astype(np.float32), rows.astype(np.int64))


def set_search_parameters(index: faiss.Index, parameters: dict[str, int]) -> None:
    """Set search parameters, `nprobe` for one, on an index of any nesting."""
    for name, value in parameters.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)


def list_versions(root: Path) -> list[int]:
    """Return the numbers of all whole versions, oldest first."""
    names = (_VERSION_NAME.fullmatch(place.parent.name) for place in root.glob(f"v*/{MANIFEST_NAME}"))
    return sorted(int(name[1]) for name in names if name)


def current_version(root: Path) -> int:
    """Return the number of the version that is searched.

    Raises:
        UserError: there is none.
    """
    path = root / CURRENT_NAME
    name = _VERSION_NAME.fullmatch(path.read_text(encoding="utf-8").strip()) if path.is_file() else None
    if name is None:
        raise UserError(f"{root} holds no index: it has no valid {CURRENT_NAME}; run `dipole index build`")
    return int(name[1])


def make_current(root: Path, version: int) -> None:
    """Swap the version that is searched, atomically.

    Raises:
        UserError: there is no such version.
    """
    load_manifest(root, version)
    with atomic_path(root / CURRENT_NAME) as temporary:
        temporary.write_text(version_dir(root, version).name + "\n", encoding="utf-8")


def rollback(root: Path, version: int) -> IndexManifest:
    """Search an earlier (or later) version from now on; its files are verified first.

    Raises:
        UserError: there is no such version, or it is damaged.
    """
    opened = open_index(root, version)
    make_current(root, version)
    return opened.manifest


def open_index(root: Path, version: int | None = None) -> OpenIndex:
    """Open an index version, the current one by default, after its checksums matched.

    Raises:
        UserError: there is no such version, or a file is damaged.
    """
    version = current_version(root) if version is None else version
    folder = version_dir(root, version)
    manifest = load_manifest(root, version)
    for name in (INDEX_NAME, IDS_NAME):
        path = folder / name
        found = sha256_file(path) if path.is_file() else "missing"
        if found != manifest.files.get(name):
            raise UserError(
                f"{path} is damaged: sha256 {found}, its manifest says {manifest.files.get(name)}; "
                "roll back to another version or build the index again"
            )
    index = faiss.read_index(str(folder / INDEX_NAME))
    set_search_parameters(index, manifest.search)
    return OpenIndex(folder, manifest, index)


def check_index(root: Path) -> dict[str, Any]:
    """Verify every version: checksums, number of vectors and ids, measured recall.

    Returns:
        `current`, and each version's factory, ntotal and recall.

    Raises:
        UserError: a version is damaged; the message says what.
    """
    report: dict[str, Any] = {"current": current_version(root), "versions": {}}
    for version in list_versions(root):
        opened = open_index(root, version)
        manifest = opened.manifest
        sizes = {"index": opened._index.ntotal, "ids": len(opened.ids), "different ids": len(set(opened.ids))}
        if set(sizes.values()) != {manifest.ntotal}:
            raise UserError(f"{opened.folder} should hold {manifest.ntotal} passages, came {sizes}; build it again")
        report["versions"][version] = {
            "factory": manifest.factory,
            "ntotal": manifest.ntotal,
            f"recall@{manifest.recall.k}": manifest.recall.value,
        }
    return report


def load_manifest(root: Path, version: int) -> IndexManifest:
    """Read a version's manifest.

    Raises:
        UserError: there is no such version, or the manifest is damaged.
    """
    path = version_dir(root, version) / MANIFEST_NAME
    if not path.is_file():
        known = ", ".join(str(number) for number in list_versions(root)) or "none"
        raise UserError(f"{root} has no index version {version}; there are: {known}")
    try:
        return IndexManifest.from_dict(read_json(path))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no index manifest ({error}); build the index again") from None


def version_dir(root: Path, version: int) -> Path:
    """Return the folder of a version."""
    return root / f"v{version:06d}"


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write the passage id of each row."""
    pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), path, compression="zstd")
