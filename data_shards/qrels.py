"""Relevance judgements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_shards.errors import UserError
from data_shards.rows import open_text

Qrels = dict[str, dict[str, int]]
"""Query id -> passage id -> grade; 0 and below mean judged and not relevant."""


Run = dict[str, dict[str, float]]
"""Query id -> passage id -> score."""


def untied(run: Run) -> Run:
    """Return the same rankings with no two scores equal; of equal ones the smaller id comes first.

    Metrics libraries break ties each in a way of its own, so that nDCG and MRR of one run contradict each other.
    """
    return {
        query: {
            name: -float(rank) for rank, name in enumerate(sorted(scores, key=lambda name: (-scores[name], name)))
        }
        for query, scores in run.items()
    }


def read_qrels(path: Path) -> Qrels:
    """Read judgements: BEIR's three tab-separated columns under a header, or TREC's four.

    Raises:
        UserError: the file is missing or empty, a line is malformed, or one passage is judged twice, differently.
    """
    qrels: Qrels = {}
    for number, query, passage, grade in judgements(path):
        known = qrels.setdefault(query, {}).setdefault(passage, grade)
        if known != grade:
            raise UserError(f"{path}, line {number}: {query} and {passage} are judged {grade}, before {known}")
    return qrels


def judgements(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield (line, query, passage, grade), holding no more than a line in memory; see `read_qrels`.

    Raises:
        UserError: the file is missing or empty, or a line is malformed.
    """
    empty = True
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            columns = line.rstrip("\r\n").split("\t")
            if len(columns) != 3:
                columns = line.split()
                del columns[1:2]  # TREC's unused iteration
            if len(columns) != 3:
                raise UserError(f"{path}, line {number}: wanted query, passage and grade, came {line.strip()!r}")
            query, passage, grade_text = columns
            try:
                grade = int(grade_text)
            except ValueError:
                if number == 1:  # the header
                    continue
                raise UserError(f"{path}, line {number}: grade {grade_text!r} is no whole number") from None
            empty = False
            yield number, query, passage, grade
    if empty:
        raise UserError(f"{path} holds no judgement")
