"""The files of a checkpoint: pieces of flattened tensors, whichever engine wrote them on however many ranks.

    rank-00000-of-00004.safetensors   the pieces of one rank, each a 1-D tensor named `kind|parameter|start`
    rank-00000-of-00004.json          their rows, the size and the checksum: written last, the rank's own commit
    state.json                        the shapes, and the checksum of every file: written after all ranks' commits

A piece knows its place in its flattened parameter, and nothing of who held it. So any engine at any world size reads
the ranges that it needs, and another engine or world size is no conversion. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_shards.atomic import fsync_file, read_json, sha256_file, write_json
from data_shards.errors import UserError

_STATE = "state.json"
_FORMAT = 2  # 1 was each engine's own files
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
Shapes = Mapping[str, Sequence[int]]
"""The full shape of every parameter, also where ranks hold parts of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one flattened tensor that belongs to a parameter."""

    kind: str
    """What it is of the parameter: `weight`, `exp_avg`, `exp_avg_sq` or `ema`."""
    name: str
    """The parameter, by its name in the bare encoder."""
    start: int
    """Where it begins in the flattened tensor."""
    flat: Tensor
    """One axis, float32 or float64, on any device."""

    def __post_init__(self) -> None:
        """Check what an engine gave."""
        if not self.kind or "|" in self.kind or self.start < 0:
            raise ValueError(f"a piece wants a kind without '|' and a start of at least 0, came {self.key}")
        if self.flat.ndim != 1 or self.flat.dtype not in _DTYPES.values():
            raise ValueError(
                f"{self.key}: a piece is flat, float32 or float64; came {self.flat.dtype} {[*self.flat.shape]}"
            )

    @property
    def key(self) -> str:
        """Its name in the file."""
        return _key(self.kind, self.name, self.start)

    @property
    def stop(self) -> int:
        """Where it ends in the flattened tensor."""
        return self.start + self.flat.numel()

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.flat.numel() * self.flat.element_size()


@dataclass(frozen=True, slots=True)
class _Span:
    """A piece on disk."""

    start: int
    stop: int
    dtype: str
    part: str


def part_name(rank: int, world_size: int) -> str:
    """Return the name of a rank's files, without their suffix."""
    return f"rank-{rank:05d}-of-{world_size:05d}"


def write_part(folder: Path, pieces: Sequence[Piece], *, rank: int, world_size: int) -> None:
    """Write one rank's pieces, flushed to disk, and then the JSON that commits them.

    Args:
        folder: a checkpoint in the making.
        pieces: on the host; none is empty, no two begin at the same place.
        rank: whose they are.
        world_size: ranks that write.
    """
    file = folder / f"{part_name(rank, world_size)}.safetensors"
    save_file({piece.key: piece.flat for piece in pieces}, file)
    fsync_file(file)
    rows = [
        {
            "kind": piece.kind,
            "name": piece.name,
            "start": piece.start,
            "length": piece.flat.numel(),
            "dtype": str(piece.flat.dtype).removeprefix("torch."),
        }
        for piece in pieces
    ]
    head = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    write_json(file.with_suffix(".json"), {**head, "pieces": rows})


def write_state(folder: Path, head: dict[str, Any], *, world_size: int) -> None:
    """Write `state.json` over the parts of all ranks: the last file of a checkpoint.

    Args:
        folder: holds the committed part of every rank.
        head: `shapes`, and whatever else belongs to the checkpoint; values of JSON.
        world_size: ranks that wrote.

    Raises:
        ValueError: the ranks' pieces do not make whole tensors. The engine is wrong, and its checkpoint would be.
    """
    files: dict[str, str] = {}
    spans: dict[tuple[str, str], list[_Span]] = {}
    for rank in range(world_size):
        name = part_name(rank, world_size)
        part = read_json(folder / f"{name}.json")
        if (folder / f"{name}.safetensors").stat().st_size != part["bytes"]:
            raise UserError(f"{folder / name}.safetensors is not as long as its rank wrote it; is the disk shared?")
        files[f"{name}.json"] = sha256_file(folder / f"{name}.json")
        files[f"{name}.safetensors"] = part["sha256"]
        _add_spans(spans, part["pieces"], name)
    _check_whole(spans, head["shapes"])
    row = {"format": _FORMAT, **head, "files": files}
    write_json(folder / _STATE, {**row, "checksum": _checksum(row)})


def read_state(path: Path) -> dict[str, Any]:
    """Return the `state.json` of a checkpoint.

    Raises:
        UserError: it is missing or damaged, or of another format.
    """
    row = read_json(path / _STATE)
    if not isinstance(row, dict) or row.get("format") != _FORMAT:
        came = row.get("format", 1) if isinstance(row, dict) else "none"
        raise UserError(f"{path / _STATE} has format {came}, this dipole reads {_FORMAT}; another version wrote it")
    if row.pop("checksum", None) != _checksum(row):
        raise UserError(f"{path / _STATE} is damaged: its checksum does not match")
    # Names from a file are paths in a moment: only those of ranks can be.
    if not all(re.fullmatch(r"rank-\d{5,}-of-\d{5,}\.(json|safetensors)", name) for name in row["files"]):
        raise UserError(f"{path / _STATE} names files that are no rank's")
    return row


class StateReader:
    """Reads ranges of a checkpoint's tensors, whoever wrote them. The checkpoint was verified before."""

    def __init__(self, path: Path) -> None:
        """Read the rows of all ranks; tensors stay on disk until they are asked for.

        Args:
            path: the folder of a checkpoint.

        Raises:
            UserError: it is no checkpoint, or one of another format.
        """
        row = read_state(path)
        self._path = path
        self._shapes = {name: tuple(shape) for name, shape in row["shapes"].items()}
        self.extra: dict[str, Any] = row["extra"]
        """What engine and objective gave to be kept beside the tensors."""
        self._spans: dict[tuple[str, str], list[_Span]] = {}
        for file in sorted(row["files"]):
            if file.endswith(".json"):
                name = file.removesuffix(".json")
                _add_spans(self._spans, read_json(path / file)["pieces"], name)
        for spans in self._spans.values():
            spans.sort(key=lambda span: span.start)
        self._open: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters, in the order in which the engine gave them."""
        return tuple(self._shapes)

    @property
    def kinds(self) -> frozenset[str]:
        """What is there of them: `weight` for all, the others perhaps for some."""
        return frozenset(kind for kind, _ in self._spans)

    def has(self, kind: str, name: str) -> bool:
        """Whether there is anything of this kind: a frozen parameter has no optimiser state."""
        return (kind, name) in self._spans

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's full shape.

        Raises:
            UserError: the checkpoint knows no such parameter.
        """
        if name not in self._shapes:
            raise UserError(f"{self._path} holds no parameter {name}; it was written for another encoder")
        return self._shapes[name]

    def check_shapes(self, shapes: Shapes) -> None:
        """Make sure that the parameters are those of the model that is to read them.

        Raises:
            UserError: a parameter is missing on one side, or has another shape.
        """
        now = {name: tuple(shape) for name, shape in shapes.items()}
        for name in sorted(now.keys() | self._shapes.keys()):
            then, here = self._shapes.get(name, "missing"), now.get(name, "missing")
            if then != here:
                raise UserError(
                    f"the checkpoint {self._path.name} was written for another encoder: {name} is {then} there and "
                    f"{here} here; set the [encoder] section back, or start a new run with another run.out"
                )

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a range of a flattened tensor, from whichever ranks' files hold it; no other byte is read.

        Args:
            kind: as the engine named it.
            name: of the parameter.
            start: of the range.
            stop: of the range, exclusive; the tensor's end where it is None.

        Returns:
            [stop - start] on the CPU, the caller's own, in the dtype it was written in. Of an empty tensor nothing
            is on disk: it comes back in float32.

        Raises:
            UserError: part of the range is in no file.
        """
        size = math.prod(self.shape(name))
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{kind} of {name} has {size} values, asked were {start} to {stop}")
        spans = self._spans.get((kind, name), [])
        flat = torch.empty(stop - start, dtype=_DTYPES[spans[0].dtype] if spans else torch.float32)
        at = start
        for span in spans:
            if span.start > at or at == stop:
                break
            if span.stop > at:
                upto = min(span.stop, stop)
                # Copied: what safetensors hands out is a view of the mapped file, shared by all who read it.
                part = self._file(span.part).get_slice(_key(kind, name, span.start))
                flat[at - start : upto - start] = part[at - span.start : upto - span.start]
                at = upto
        if at < stop:
            raise UserError(f"{self._path} holds no {kind} of {name} from {at} to {stop}, of {size} values")
        return flat

    def full(self, kind: str, name: str) -> Tensor:
        """Read a whole tensor, in its shape."""
        return self.read(kind, name).view(self.shape(name))

    def _file(self, part: str) -> Any:
        if part not in self._open:
            file = self._path / f"{part}.safetensors"
            try:
                self._open[part] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read ({error}); it is damaged or was deleted") from None
        return self._open[part]


def _key(kind: str, name: str, start: int) -> str:
    return f"{kind}|{name}|{start}"


def _checksum(row: dict[str, Any]) -> str:
    """Of a JSON's meaning: keys in order, so that it is the same before writing and after reading."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _add_spans(spans: dict[tuple[str, str], list[_Span]], rows: Iterable[dict[str, Any]], part: str) -> None:
    for row in rows:
        start = row["start"]
        span = _Span(start, start + row["length"], row["dtype"], part)
        spans.setdefault((row["kind"], row["name"]), []).append(span)


def _check_whole(spans: dict[tuple[str, str], list[_Span]], shapes: Shapes) -> None:
    """Make sure that there is a weight for each parameter, and of each tensor either all or nothing."""
    wanted = {("weight", name) for name, shape in shapes.items() if math.prod(shape)}
    for kind, name in sorted(wanted | spans.keys()):
        if name not in shapes:
            raise ValueError(f"pieces came of {kind} of {name}, which has no shape")
        size, at = math.prod(shapes[name]), 0
        there = sorted(spans.get((kind, name), []), key=lambda span: span.start)
        for span in there:
            if span.start > at:
                break
            at = max(at, span.stop)
        if at != size or len({span.dtype for span in there}) > 1:
            came = ", ".join(f"{span.start} to {span.stop} {span.dtype} by {span.part}" for span in there[:8])
            raise ValueError(f"the pieces of {kind} of {name} do not make its {size} values of one dtype: {came}")
