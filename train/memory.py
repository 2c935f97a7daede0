"""Whether a batch's activations fit into memory: measured on one chunk, so that no formula has to know the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from train.batches import StepBatch
from train.collectives import max_over_ranks
from train.grad_cache import Backend

_log = logging.getLogger(__name__)
_HEADROOM = 1.3
"""Other batches have more tokens than the first; backward passes need room of their own."""
_GPU_SHARE, _HOST_SHARE = 0.85, 0.5
_CGROUP = Path("/sys/fs/cgroup")


def graphs_fit(backend: Backend, batches: Sequence[StepBatch], *, budget_gib: float) -> bool:
    """Say whether the graphs of a whole batch fit, on every rank alike; the gradient cache is for when they do not.

    Args:
        backend: encodes one chunk to measure it; its gradient is thrown away.
        batches: of the first step.
        budget_gib: memory for activations on each rank; 0 takes what is free on the device.
    """
    chunks = [chunk for batch in batches for chunk in batch.passages.chunks]
    # The first chunk has the longest texts, whose attention takes the most memory a token.
    chunk = chunks[0].to(backend.device)
    per_token = _saved_bytes(backend, chunk.input_ids, chunk.attention_mask, "passage") / chunk.input_ids.numel()
    need = _HEADROOM * per_token * max(batch.padded_tokens for batch in batches)
    budget = budget_gib * 2**30 or _free_bytes(backend.device)
    fits = not max_over_ranks(int(need > budget), backend.device)
    _log.info(
        "activations of a batch take about %.2f GiB here, %.2f GiB are there: the gradient cache is %s",
        need / 2**30,
        budget / 2**30,
        "off" if fits else "on",
    )
    return fits


def _saved_bytes(backend: Backend, *inputs: object) -> int:
    """Return the bytes that autograd keeps of one forward pass, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        # A parameter is there anyway, and so are views of one.
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with backend.sync(last=False), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = backend.forward(*inputs)
        total = sum(seen.values())
        if backend.equal_backwards:
            # Sharded engines expect the backward pass that belongs to a forward pass; it adds nothing.
            backend.backward((kept * 0).sum())
    return total


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _GPU_SHARE * (free + unused)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = float(psutil.virtual_memory().available)
    return _HOST_SHARE * min(available, _cgroup_bytes()) / ranks_here


def _cgroup_bytes() -> float:
    """Return what a container's own limit leaves."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else float(limit) - float(used)
