"""Puts the chunks of an index together, in row order, with one chunk in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import allocate
from data_shards.npy import npy_bytes
from index_build.faiss_shape import blocked_lists, inverted, list_sizes, lists_of, refined
from index_build.index_version import INDEX_NAME, LIST_SIZES_NAME, LISTS_NAME, read_faiss

Int64s = NDArray[np.int64]

_ID_BYTES = 8


def merge_in_memory(trained: Path, chunks: Sequence[Path]) -> faiss.Index:
    """Return one index of all chunks; the first that was written comes first."""
    whole = faiss.read_index(str(trained))
    if lists_of(whole) and not blocked_lists(whole):
        reserve(whole, _sizes(chunks))
    for path in chunks:
        append(whole, faiss.read_index(str(path)))
    return whole


def append(whole: faiss.Index, chunk: faiss.Index) -> None:
    """Move a chunk's rows to the end of an index; ids of lists are kept, flat codes go on counting."""
    fine, other = refined(whole), refined(chunk)
    if fine is not None and other is not None:  # FAISS merges the two halves, but not their pair
        append(fine.base_index, other.base_index)
        append(fine.refine_index, other.refine_index)
        fine.ntotal = fine.base_index.ntotal
        return
    whole.merge_from(chunk, 0)


def reserve(index: faiss.Index, sizes: Int64s) -> None:
    """Take each list's final room at once: grown bit by bit, lists take up to twice what they hold."""
    lists = inverted(index)
    assert lists is not None
    for number, size in enumerate(sizes.tolist()):
        held = lists.invlists.list_size(number)
        lists.invlists.resize(number, held + size)
        lists.invlists.resize(number, held)


def merge_on_disk(trained: Path, chunks: Sequence[Path], folder: Path) -> faiss.Index:
    """Write the lists of all chunks to one file of a version's folder, and return an index that reads them there.

    Each list's place follows from its size in every chunk, so that chunk after chunk is read and its pieces are
    written where they belong: the file is never mapped to be written, and memory holds one chunk.
    """
    parts = [np.load(_sizes_path(path), allow_pickle=False) for path in chunks]
    whole = faiss.read_index(str(trained))
    writer = ListWriter(folder, whole, np.sum(parts, axis=0, dtype=np.int64))
    for path in chunks:
        writer.add(faiss.read_index(str(path)))
    return writer.finish()


class ListWriter:
    """Writes inverted lists to a file in FAISS's own layout: of each list its codes, then its ids."""

    def __init__(self, folder: Path, whole: faiss.Index, sizes: Int64s) -> None:
        """Take a version's folder, the trained index, empty, and how many rows each list will hold.

        Raises:
            OSError: there is no room.
        """
        self._folder, self._whole, self._sizes = folder, whole, sizes
        lists = inverted(whole)
        assert lists is not None
        self._code = int(lists.code_size)
        self._begins = np.concatenate([[0], np.cumsum(sizes * (self._code + _ID_BYTES))]).astype(np.int64)
        self._written = np.zeros(len(sizes), dtype=np.int64)
        self._file = open(folder / LISTS_NAME, "w+b")
        allocate(self._file, int(self._begins[-1]))

    def add(self, chunk: faiss.Index) -> None:
        """Write a chunk's rows behind those that are there."""
        source = inverted(chunk)
        assert source is not None
        for number, size in enumerate(list_sizes(chunk).tolist()):
            if not size:
                continue
            begin, before = int(self._begins[number]), int(self._written[number])
            codes = faiss.rev_swig_ptr(source.invlists.get_codes(number), size * self._code)
            ids = faiss.rev_swig_ptr(source.invlists.get_ids(number), size)
            self._write(codes, begin + before * self._code)
            self._write(ids, begin + int(self._sizes[number]) * self._code + before * _ID_BYTES)
            self._written[number] += size

    def finish(self) -> faiss.Index:
        """Write the trained index and the lists' sizes beside them, and open all of it."""
        self._file.close()
        assert (self._written == self._sizes).all()
        faiss.write_index(self._whole, str(self._folder / INDEX_NAME))
        (self._folder / LIST_SIZES_NAME).write_bytes(npy_bytes(self._sizes))
        return read_faiss(self._folder)

    def _write(self, values: NDArray[Any], place: int) -> None:
        view: memoryview = values.view(np.uint8).data
        while view:
            count = os.pwrite(self._file.fileno(), view, place)
            view, place = view[count:], place + count


def _sizes(chunks: Sequence[Path]) -> Int64s:
    total: Int64s = np.sum([np.load(_sizes_path(path), allow_pickle=False) for path in chunks], axis=0)
    return total


def _sizes_path(chunk: Path) -> Path:
    return chunk.with_suffix(".sizes.npy")
