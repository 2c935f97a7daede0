"""Copies an engine's pieces to host memory, so that training goes on while they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from train.state_files import Piece

_SLAB_BYTES = 64 << 20
_ALIGN_BYTES = 64


class HostCopy:
    """Host memory that each copy reuses: pinning, and touching fresh pages, cost more than the copy itself.

    It holds what the largest copy took, 12 bytes a parameter of this rank for weights and AdamW's two averages.
    """

    def __init__(self, device: torch.device) -> None:
        """Hold nothing yet.

        Args:
            device: where the pieces are; for a GPU the memory is pinned, and the copies overlap.
        """
        self._device = device
        self._slabs: list[Tensor] = []
        self._slab = 0  # the one that is being filled
        self._used = 0  # bytes of it

    def copy(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Return the pieces on the host, whole when this returns; empty ones are left out.

        What the last copy returned is overwritten.
        """
        self._slab = self._used = 0
        copies = []
        for piece in pieces:
            if piece.flat.numel():
                flat = self._room(piece.bytes).view(piece.flat.dtype)
                flat.copy_(piece.flat.detach(), non_blocking=True)
                copies.append(replace(piece, flat=flat))
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return copies

    def _room(self, size: int) -> Tensor:
        """Return so many bytes, in one stretch."""
        while self._slab < len(self._slabs):
            slab = self._slabs[self._slab]
            if self._used + size <= slab.numel():
                start, self._used = self._used, self._used + math.ceil(size / _ALIGN_BYTES) * _ALIGN_BYTES
                return slab[start : start + size]
            self._slab, self._used = self._slab + 1, 0
        pinned = self._device.type == "cuda"
        self._slabs.append(torch.empty(max(size, _SLAB_BYTES), dtype=torch.uint8, pin_memory=pinned))
        return self._room(size)
