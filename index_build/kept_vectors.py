"""In what form vectors are kept on disk, and how they come back as float32.

    float32   as the encoder gave them
    float16   half the room; the default
    int8      a quarter: a scale a row, which depends on that row alone, and a code of -127 to 127 a dimension
    binary    a thirty-second: the signs, packed; they come back as ±1/√dim, so of length 1

What a row becomes depends on nothing but the row: not on its part, its worker or its neighbours.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError

Kept = Literal["float32", "float16", "int8", "binary"]
KEPT: tuple[Kept, ...] = get_args(Kept)

Float32s = NDArray[np.float32]
Stored = NDArray[Any]

_LARGEST_CODE = 127


def check_kept(kept: str, dim: int | None) -> None:
    """Refuse a kind that there is not, and a length that is none.

    Raises:
        UserError: either.
    """
    if kept not in KEPT:
        raise UserError(f"vectors cannot be kept as {kept!r}; there are: {', '.join(KEPT)}")
    if dim is not None and dim < 1:
        raise UserError(f"vectors cannot be cut to {dim} dimensions; give 1 or more")


def pack(vectors: Float32s, kept: Kept) -> Stored:
    """Return vectors as they are kept: one array, a row each.

    Args:
        vectors: float32 [rows, dim], finite.
        kept: the kind. Of float16, what is too large becomes infinite.
    """
    if kept == "float32":
        return vectors.astype(np.float32, copy=False)
    if kept == "float16":
        with np.errstate(over="ignore"):  # whoever writes them looks
            return vectors.astype(np.float16)
    if kept == "binary":
        return np.packbits(vectors > 0, axis=1)
    stored = np.zeros(len(vectors), dtype=_int8_row(vectors.shape[1]))
    scale = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(_LARGEST_CODE)
    divisor = np.where(scale > 0, scale, np.float32(1.0))[:, None]
    stored["scale"] = scale
    stored["codes"] = np.rint(vectors / divisor).clip(-_LARGEST_CODE, _LARGEST_CODE)
    return stored


def unpack(stored: Stored, kept: Kept, dim: int) -> Float32s:
    """Return kept rows as float32 [rows, dim]."""
    if kept == "binary":
        signs = np.unpackbits(np.asarray(stored), axis=1, count=dim).astype(np.float32)
        found: Float32s = (2 * signs - 1) / np.float32(np.sqrt(dim))
        return found
    if kept == "int8":
        scaled: Float32s = stored["codes"].astype(np.float32) * stored["scale"][:, None]
        return scaled
    return stored.astype(np.float32)


def is_stored_as(stored: Stored, kept: Kept, dim: int) -> bool:
    """Tell whether an array has the type and the width that its set's manifest speaks of."""
    if kept == "int8":
        return stored.ndim == 1 and stored.dtype == _int8_row(dim)
    wanted = {"float32": np.float32, "float16": np.float16, "binary": np.uint8}[kept]
    width = (dim + 7) // 8 if kept == "binary" else dim
    return stored.dtype == wanted and stored.ndim == 2 and stored.shape[1] == width


def _int8_row(dim: int) -> np.dtype[np.void]:
    return np.dtype([("scale", "<f4"), ("codes", "i1", (dim,))])
