"""Rows of WebDataset tars: one a sample, whatever members it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data_shards.errors import UserError
from data_shards.rows import Row
from data_shards.tar import read_span, scan_offsets, span_key

_TEXTS = ("txt", "text", "md", "html", "cls")


def tar_rows(path: Path) -> Iterator[Row]:
    """Yield the samples of a tar as rows.

    The fields of a member `KEY.json` are columns by themselves. Of others, `KEY.query.txt` is the column `query.txt`,
    and `query` too where nothing else has that name; `KEY.meta.json` likewise. The key is the column `__key__`.
    Members of other kinds (images, arrays, pickles) are never looked into.

    Raises:
        ShardCorruptError: the archive is damaged; the message says where.
        UserError: it is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    offsets = scan_offsets(path).tolist()  # no sidecar is written: the place is not ours
    view = np.memmap(path, dtype=np.uint8, mode="r").data
    for number, (begin, end) in enumerate(pairwise(offsets), 1):
        members = read_span(view[begin:end], path, begin)
        try:
            values = _values(members)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
            yield Row({}, path, number, "sample", problem=str(error), raw=b"\n".join(members.values()))
            continue
        values.setdefault("__key__", span_key(view[begin:end], path, begin))
        yield Row(values, path, number, "sample")


def _values(members: dict[str, bytes]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for extension, payload in members.items():
        stem, _, kind = extension.rpartition(".")
        if extension == "json":
            fields = msgspec.json.decode(payload)
            if not isinstance(fields, dict):
                raise TypeError(f"wanted a JSON object, came {type(fields).__name__}")
            values |= fields
        elif kind == "json":
            values[extension] = msgspec.json.decode(payload)
        elif kind in _TEXTS:
            values[extension] = payload.decode()
        if extension in values and stem:
            values.setdefault(stem, values[extension])
    return values
