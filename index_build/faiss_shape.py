"""What a FAISS index is made of: its lists, its refinement, its bytes. No search, no building."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

_faiss: Any = faiss  # its types know not all that it has
_LIST_ID_BYTES = 8  # an inverted list keeps a 64-bit id beside each code
_LINK_BYTES = 4


def inverted(index: faiss.Index) -> Any | None:
    """Return the inverted file inside an index, None where it has none."""
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def lists_of(index: faiss.Index) -> int:
    """Return the number of inverted lists; 0 where there are none."""
    found = inverted(index)
    return 0 if found is None else int(found.nlist)


def refined(index: faiss.Index) -> Any | None:
    """Return the index as one that scores its best candidates again by finer codes, None where it does not."""
    whole = faiss.downcast_index(index)
    return whole if isinstance(whole, faiss.IndexRefine) else None


def graph(index: faiss.Index) -> Any | None:
    """Return the index as a graph (HNSW), None where it is none."""
    whole = faiss.downcast_index(index)
    return whole if isinstance(whole, faiss.IndexHNSW) else None


def blocked_lists(index: faiss.Index) -> bool:
    """Whether its lists hold codes of many rows woven together (fast scan): those have no place on disk."""
    found = inverted(index)
    return found is not None and isinstance(faiss.downcast_InvertedLists(found.invlists), _faiss.BlockInvertedLists)


def can_merge(index: faiss.Index) -> bool:
    """Whether parts of it may be filled apart and put together: inverted files and flat codes, refined or not."""
    fine = refined(index)
    if fine is not None:
        return can_merge(fine.base_index) and isinstance(
            faiss.downcast_index(fine.refine_index), faiss.IndexFlatCodes
        )
    return inverted(index) is not None or isinstance(faiss.downcast_index(index), faiss.IndexFlatCodes)


def row_bytes(index: faiss.Index) -> int:
    """Return the bytes that one vector takes in the index, ids and links included."""
    whole: Any = faiss.downcast_index(index)
    if isinstance(whole, faiss.IndexRefine):
        return row_bytes(whole.base_index) + row_bytes(whole.refine_index)
    if isinstance(whole, faiss.IndexPreTransform):
        return row_bytes(whole.index)
    if isinstance(whole, faiss.IndexHNSW):
        hnsw: Any = whole.hnsw
        links = int(hnsw.nb_neighbors(0)) + _LIST_ID_BYTES // _LINK_BYTES * 2
        return row_bytes(whole.storage) + _LINK_BYTES * links
    found = inverted(whole)
    if found is not None:
        return int(found.code_size) + _LIST_ID_BYTES
    return int(whole.sa_code_size())


def fixed_bytes(index: faiss.Index) -> int:
    """Return the bytes of its centroids, which do not grow with the rows."""
    found = inverted(index)
    if found is None:
        return 0
    graph_links = 2 * 32 * _LINK_BYTES if isinstance(faiss.downcast_index(found.quantizer), faiss.IndexHNSW) else 0
    return int(found.nlist) * (4 * int(found.d) + graph_links)


def list_sizes(index: faiss.Index) -> Int64s:
    """Return how many rows each inverted list holds; empty where there are no lists."""
    found = inverted(index)
    if found is None:
        return np.empty(0, np.int64)
    return np.array([found.invlists.list_size(number) for number in range(found.nlist)], dtype=np.int64)


def reason(error: RuntimeError) -> str:
    """Return FAISS's own words without the place in its C++ source that comes before them."""
    text = str(error).strip().splitlines()[0]
    _, found, tail = text.partition(": Error: ")
    if found:
        return tail
    return text.split(": ", 1)[1] if text.startswith("Error in ") and ": " in text else text
