"""Retrieval data out of Python sources: what is taken, what is left out, what may never leak."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_shards.beir import BeirFolder
from data_shards.docstrings import examples_of, read_library, split_of, write_docstring_data
from data_shards.errors import UserError
from data_shards.reader import CorpusDataset, PairDataset

SOURCE = '''"""A module's own docstring is no example."""

class Stack:
    """A last-in first-out
    container of things.

    More about it.
    """

    def push(self, item):
        """Put one item on top of the stack."""
        self.items.append(item)  # kept

    @property
    def top(self) -> int:
        r"""
        Look at the item that was pushed last.
        """
        def helper():
            """Explain how the helper helps here."""
            return 1
        return self.items[-1]

async def drain(queue, limit=3):
    "Empty a queue without blocking it."
    return [await queue.get() for _ in range(limit)]

def undocumented():
    return 2

def short():
    """Too few words."""
    return 3

def empty_one():
    """Does nothing at all, ever."""
    pass

def empty_two():
    """Must be overridden by a subclass."""
    raise NotImplementedError("later")

def empty_three():
    """Just an ellipsis after the docstring."""
    ...

class Oops(Exception):
    """Raised when things went badly wrong."""

def raises():
    """Always refuse with a useful error."""
    raise ValueError("no")
'''


def test_documented_functions_methods_and_classes_are_taken() -> None:
    report: Counter[str] = Counter()
    examples = list(examples_of(SOURCE, "pkg.mod", report))
    assert [(example.passage.id, example.query) for example in examples] == [
        ("pkg.mod:Stack", "A last-in first-out container of things."),
        ("pkg.mod:Stack.push", "Put one item on top of the stack."),
        ("pkg.mod:Stack.top", "Look at the item that was pushed last."),
        ("pkg.mod:Stack.top.helper", "Explain how the helper helps here."),
        ("pkg.mod:drain", "Empty a queue without blocking it."),
        ("pkg.mod:raises", "Always refuse with a useful error."),
    ]
    assert examples[1].passage.title == "pkg.mod.Stack.push"
    assert report == {"documented": 11, "query_too_short": 1, "body_empty": 4}


def test_a_passage_is_the_source_without_any_docstring() -> None:
    by_id = {example.passage.id: example.passage.text for example in examples_of(SOURCE, "m")}
    assert by_id["m:Stack.push"] == "def push(self, item):\n    self.items.append(item)  # kept"
    assert by_id["m:Stack.top"] == (
        "@property\ndef top(self) -> int:\n    def helper():\n        return 1\n    return self.items[-1]"
    )
    assert by_id["m:drain"].startswith("async def drain(queue, limit=3):\n    return [await")
    # A class holds its methods, but not what documents them: that would give their queries away.
    assert "def push(self, item):" in by_id["m:Stack"]
    for leak in ("last-in", "More about it", "on top of", "pushed last", "helper helps"):
        assert leak not in by_id["m:Stack"]


def test_long_texts_are_cut_and_long_queries_left_out() -> None:
    source = f'def f():\n    """Make a very long list."""\n    return [{"1, " * 3000}]\n'
    (example,) = examples_of(source, "m")
    assert len(example.passage.text) == 4000
    report: Counter[str] = Counter()
    assert list(examples_of(f'def f():\n    """{"word " * 101}"""\n    return 1\n', "m", report)) == []
    assert report["query_too_long"] == 1


def test_a_package_is_in_one_split_and_always_the_same() -> None:
    assert split_of("json") == split_of("json.decoder")
    # Written down once: these must not change, or what was trained on becomes what is tested on.
    names = ["asyncio", "json", "logging", "multiprocessing", "os", "pathlib"]
    assert [split_of(name) for name in names] == ["train", "train", "dev", "dev", "test", "test"]
    shares = Counter(split_of(f"module_{number}") for number in range(10_000))
    assert shares["train"] == pytest.approx(8000, abs=150)
    assert shares["dev"] == pytest.approx(1000, abs=120)


def function(name: str, query: str, body: str = "") -> str:
    return f'def {name}(value):\n    """{query}"""\n    return value + {body or name!r}\n\n'


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small library with a module for each split, and folders that are passed over."""
    folder = tmp_path / "lib"
    for module in ("asyncio", "json", "email", "tkinter", "logging", "curses", "os", "pathlib"):
        (folder / module).mkdir(parents=True)
        text = "".join(function(f"{module}_{at}", f"Do the {module} task number {at}.") for at in range(6))
        (folder / module / "__init__.py").write_text(text)
    (folder / "json" / "again.py").write_text(
        function("same_query", "Do the json task number 1.")
        + function("json_1", "Another query for the same text.")
        + "if 1:\n    "
        + function("twice", "Defined in the first branch.", "1").replace("\n", "\n    ")
        + "\nelse:\n    "
        + function("twice", "Defined in the second branch.", "2").replace("\n", "\n    ")
    )
    for skipped in ("test", "site-packages/x", "idlelib/idle_test", "json/tests", "__pycache__"):
        (folder / skipped).mkdir(parents=True, exist_ok=True)
        (folder / skipped / "hidden.py").write_text(function("hidden", "This one must not be seen."))
    (folder / "broken.py").write_text("def (:\n")
    (folder / "latin.py").write_bytes("# é\n".encode("latin-1"))
    (folder / "harm.py").write_text('raise SystemExit("imported!")\n')
    return folder


def test_a_library_is_parsed_and_never_run(library: Path) -> None:
    report: Counter[str] = Counter()
    seen: list[tuple[int, int]] = []
    examples = list(read_library(library, report, lambda done, total: seen.append((done, total))))
    assert "hidden" not in " ".join(example.passage.id for example in examples)
    assert report["file_unreadable"] == 2
    assert seen[-1] == (12, 12)
    assert {example.module for example in examples} >= {"json", "json.again", "asyncio"}


def test_data_are_written_for_training_and_for_evaluation(library: Path, tmp_path: Path) -> None:
    data = write_docstring_data(tmp_path / "data", library=library, samples_per_shard=16)
    assert data.report["duplicate_query"] == 1
    assert data.report["duplicate_passage"] == 1
    assert data.passages == 8 * 6 + 2 == sum(data.queries.values())
    train, corpus, beir = PairDataset(data.train), CorpusDataset(data.corpus), BeirFolder(data.beir)
    assert len(train) == data.queries["train"]
    assert [entry.samples for entry in corpus.manifest.shards] == [16, 16, 16, 2]
    passages = {passage.id: passage for passage in corpus}
    assert len(passages) == data.passages
    assert {"json.again:twice", "json.again:twice#2"} <= set(passages)
    assert list(beir.corpus()) == list(passages.values())
    assert beir.splits == ["dev", "test"]
    for split in ("dev", "test"):
        qrels = beir.qrels(split)
        assert len(qrels) == data.queries[split]
        assert all(split_of(query.partition(":")[0]) == split for query in qrels)
        assert all(judged == {query: 1} and query in passages for query, judged in qrels.items())
        assert set(qrels) <= set(beir.queries())
    for pair in train:
        assert split_of(pair.query_id.partition(":")[0]) == "train"
        assert pair.positives == (passages[pair.query_id],)


def test_the_same_library_gives_the_same_data(library: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_docstring_data(tmp_path / name, library=library)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 13
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_fewer_pairs_are_chosen_from_all_splits(library: Path, tmp_path: Path) -> None:
    data = write_docstring_data(tmp_path / "data", 30, library=library)
    assert data.passages == 30
    assert all(data.queries.values())
    with pytest.raises(UserError, match="2 documented examples leave an empty split .*; allow more pairs"):
        write_docstring_data(tmp_path / "tiny", 2, library=library)
    assert not (tmp_path / "tiny").exists()


def test_an_occupied_place_is_refused(library: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"is not empty \(it holds notes.txt\); choose another --out"):
        write_docstring_data(tmp_path / "data", library=library)


def test_the_running_library_has_examples() -> None:
    """Of its first files only; all of them take seconds."""
    examples = read_library()
    assert sum(1 for _, _ in zip(range(50), examples, strict=False)) == 50
