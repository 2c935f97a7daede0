"""Retrieval data that every machine has: the documentation in Python's own standard library.

The query is the first paragraph of a docstring, the passage is what it documents: the name, the signature and the
source, without any docstring. The files are parsed, never imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_shards.atomic import atomic_dir
from data_shards.errors import UserError
from data_shards.samples import Pair, Passage, text_hash
from data_shards.writer import ShardWriter, refuse_occupied

SPLITS = ("train", "dev", "test")
SAMPLES_PER_SHARD = 1024
MIN_QUERY_WORDS = 4
MAX_QUERY_WORDS = 100
MAX_TEXT_CHARS = 4000

_SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "idle_test", "lib2to3", "site-packages", "test", "tests", "turtledemo"
}  # fmt: skip

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Progress = Callable[[int, int], None]


class Example(NamedTuple):
    """One documented function, method or class."""

    module: str
    query: str
    passage: Passage


@dataclass(frozen=True, kw_only=True)
class DocstringData:
    """Where the data lie, and how much there is."""

    train: Path
    """Dataset of training pairs."""
    corpus: Path
    """Corpus of all passages, of every split."""
    beir: Path
    """The same corpus, with the queries and judgements of `dev` and `test`, in the BEIR layout."""
    passages: int
    """In the corpus."""
    queries: dict[str, int]
    """By split."""
    report: dict[str, int]
    """What was read and left out."""


def write_docstring_data(
    out: Path,
    max_pairs: int | None = None,
    *,
    library: Path | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    progress: Progress | None = None,
) -> DocstringData:
    """Write training shards, corpus shards and an evaluation folder; `out` appears whole or not at all.

    Args:
        out: must be empty or not there.
        max_pairs: keep so many examples of all splits together, chosen by a hash; by default all.
        library: the folder to read; by default the running Python's standard library.
        samples_per_shard: small, so that even these data make several shards.
        progress: called with the number of files read, and of all.

    Raises:
        UserError: `out` holds something, or a split is left without an example.
    """
    refuse_occupied(out)
    report: Counter[str] = Counter()
    examples = _without_duplicates(read_library(library, report, progress), report)
    if max_pairs is not None:
        examples = _subset(examples, max_pairs)
    by_split: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example in examples:
        by_split[split_of(example.module)].append(example)
    queries = {split: len(members) for split, members in by_split.items()}
    if not all(queries.values()):
        raise UserError(f"{len(examples)} documented examples leave an empty split ({queries}); allow more pairs")
    report["passages_kept"] = len(examples)
    counts = dict(sorted(report.items()))
    if out.exists():
        out.rmdir()
    with atomic_dir(out) as place:
        for kind, split in (("pairs", "train"), ("corpus", None)):
            with ShardWriter(
                place / (split or kind),
                "pairs" if split else "corpus",
                samples_per_shard=samples_per_shard,
                source="python-docstrings",
                licence="PSF-2.0",
            ) as writer:
                for example in by_split[split] if split else examples:
                    writer.add(_pair(example) if split else example.passage)
                writer.report = counts
                writer.made_by = {"python": platform.python_version(), "max_pairs": max_pairs}
        _write_beir(place / "beir", examples, {split: by_split[split] for split in ("dev", "test")})
    return DocstringData(
        train=out / "train",
        corpus=out / "corpus",
        beir=out / "beir",
        passages=len(examples),
        queries=queries,
        report=counts,
    )


def read_library(
    library: Path | None = None, report: Counter[str] | None = None, progress: Progress | None = None
) -> Iterator[Example]:
    """Yield what is documented in a folder of Python files, in the order of their paths; see `examples_of`."""
    folder = library or Path(sysconfig.get_path("stdlib"))
    counts = report if report is not None else Counter()
    paths = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*.py")
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts)
    )
    for done, path in enumerate(paths, 1):
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        try:
            source = (folder / path).read_text(encoding="utf-8")
            yield from examples_of(source, module, counts)
        except (SyntaxError, ValueError):  # another encoding, or not Python of this version
            counts["file_unreadable"] += 1
        counts["files_read"] += 1
        if progress is not None:
            progress(done, len(paths))


def examples_of(source: str, module: str, report: Counter[str] | None = None) -> Iterator[Example]:
    """Yield the documented functions, methods and classes of a module's source.

    Left out and counted: queries of fewer than 4 or more than 100 words, and bodies that do nothing.

    Raises:
        SyntaxError: the source is not Python of this version.
    """
    counts = report if report is not None else Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        tree = ast.parse(source)
    lines = source.split("\n")
    undocumented = _without_docstrings(tree, lines)
    for node, name in _definitions(tree):
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        counts["documented"] += 1
        query = " ".join(docstring.split("\n\n")[0].split())
        words = len(query.split())
        if not MIN_QUERY_WORDS <= words <= MAX_QUERY_WORDS:
            counts["query_too_short" if words < MIN_QUERY_WORDS else "query_too_long"] += 1
        elif _does_nothing(node):
            counts["body_empty"] += 1
        else:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            kept = [line for line in undocumented[first - 1 : node.end_lineno] if line is not None]
            text = textwrap.dedent("\n".join(kept))[:MAX_TEXT_CHARS].strip()
            yield Example(module, query, Passage(id=f"{module}:{name}", title=f"{module}.{name}", text=text))


def split_of(module: str) -> str:
    """Return the split of a module: that of its top-level package, so that no package is in two."""
    top = module.partition(".")[0]
    # Packages differ in size, so hashes differ in how fairly they cut; MD5 gives 79, 11, 10 % on CPython 3.11.
    tenth = int(hashlib.md5(top.encode(), usedforsecurity=False).hexdigest(), 16) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def _definitions(tree: ast.Module) -> Iterator[tuple[Documented, str]]:
    """Yield functions and classes with their qualified names, outermost first, wherever they stand."""
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        inner = prefix
        if isinstance(node, Documented):
            yield node, f"{prefix}{node.name}"
            inner = f"{prefix}{node.name}."
        pending += [(child, inner) for child in reversed(list(ast.iter_child_nodes(node)))]


def _without_docstrings(tree: ast.Module, lines: Sequence[str]) -> list[str | None]:
    """Return the source's lines with those of docstrings, at any depth, as None: a class's text holds its methods."""
    kept: list[str | None] = list(lines)
    for node, _ in _definitions(tree):
        first = node.body[0]
        is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        if is_docstring and isinstance(first.value.value, str) and first.lineno > node.lineno:  # type: ignore[attr-defined]
            kept[first.lineno - 1 : first.end_lineno] = [None] * ((first.end_lineno or 0) - first.lineno + 1)
    return kept


def _does_nothing(node: Documented) -> bool:
    """Tell whether a body holds nothing but `pass`, `...`, constants or `raise NotImplementedError`."""
    for statement in node.body:
        if isinstance(statement, ast.Raise):
            raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
            if not isinstance(raised, ast.Name) or raised.id != "NotImplementedError":
                return False
        elif not isinstance(statement, ast.Pass) and not (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ):
            return False
    return True


def _without_duplicates(examples: Iterable[Example], report: Counter[str]) -> list[Example]:
    """Keep the first of examples that share a query or a passage's text; make ids unique."""
    kept: list[Example] = []
    queries, texts, ids = set[int](), set[int](), Counter[str]()
    for example in examples:
        query, text = text_hash(example.query), text_hash(example.passage.text)
        if query in queries or text in texts:
            report["duplicate_query" if query in queries else "duplicate_passage"] += 1
            continue
        queries.add(query)
        texts.add(text)
        passage = example.passage
        ids[passage.id] += 1
        if ids[passage.id] > 1:  # defined again, under a condition or as a property's setter
            number = f"{passage.id}#{ids[passage.id]}"
            passage = Passage(id=number, title=passage.title, text=passage.text)
        kept.append(example._replace(passage=passage))
    return kept


def _subset(examples: Sequence[Example], count: int) -> list[Example]:
    """Choose examples by a hash of their ids, so that every module keeps its share; the order stays."""
    chosen = sorted(range(len(examples)), key=lambda at: text_hash(examples[at].passage.id))[:count]
    return [examples[at] for at in sorted(chosen)]


def _pair(example: Example) -> Pair:
    return Pair(
        query_id=example.passage.id, query=example.query, positives=(example.passage,), source="python-docstrings"
    )


def _write_beir(folder: Path, examples: Sequence[Example], splits: dict[str, list[Example]]) -> None:
    """Write the evaluation folder; a query has its passage's id."""
    (folder / "qrels").mkdir(parents=True)
    passages = ({"_id": p.id, "title": p.title, "text": p.text} for _, _, p in examples)
    queries = ({"_id": e.passage.id, "text": e.query} for members in splits.values() for e in members)
    for name, rows in (("corpus", passages), ("queries", queries)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split, members in splits.items():
        judged = "".join(f"{example.passage.id}\t{example.passage.id}\t1\n" for example in members)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
