"""Searches a FAISS index past its dead slots: they take part in nothing, and k neighbours are still k neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError
from index_build.exact import Neighbours
from index_build.faiss_shape import graph, inverted, reason, refined
from index_build.slots import Slots

Float32s = NDArray[np.float32]

_faiss: Any = faiss  # what SWIG's classes take is in none of its types


class SlotSearch:
    """A FAISS index whose neighbours come out as rows of the embedding set."""

    def __init__(self, index: faiss.Index, slots: Slots | None = None) -> None:
        """Take an index and, where slots are not rows, what they hold."""
        self.index = index
        self.slots = slots
        self._living: Any = None
        if slots is not None and slots.dead:
            self._living = _faiss.IDSelectorBitmap(slots.living_bits())

    def set(self, parameters: Mapping[str, int]) -> None:
        """Set search parameters: see `set_search_parameters`."""
        set_search_parameters(self.index, parameters)

    def search(self, queries: Float32s, k: int) -> Neighbours:
        """Return the k nearest rows of each vector, best first; row -1 (score -inf) where there are fewer."""
        if queries.shape[1] != self.index.d:
            raise UserError(f"the index holds vectors of {self.index.d} dimensions, the query has {queries.shape[1]}")
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        if self._living is None:
            scores, slots = self.index.search(wanted, k)
        else:
            scores, slots = self._past_the_dead(wanted, k)
        rows = slots.astype(np.int64)
        missing = rows < 0
        if self.slots is not None:
            rows = self.slots.rows_of(rows)
        return Neighbours(np.where(missing, -np.inf, scores).astype(np.float32), rows)

    def _past_the_dead(self, queries: Float32s, k: int) -> tuple[Float32s, NDArray[np.int64]]:
        try:
            found: tuple[Float32s, NDArray[np.int64]] = self.index.search(
                queries, k, params=_parameters(self.index, self._living)
            )
        except RuntimeError as error:
            raise UserError(
                f"this FAISS cannot leave out deleted rows in an index of this kind ({reason(error)}); build it anew"
            ) from error
        return found


def set_search_parameters(index: faiss.Index, parameters: Mapping[str, int]) -> None:
    """Set `nprobe`, `efSearch`, `k_factor`, on an index of any nesting.

    Raises:
        UserError: the index knows no such parameter.
    """
    for name, value in parameters.items():
        lists, fine, links = inverted(index), refined(index), graph(index)
        if name == "k_factor" and fine is not None:
            fine.k_factor = value
        elif name == "efSearch" and links is not None:
            links.hnsw.efSearch = value
        elif name == "nprobe" and lists is not None:
            lists.nprobe = value
            coarse = graph(lists.quantizer)
            if coarse is not None:  # it finds as many lists as are probed, and finds them well by looking at more
                coarse.hnsw.efSearch = max(2 * value, 32)
        else:
            raise UserError(f"an index of this kind has no search parameter {name!r}")


def _parameters(index: faiss.Index, living: Any) -> Any:
    """Return what the index is set to, as parameters of one search that leaves out what is dead."""
    whole = _faiss.downcast_index(index)
    if isinstance(whole, _faiss.IndexRefine):
        inner = _parameters(whole.base_index, living)
        return _faiss.IndexRefineSearchParameters(k_factor=whole.k_factor, base_index_params=inner)
    if isinstance(whole, _faiss.IndexPreTransform):
        return _faiss.SearchParametersPreTransform(index_params=_parameters(whole.index, living))
    if isinstance(whole, _faiss.IndexHNSW):
        return _faiss.SearchParametersHNSW(sel=living, efSearch=whole.hnsw.efSearch)
    lists: Any = inverted(whole)
    if lists is None:
        return _faiss.SearchParameters(sel=living)
    if type(lists).__name__ == "IndexIVFRaBitQ":  # an older FAISS has no such class
        return _faiss.IVFRaBitQSearchParameters(sel=living, nprobe=lists.nprobe, qb=lists.qb, centered=False)
    return _faiss.SearchParametersIVF(sel=living, nprobe=lists.nprobe)
