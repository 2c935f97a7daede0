"""Index versions on disk: written whole, numbered, one of them current.

ROOT/v000001/index.faiss      the FAISS index; its ids are slots: see `slots`
ROOT/v000001/lists.ivfdata    its inverted lists, where they stay on disk; `index.faiss` is empty then
ROOT/v000001/lists.npy        how many rows each of these lists has
ROOT/v000001/slots.npy        the row of each slot, where slots are not rows
ROOT/v000001/ids.parquet      passage id of each row, and hashes of id and content
ROOT/v000001/queries.npy      the queries that recall was measured with, where they were given
ROOT/v000001/manifest.json    how it was built, measured recall, checksums, its own included
ROOT/CURRENT                  the name of the version that is searched, swapped atomically

A version is never changed once it is there; going back to one is a swap of `CURRENT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.atomic import atomic_path, sha256_file
from data_shards.errors import UserError
from data_shards.file_lock import locked
from index_build.exact import Neighbours
from index_build.faiss_shape import inverted, reason
from index_build.gpu import Layout, to_gpus
from index_build.index_manifest import MANIFEST_NAME, IndexManifest, read_manifest
from index_build.slot_search import SlotSearch
from index_build.slots import SLOTS_NAME, Slots

INDEX_NAME = "index.faiss"
LISTS_NAME = "lists.ivfdata"
LIST_SIZES_NAME = "lists.npy"
IDS_NAME = "ids.parquet"
QUERIES_NAME = "queries.npy"
CURRENT_NAME = "CURRENT"
LOCK_NAME = ".lock"

_VERSION_NAME = re.compile(r"v(\d{6,})")

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]


class OpenIndex:
    """One index version, verified and ready to search."""

    def __init__(self, folder: Path, manifest: IndexManifest, searched: SlotSearch) -> None:
        """Take over a verified index; use `open_index`."""
        self.folder = folder
        self.manifest = manifest
        self._searched = searched

    def search(self, vectors: Float32s, k: int) -> Neighbours:
        """Return the k nearest rows of each vector.

        Returns:
            Scores and rows [Q, k]: rows of the embedding set that `ids` names; row -1 (score -inf) where the index
            gives fewer than k. A deleted passage is never among them.
        """
        return self._searched.search(vectors, k)

    def on_gpus(self, gpus: int, layout: Layout) -> OpenIndex:
        """Return the index on so many GPUs; with none, itself. See `to_gpus`.

        Raises:
            UserError: rows were deleted from it, which a GPU would find.
        """
        if not gpus:
            return self
        if self.slots.dead:
            raise UserError(f"{self.folder} has deleted rows, which a search on a GPU would find; build it anew")
        return OpenIndex(
            self.folder, self.manifest, SlotSearch(to_gpus(self._searched.index, gpus, layout), self.slots)
        )

    @property
    def index(self) -> faiss.Index:
        """The FAISS index; its ids are slots."""
        return self._searched.index

    @property
    def slots(self) -> Slots:
        """What its slots hold."""
        return self._searched.slots or Slots.fresh(self.manifest.ntotal)

    @property
    def searched(self) -> SlotSearch:
        """The index as it is searched; its parameters can be set."""
        return self._searched

    @cached_property
    def ids(self) -> list[str]:
        """Passage ids by row; all of them in memory. See `ids_of` for some."""
        ids: list[str] = pq.read_table(self.folder / IDS_NAME, columns=["id"]).column("id").to_pylist()
        return ids


def open_index(root: Path, version: int | None = None) -> OpenIndex:
    """Open an index version, the current one by default, after its checksums matched.

    Raises:
        UserError: there is no such version, or a file is damaged.
    """
    version = current_version(root) if version is None else version
    folder = version_dir(root, version)
    manifest = load_manifest(root, version)
    verify_files(folder, manifest)
    index = read_faiss(folder)
    slots = Slots.read(folder, index.ntotal) if SLOTS_NAME in manifest.files else None
    if index.d != manifest.dim or (slots is None and index.ntotal != manifest.ntotal):
        raise UserError(f"{folder} holds {index.ntotal} vectors of {index.d}, its manifest says otherwise; roll back")
    searched = SlotSearch(index, slots)
    searched.set(manifest.search)
    return OpenIndex(folder, manifest, searched)


def verify_files(folder: Path, manifest: IndexManifest) -> None:
    """Compare every file of a version with its checksum.

    Raises:
        UserError: one is missing or damaged.
    """
    if missing := {INDEX_NAME, IDS_NAME} - set(manifest.files):
        raise UserError(f"{folder / MANIFEST_NAME} names no {min(missing)}; build the index again")
    for name, wanted in manifest.files.items():
        path = folder / name
        found = sha256_file(path) if path.is_file() and path.parent == folder else "missing"
        if found != wanted:
            raise UserError(
                f"{path} is damaged: sha256 {found}, its manifest says {wanted}; "
                "roll back to another version or build the index again"
            )


def read_faiss(folder: Path) -> faiss.Index:
    """Read the FAISS index of a version whose files were verified; lists on disk stay there.

    Raises:
        UserError: FAISS cannot read it.
    """
    try:
        index = faiss.read_index(str(folder / INDEX_NAME))
    except RuntimeError as error:
        raise UserError(f"{folder / INDEX_NAME} cannot be read: {reason(error)}; build the index again") from error
    if (folder / LISTS_NAME).exists():
        _attach_lists(index, folder)
    return index


def _attach_lists(index: faiss.Index, folder: Path) -> None:
    """Let an empty index read its lists from their file.

    FAISS could keep the file's name itself, but finds a folder that has moved only by a flag that prints to stdout.
    """
    lists, path = inverted(index), folder / LISTS_NAME
    sizes = np.load(folder / LIST_SIZES_NAME, allow_pickle=False)
    if lists is None or sizes.shape != (lists.nlist,):
        raise UserError(f"{folder} has {sizes.shape} lists on disk, its index wants others; build the index again")
    total = int(sizes.sum()) * (int(lists.code_size) + 8)
    if path.stat().st_size != total:
        raise UserError(f"{path} has {path.stat().st_size} bytes, wanted {total}; build the index again")
    if not total:
        return
    on_disk: Any = faiss.OnDiskInvertedLists(lists.nlist, lists.code_size, str(path))
    on_disk.set_all_lists_sizes(faiss.swig_ptr(sizes.astype(np.uint64)))
    on_disk.totsize = total
    on_disk.read_only = True
    on_disk.do_mmap()
    lists.replace_invlists(on_disk, True)
    on_disk.this.disown()
    lists.ntotal = index.ntotal = int(sizes.sum())


@contextmanager
def one_writer(root: Path) -> Iterator[None]:
    """Keep others from writing a version of this index while the block runs.

    Raises:
        UserError: somebody is at it.
    """
    with locked(root / LOCK_NAME, wait=False) as got:
        if not got:
            raise UserError(f"another process is writing a version of {root}; wait until it is done")
        yield


def list_versions(root: Path) -> list[int]:
    """Return the numbers of all whole versions, oldest first."""
    names = (_VERSION_NAME.fullmatch(place.parent.name) for place in root.glob(f"v*/{MANIFEST_NAME}"))
    return sorted(int(name[1]) for name in names if name)


def next_version(root: Path) -> int:
    """Return the number after the highest that was ever given, whole or not."""
    numbers = [int(place.name[1:]) for place in root.glob("v*") if place.name[1:].isdigit()]
    return max(numbers, default=0) + 1


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
    with one_writer(root):
        make_current(root, version)
    return opened.manifest


def load_manifest(root: Path, version: int) -> IndexManifest:
    """Read a version's manifest.

    Raises:
        UserError: there is no such version, or the manifest is damaged.
    """
    folder = version_dir(root, version)
    if not (folder / MANIFEST_NAME).is_file():
        known = ", ".join(str(number) for number in list_versions(root)) or "none"
        raise UserError(f"{root} has no index version {version}; there are: {known}")
    return read_manifest(folder)


def version_dir(root: Path, version: int) -> Path:
    """Return the folder of a version."""
    return root / f"v{version:06d}"
