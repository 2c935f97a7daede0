"""Pairs of a BEIR folder: judgements, queries and passages, joined on disk.

The three files name each other by id in no order. They are put into an SQLite file, of the corpus only what is judged
relevant, so that neither the corpus nor the judgements have to fit into memory; it is then read by ranges of queries.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from data_shards.atomic import atomic_path
from data_shards.beir import has_id
from data_shards.errors import UserError
from data_shards.qrels import judgements
from data_shards.rows import Row, jsonl_rows

_CACHE_KIB = 128 << 10

_TABLES = """
CREATE TABLE queries (ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT);
CREATE TABLE judged (query INTEGER, line INTEGER, passage TEXT, grade INTEGER, UNIQUE (query, passage));
CREATE TABLE passages (id TEXT PRIMARY KEY, title TEXT, text TEXT) WITHOUT ROWID;
"""
_INDEXES = """
CREATE INDEX by_query ON judged (query, line);
CREATE INDEX wanted ON judged (passage) WHERE grade > 0;
"""
_JUDGE = "INSERT OR IGNORE INTO judged SELECT ordinal, ?2, ?3, ?4 FROM queries WHERE id = ?1"
_KNOWN = "SELECT grade FROM judged JOIN queries ON query = ordinal WHERE id = ? AND passage = ?"
_ADD_PASSAGE = """
INSERT OR IGNORE INTO passages
SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM judged WHERE passage = ?1 AND grade > 0)
"""
_JOIN = """
SELECT ordinal, queries.id, queries.text, grade, judged.passage, passages.id, title, passages.text
FROM queries LEFT JOIN judged ON query = ordinal AND grade > 0 LEFT JOIN passages ON passages.id = judged.passage
WHERE ordinal >= ? AND ordinal < ? ORDER BY ordinal, line
"""

OnBadRow = Callable[[Row, str], None]


def build_join(corpus: Path, queries: Path, qrels: Path, out: Path, on_bad_row: OnBadRow) -> None:
    """Write the SQLite file, atomically.

    Args:
        corpus: of the folder.
        queries: of the folder.
        qrels: of the split.
        out: the file.
        on_bad_row: told of malformed rows of corpus and queries, and of ids that name another text before, as far
            as they are judged; it may raise.

    Raises:
        UserError: a file is missing or damaged, or one passage is judged twice, differently.
        OSError: the disk is full.
    """
    with atomic_path(out) as temporary, _full_disk_told(), closing(_created(temporary)) as base:
        # No journal: the file is renamed into place when it is whole, and made anew otherwise.
        base.execute("PRAGMA journal_mode = OFF")
        base.execute("PRAGMA synchronous = OFF")
        base.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        base.executescript(_TABLES)
        base.execute("BEGIN")
        _add_judgements(base, qrels)
        base.execute("COMMIT")
        base.executescript(_INDEXES)
        base.execute("BEGIN")
        for row in _good_rows(queries, "query", on_bad_row):
            _add_query(base, row, on_bad_row)
        for row in _good_rows(corpus, "passage", on_bad_row):
            _add_passage(base, row, on_bad_row)
        base.execute("COMMIT")


def count_queries(join: Path) -> int:
    """Return how many queries are judged."""
    with closing(_open(join)) as base:
        return int(base.execute("SELECT count(*) FROM queries").fetchone()[0])


def joined_rows(join: Path, qrels: Path, begin: int, end: int, counts: Counter[str]) -> Iterator[Row]:
    """Yield queries with their relevant passages, in the order in which the judgements name them first.

    Where the split grades differently, the grades become `scores`.

    Args:
        join: made by `build_join`.
        qrels: for the rows' names.
        begin: number of the first query,
        end: and of the one behind the last.
        counts: of queries and positives that are judged but not there.
    """
    with closing(_open(join)) as base:
        grades = base.execute("SELECT count(DISTINCT grade) FROM judged WHERE grade > 0").fetchone()[0]
        for ordinal, group in groupby(base.execute(_JOIN, (begin, end)), key=itemgetter(0)):
            rows = list(group)
            _, query_id, query, *_ = rows[0]
            if query is None:
                counts["query_not_in_queries"] += 1
                continue
            judged = [row for row in rows if row[4] is not None]
            found = [row for row in judged if row[5] is not None]
            counts["positive_not_in_corpus"] += len(judged) - len(found)
            positives = [{"id": row[5], "title": row[6], "text": row[7]} for row in found]
            scores = [float(row[3]) for row in found] if grades > 1 else []
            values = {"query_id": query_id, "query": query, "positives": positives, "scores": scores}
            yield Row(values, qrels, ordinal + 1, "query")


def _created(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def _add_judgements(base: sqlite3.Connection, qrels: Path) -> None:
    queries, last = 0, None
    for line, query, passage, grade in judgements(qrels):
        if query != last:
            done = base.execute("INSERT OR IGNORE INTO queries VALUES (?, ?, NULL)", (queries, query))
            queries += done.rowcount
            last = query
        if base.execute(_JUDGE, (query, line, passage, grade)).rowcount:
            continue
        known = base.execute(_KNOWN, (query, passage)).fetchone()[0]
        if known != grade:
            raise UserError(f"{qrels}, line {line}: {query} and {passage} are judged {grade}, before {known}")


def _add_query(base: sqlite3.Connection, row: Row, on_bad_row: OnBadRow) -> None:
    name, text = str(row.values["_id"]), row.values["text"]
    if base.execute("UPDATE queries SET text = ?2 WHERE id = ?1 AND text IS NULL", (name, text)).rowcount:
        return
    known = base.execute("SELECT text FROM queries WHERE id = ?", (name,)).fetchone()
    if known is not None and known[0] != text:
        on_bad_row(row, f"the id {name!r} names another query before")


def _add_passage(base: sqlite3.Connection, row: Row, on_bad_row: OnBadRow) -> None:
    name, title, text = str(row.values["_id"]), row.values.get("title") or "", row.values["text"]
    if base.execute(_ADD_PASSAGE, (name, title, text)).rowcount:
        return
    known = base.execute("SELECT title, text FROM passages WHERE id = ?", (name,)).fetchone()
    if known is not None and known != (title, text):
        on_bad_row(row, f"the id {name!r} names another passage before")


@contextmanager
def _full_disk_told() -> Iterator[None]:
    """Have SQLite's word for a full disk be the one that everything else uses."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "disk is full" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _good_rows(path: Path, what: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    for row in jsonl_rows(path):
        problem = row.problem
        if not problem and not _is_good(row, titled=what == "passage"):
            problem = f"wanted `_id` and `text` of a {what}"
        if problem:
            on_bad_row(row, problem)
        else:
            yield row


def _is_good(row: Row, *, titled: bool) -> bool:
    title = row.values.get("title") or "" if titled else ""
    return has_id(row) and isinstance(row.values.get("text"), str) and isinstance(title, str)


def _open(join: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{join}?mode=ro&immutable=1", uri=True)
