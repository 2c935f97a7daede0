"""Queries that recall is measured with, from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import UserError

Float32s = NDArray[np.float32]

_TEXT_KEYS = ("text", "query")


def read_queries(path: Path, dim: int, snapshot: Path) -> Float32s:
    """Read queries as vectors.

    Args:
        path: `.npy` holds vectors; `.jsonl` a `text` or `query` a line, as BEIR's `queries.jsonl`; any other file a
            text a line. Texts are embedded by the snapshot.
        dim: length of a vector.
        snapshot: folder of the encoder that embedded the corpus; not opened for vectors.

    Raises:
        UserError: the file is not there, holds nothing, or is not what its name says.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give queries as .npy, .jsonl or text, one a line")
    if path.suffix == ".npy":
        return _vectors(path, dim)
    texts = list(_texts(path))
    if len(texts) < 2:
        raise UserError(f"{path} holds {len(texts)} queries; recall is measured with two or more")
    from encoder.embed import embed_texts
    from encoder.snapshot import load_encoder

    encoder = load_encoder(snapshot)
    return embed_texts(encoder, texts, side="query", dim=None if dim == encoder.dim else dim)


def _vectors(path: Path, dim: int) -> Float32s:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no .npy of numbers ({error})") from None
    if found.ndim != 2 or found.shape[1] != dim or len(found) < 2:
        raise UserError(f"{path} holds an array of shape {found.shape}; wanted two or more rows of {dim} dimensions")
    if not np.isfinite(found).all():
        raise UserError(f"{path} holds numbers that are not finite")
    return np.ascontiguousarray(found, dtype=np.float32)


def _texts(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if path.suffix != ".jsonl":
                yield line.strip()
                continue
            try:
                row = json.loads(line)
                yield str(next(row[key] for key in _TEXT_KEYS if key in row))
            except (json.JSONDecodeError, TypeError, StopIteration):
                raise UserError(f"{path} line {number} is no JSON object with a `text` or a `query`") from None
