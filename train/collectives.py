"""The few collectives that training needs, each the identity in a single process.

Axes: b rows of this rank, N rows of all ranks, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in rank order; gradients flow back to the rank that made each row.

    The backward pass sums what every rank's loss says of a row. So when each rank's loss is the mean over its
    own queries, and the engine averages parameter gradients over ranks as DDP does, the result is exactly the
    gradient of the mean over the global batch. Scaling by the world size, or detaching remote rows, breaks this.

    Args:
        rows: [b, …]; b may differ between ranks, the other axes may not.

    Returns:
        [N, …], the same on every rank.
    """
    if world_size() == 1:
        return rows
    return cast(Tensor, _GatherRows.apply(rows))  # type: ignore[no-untyped-call]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum over ranks, without gradient."""
    total = values.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest of the ranks' integers."""
    if not dist.is_initialized():
        return value
    highest = torch.tensor(value, device=device)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return int(highest.item())


def row_offset(rows: int, device: torch.device) -> int:
    """Return where this rank's rows begin in what `gather_rows` returns."""
    return sum(_row_counts(rows, device)[: rank()])


def gather_numbers(numbers_m: Tensor) -> Tensor:
    """Return every rank's numbers, [W, m], in rank order; the same on every rank.

    One collective for all the small facts that a step must agree on. In float64 counts are exact, and sums over
    the first axis are added in the same order everywhere.
    """
    table_Wm = numbers_m.new_zeros((world_size(), *numbers_m.shape))
    table_Wm[rank()] = numbers_m.detach()
    if dist.is_initialized():
        dist.all_reduce(table_Wm)
    return table_Wm


def gather_counted(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Do what `gather_rows` does where every rank's number of rows is known, and without gradient."""
    if world_size() == 1:
        return rows.detach()
    return _all_rows(rows.detach(), counts)


def sum_counted(rows_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Add up what every rank says of all rows, and return what was said of this rank's: `gather_counted` reversed.

    Args:
        rows_ND: one value for each row of all ranks. Not kept: it may be overwritten.
        counts: the number of rows of each rank.
    """
    if world_size() == 1:
        return rows_ND
    if dist.get_backend() == "gloo":  # its reduce-scatter took three times as long as its all-reduce
        total_ND = rows_ND.contiguous()
        dist.all_reduce(total_ND)
        return cast(Tensor, total_ND.split(list(counts))[rank()])
    return _reduce_scatter(rows_ND, counts)


def _reduce_scatter(rows_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Pad every rank's rows to the longest, since the backends want equal parts."""
    longest = max(counts)
    parts = [rows_ND.new_zeros((longest, *rows_ND.shape[1:])) for _ in counts]
    for part, own in zip(parts, rows_ND.split(list(counts)), strict=True):
        part[: len(own)] = own
    total = torch.empty_like(parts[0])
    dist.reduce_scatter(total, parts)
    return total[: counts[rank()]]


def _all_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    longest = max(counts)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = rows.new_empty((len(counts) * longest, *rows.shape[1:]))
    dist.all_gather(list(gathered.split(longest)), padded)
    if min(counts) == longest:
        return gathered
    return torch.cat([part[:count] for part, count in zip(gathered.split(longest), counts, strict=True)])


def _row_counts(rows: int, device: torch.device) -> list[int]:
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = rows
    if dist.is_initialized():
        dist.all_reduce(counts)
    return cast(list[int], counts.tolist())


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = _row_counts(len(rows), rows.device)
        ctx.counts = counts
        return _all_rows(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # An all-reduce moves twice a reduce-scatter's bytes; gloo has no reduce-scatter for uneven rows, and
        # the vectors are small beside the gradients that DDP reduces anyway.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return cast(Tensor, total.split(ctx.counts)[rank()])
