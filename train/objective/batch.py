"""The batch as the objective sees it: this rank's pairs as rows, all ranks' texts as columns.

Axes: b queries and n passages of this rank, Q and N of all ranks, r pairs of this rank, K known positives of a query,
W ranks, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from train.collectives import gather_counted, gather_numbers, rank, sum_counted, world_size
from train.objective.config import LossConfig
from train.objective.labels import Labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """This rank's (query, positive) pairs, in the order of its passages: the rows of the loss."""

    owner_r: Tensor
    """The query, as a local row."""
    place_r: Tensor
    """The positive, as a local row."""
    query_r: Tensor
    """The query, as a row of all ranks."""
    column_r: Tensor
    """The positive, as a row of all ranks."""
    query_hash_r: Tensor
    passage_hash_r: Tensor
    positive_hash_rK: Tensor
    weight_r: Tensor
    """Relevance, in the type of the scores."""
    share_r: Tensor
    """1 over the number of the query's positives: with it, a sum over pairs counts queries."""

    def __len__(self) -> int:
        """Return r."""
        return len(self.owner_r)

    def block(self, rows: slice) -> Pairs:
        """Return some of them."""
        return Pairs(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What is known of the texts of all ranks."""

    passage_hash_N: Tensor
    owner_hash_N: Tensor
    """The hash of the query that each passage came with."""
    owner_N: Tensor
    """That query, as a row of all ranks."""
    positive_N: Tensor
    query_hash_Q: Tensor | None
    """Where queries are columns as well."""
    positive_hash_QK: Tensor | None
    """Likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One call's vectors, as leaves whose `grad` the objective fills, and who is whose."""

    query_bD: Tensor
    passage_nD: Tensor
    passage_ND: Tensor
    """Of all ranks; what this rank's rows say of them, before it is summed over ranks."""
    query_QD: Tensor | None
    """Likewise, where queries are columns."""
    pairs: Pairs
    columns: Columns
    query_counts: list[int]
    passage_counts: list[int]
    scale: float
    """World size over the global sum of weights: weighted sums times this are a rank's share."""
    without_teacher: int
    """Queries of all ranks that cannot be distilled for want of a teacher's score."""

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradient of queries and passages, with what other ranks say of them: a collective or two."""
        query_bD, passage_nD = _grad(self.query_bD), _grad(self.passage_nD)
        passage_nD = passage_nD + sum_counted(_grad(self.passage_ND), self.passage_counts)
        if self.query_QD is not None:
            query_bD = query_bD + sum_counted(_grad(self.query_QD), self.query_counts)
        return query_bD, passage_nD


def gather_batch(query_bD: Tensor, passage_nD: Tensor, labels: Labels, config: LossConfig) -> Batch:
    """Gather vectors and labels of all ranks: the same collectives on every rank, whatever its part.

    Scores of half-precision vectors are made in float32; float64 stays.
    """
    wide = torch.promote_types(query_bD.dtype, torch.float32)
    query_bD, passage_nD = (_leaf(rows.detach().to(wide)) for rows in (query_bD, passage_nD))
    missing = labels.owner_n.new_zeros(()) if config.distill == "off" else _without_teacher(labels)
    counts = [len(query_bD), len(passage_nD), labels.positive_hash_bK.shape[1]]
    sums = [labels.weight_n.double()[labels.positive_n].sum(), missing.double()]
    table = gather_numbers(torch.cat([sums[0].new_tensor(counts), torch.stack(sums)]))
    queries, passages, known, weights, lacking = zip(*table.tolist(), strict=True)
    query_counts, passage_counts = [int(x) for x in queries], [int(x) for x in passages]
    first_query, first_passage = sum(query_counts[: rank()]), sum(passage_counts[: rank()])
    queries_too = config.symmetric or config.query_query
    return Batch(
        query_bD=query_bD,
        passage_nD=passage_nD,
        passage_ND=_leaf(gather_counted(passage_nD, passage_counts)),
        query_QD=_leaf(gather_counted(query_bD, query_counts)) if queries_too else None,
        pairs=_pairs(labels, first_query, first_passage, wide),
        columns=_columns(labels, first_query, query_counts, passage_counts, int(max(known)) if queries_too else None),
        query_counts=query_counts,
        passage_counts=passage_counts,
        scale=world_size() / sum(weights) if sum(weights) else 0.0,
        without_teacher=int(sum(lacking)),
    )


def _pairs(labels: Labels, first_query: int, first_passage: int, wide: torch.dtype) -> Pairs:
    place_r = labels.positive_n.nonzero().squeeze(1)
    owner_r = labels.owner_n[place_r]
    positives_b = torch.bincount(owner_r, minlength=len(labels.query_hash_b))
    return Pairs(
        owner_r=owner_r,
        place_r=place_r,
        query_r=owner_r + first_query,
        column_r=place_r + first_passage,
        query_hash_r=labels.query_hash_b[owner_r],
        passage_hash_r=labels.passage_hash_n[place_r],
        positive_hash_rK=labels.positive_hash_bK[owner_r],
        weight_r=labels.weight_n[place_r].to(wide),
        share_r=1 / positives_b[owner_r].to(wide),
    )


def _columns(
    labels: Labels, first_query: int, query_counts: list[int], passage_counts: list[int], known: int | None
) -> Columns:
    """Gather the labels of the columns; those of queries, with their `known` positives, where they are columns."""
    owner_n = labels.owner_n + first_query
    facts_n4 = torch.stack(
        [labels.passage_hash_n, labels.query_hash_b[labels.owner_n], owner_n, labels.positive_n.long()], 1
    )
    passage_hash_N, owner_hash_N, owner_N, positive_N = gather_counted(facts_n4, passage_counts).unbind(1)
    query_hash_Q = positive_hash_QK = None
    if known is not None:
        hash_bK = labels.positive_hash_bK
        filled_bK = hash_bK[:, :1].repeat(1, known)
        filled_bK[:, : hash_bK.shape[1]] = hash_bK
        facts_QK = gather_counted(torch.cat([labels.query_hash_b[:, None], filled_bK], 1), query_counts)
        query_hash_Q, positive_hash_QK = facts_QK[:, 0], facts_QK[:, 1:]
    return Columns(
        passage_hash_N=passage_hash_N,
        owner_hash_N=owner_hash_N,
        owner_N=owner_N,
        positive_N=positive_N.bool(),
        query_hash_Q=query_hash_Q,
        positive_hash_QK=positive_hash_QK,
    )


def _without_teacher(labels: Labels) -> Tensor:
    """Count the queries that lack a positive's score, or that have negatives and no score of any."""
    queries = len(labels.query_hash_b)
    if labels.teacher_n is None:
        return labels.owner_n.new_tensor(queries)
    scored_n = labels.teacher_n.isfinite()

    def count(marked_n: Tensor) -> Tensor:
        return torch.bincount(labels.owner_n[marked_n], minlength=queries)

    negatives_b, scored_b = count(~labels.positive_n), count(~labels.positive_n & scored_n)
    return ((count(labels.positive_n & ~scored_n) > 0) | ((negatives_b > 0) & (scored_b == 0))).sum()


def _leaf(rows: Tensor) -> Tensor:
    return rows.detach().requires_grad_()


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
