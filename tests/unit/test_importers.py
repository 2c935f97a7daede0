"""Raw files in all their forms; what is dropped is counted, what is wrong is named by file and line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_shards.atomic import sha256_file
from data_shards.errors import UserError
from data_shards.importing.columns import Columns
from data_shards.importing.config import ImportConfig, InputConfig, OutputConfig
from data_shards.importing.importers import ImportTools, import_dataset
from data_shards.manifest import Kind, Manifest
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Pair, Passage
from tests.unit.import_helpers import jsonl, write_rows

ROWS = [
    {"query": "how to list files", "positive": "ls lists files"},
    {"query": "change folder", "positive": "cd moves"},
]


def imported(
    kind: Kind, inputs: Sequence[Path], config: ImportConfig | None = None
) -> tuple[list[Any], dict[str, int]]:
    """Return the samples and the report of an import."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        report = import_dataset(kind, inputs, out, config).report
        assert [path.name for path in Path(place).iterdir()] == ["out"]
        return list(PairDataset(out) if kind == "pairs" else CorpusDataset(out)), report


def pairs_from(inputs: Sequence[Path], config: ImportConfig | None = None) -> list[Pair]:
    return imported("pairs", inputs, config)[0]


def texts(pairs: list[Pair]) -> list[tuple[str, list[str], list[str]]]:
    return [(p.query, [x.text for x in p.positives], [x.text for x in p.negatives]) for p in pairs]


PLAIN = [("how to list files", ["ls lists files"], []), ("change folder", ["cd moves"], [])]


@pytest.mark.parametrize(
    "row",
    [
        {"anchor": "q", "pos": ["a", "b"], "neg": ["n"]},  # FlagEmbedding
        {"question": "q", "positives": ["a", {"text": "b"}], "negatives": [{"id": 7, "text": "n"}]},
        {"query": "q", "passage": ["a", "b"], "negative_1": "n", "negative_2": None},  # sentence-transformers
        {  # Tevatron
            "query_id": 3,
            "query": "q",
            "positive_passages": [
                {"docid": "d1", "title": "", "text": "a"},
                {"docid": "d2", "title": None, "text": "b"},
            ],
            "negative_passages": [{"docid": "d3", "text": "n"}],
        },
    ],
)
def test_the_forms_of_the_field_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    assert texts(pairs_from([jsonl(tmp_path / "in.jsonl", [row])])) == [("q", ["a", "b"], ["n"])]


def test_our_own_samples_come_back(tmp_path: Path) -> None:
    pair = Pair(
        query_id="q9",
        query="q",
        positives=(Passage(id="p1", title="T", text="a"),),
        negatives=(Passage(id="n1", text="b"),),
        source="elsewhere",
        weight=0.5,
    )
    path = tmp_path / "in.jsonl"
    path.write_bytes(pair.to_json())
    assert (pairs_from([path])) == [pair]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"q": "a", "query": "no", "yes": "b", "no": "c"}])
    config = ImportConfig(columns=Columns(query="q", positive="yes", negative="no"))
    assert texts(pairs_from([path], config)) == [("a", ["b"], ["c"])]


def test_made_up_ids_depend_on_the_text_alone(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "a"}, {"query": "q", "positive": "b"}, {"query": "r", "positive": "a"}]
    first, second, third = pairs_from([jsonl(tmp_path / "in.jsonl", rows)])
    assert first.query_id == second.query_id != third.query_id
    assert first.positives[0].id == third.positives[0].id != second.positives[0].id


def test_tsv_takes_quotes_as_they_are_and_csv_as_csv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('query\tpositive\nsay "hi\tit\'s "fine\n')
    (tmp_path / "b.csv").write_bytes(b'query,positive\r\n"one, two","line\r\nbreak ""quoted"""\r\n')
    assert texts(pairs_from([tmp_path / "a.tsv"])) == [('say "hi', ["it's \"fine"], [])]
    assert texts(pairs_from([tmp_path / "b.csv"])) == [("one, two", ['line\nbreak "quoted"'], [])]


# --- cleaning ------------------------------------------------------------------------------------------------


def test_blanks_and_repetitions_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "a"},
        {"query": " ", "positive": "a"},
        {"query": None, "positive": "a"},
        {"query": "q", "positive": "  "},
        {"query": "q", "positive": None},
        {"query": "q", "positive": "a"},
        {"query": "q", "positive": ["a", "b", "b"]},
        {"query": "r", "positive": "a", "negative": ["", "A ", "n"]},
    ]
    kept, report = imported("pairs", [jsonl(tmp_path / "in.jsonl", rows)])
    assert texts(kept) == [("q", ["a"], []), ("q", ["b"], []), ("r", ["a"], ["n"])]
    assert report == {
        "pairs_read": 8,
        "pairs_kept": 3,
        "blank_query": 2,
        "blank_positive": 1,
        "repeated_positive": 3,
        "pair_without_positive": 3,
        "blank_negative": 1,
        "negative_is_positive": 1,
        "whitespace": 3,
    }


def test_repetitions_are_found_across_files(tmp_path: Path) -> None:
    inputs = [jsonl(tmp_path / "one.jsonl", ROWS), jsonl(tmp_path / "two.jsonl", ROWS[::-1])]
    kept = pairs_from(inputs)
    assert texts(kept) == PLAIN
    assert {pair.source for pair in kept} == {"one"}


def test_only_exact_repetitions_are_dropped(tmp_path: Path) -> None:
    """Where texts meet must not matter, nor is what differs in case the same here."""
    rows = [{"query": "ab", "positive": "c"}, {"query": "a", "positive": "bc"}, {"query": "AB", "positive": "c"}]
    assert len(pairs_from([jsonl(tmp_path / "in.jsonl", rows)])) == 3


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    jsonl(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": f"T{n}", "text": f"text {n}"} for n in range(5)])
    jsonl(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(3)])
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\nq0\td2\t2\nq0\td3\t0\nq1\tlost\t1\nlost\td1\t1\nq2\td4\t0\n"
    )
    (folder / "qrels" / "test.tsv").write_text("q2\td4\t1\n")
    return folder


def test_a_beir_folder_gives_a_pair_per_query(beir: Path) -> None:
    pairs, report = imported("pairs", [beir])
    assert [(pair.query_id, [passage.id for passage in pair.positives]) for pair in pairs] == [
        ("q0", ["d0", "d2"]),
        ("q1", ["d1"]),
    ]
    assert pairs[0].positives[1] == Passage(id="d2", title="T2", text="text 2")
    assert pairs[0].source == "tiny"
    assert report["query_not_in_queries"] == report["positive_not_in_corpus"] == report["pair_without_positive"] == 1
    assert [pair.query_id for pair in pairs_from([beir], ImportConfig(input=InputConfig(split="test")))] == ["q2"]


def test_a_beir_folder_gives_a_corpus(beir: Path) -> None:
    assert [passage.id for passage in imported("corpus", [beir])[0]] == ["d0", "d1", "d2", "d3", "d4"]


def test_a_corpus_has_each_id_once(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "a"},
        {"_id": "2", "title": "T", "contents": "b"},
        {"docid": "3", "title": None, "text": " "},
        {"id": 1, "text": "a"},
        {"text": "no id"},
        {"text": "no id"},
        {"pid": "4", "text": "a"},
    ]
    kept, report = imported("corpus", [jsonl(tmp_path / "in.jsonl", rows)])
    assert [(passage.id, passage.title, passage.text) for passage in kept[:2]] == [("1", "", "a"), ("2", "T", "b")]
    assert [passage.text for passage in kept[2:]] == ["no id", "a"]
    assert report == {
        "passages_read": 7,
        "passages_kept": 4,
        "blank_passage": 1,
        "repeated_passage": 2,
        "whitespace": 1,
    }


def test_one_id_for_two_passages_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"id": "1", "text": "a"}, {"id": "1", "text": "b"}])
    with pytest.raises(UserError, match=r"in\.jsonl: two different passages have the id '1'; ids must be unique"):
        imported("corpus", [path])


# --- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q"', r"line 2: not JSON \(.* at column 14\)"),
        ('{"query": "q', r"line 2: not JSON \(Unterminated string starting at column 11\)"),
        ('["q", "p"]', "line 2: wanted a JSON object, came list"),
        ('{"positive": "p"}', "line 2: no query .*there are: positive; name its column with --columns.query"),
        ('{"query": "q", "other": 1}', "line 2: no positive .*there are: query, other; .* --columns.positive"),
        ('{"query": 5, "positive": "p"}', "line 2: the query is of type int, wanted text"),
        ('{"query": "q", "positive": 5}', "line 2: a passage is of type int, wanted text"),
        ('{"query": "q", "positive": {"id": 1}}', r"line 2: a passage has no text \(looked for text.*there are: id"),
        ('{"query": "q", "positive": {"text": ["x"]}}', "line 2: a passage's title or text is not text"),
        ('{"query": "q", "positive": "p", "weight": "much"}', "line 2: weight 'much' is no number"),
        ('{"query": "q", "positive": "p", "weight": -1}', "line 2: weight -1 is below 0"),
        ('{"query": "q\\uD83D", "positive": "p"}', "line 2: it holds half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(UserError, match=rf"in\.jsonl, {message}"):
        (pairs_from([path]))


def test_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"query": "\\ud83d\\ude00", "positive": "p"}')
    assert pairs_from([tmp_path / "in.jsonl"])[0].query == "😀"


def test_a_bad_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("query\tpositive\nq\tp\nq\tp\tmore\n")
    with pytest.raises(UserError, match=r"a\.tsv, line 3: 3 columns, the header line has 2"):
        (pairs_from([tmp_path / "a.tsv"]))
    (tmp_path / "b.csv").write_text('query,positive\nq,"never closed\n')
    with pytest.raises(UserError, match=r"b\.csv, line 2: malformed table"):
        (pairs_from([tmp_path / "b.csv"]))


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"query": ["q", "r"], "positive": [[1], [2]]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"in\.parquet, row 1: a passage is of type int"):
        (pairs_from([tmp_path / "in.parquet"]))
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"in\.parquet is no readable Parquet file"):
        (pairs_from([tmp_path / "in.parquet"]))


def test_inputs_that_are_not_there_or_unknown_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input .*none\.jsonl does not exist"):
        (pairs_from([tmp_path / "none.jsonl"]))
    (tmp_path / "in.docx").touch()
    with pytest.raises(UserError, match=r"in\.docx is of no known kind; wanted \.jsonl, \.tsv, \.csv"):
        (pairs_from([tmp_path / "in.docx"]))
    with pytest.raises(UserError, match="holds no data; wanted a BEIR folder, shards, or files: "):
        (pairs_from([tmp_path]))
    with pytest.raises(UserError, match="has no split 'dev'; there are: train, test"):
        (pairs_from([write_rows(tmp_path / "in.splits", ROWS)], ImportConfig(input=InputConfig(split="dev"))))


def test_nothing_left_is_a_mistake_and_leaves_nothing(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"query": "", "positive": "a"}])
    with pytest.raises(UserError, match=r"nothing is left of .*in\.jsonl \(blank_query 1, pairs_read 1\)"):
        import_dataset("pairs", [path], tmp_path / "out")
    path.write_text("")
    with pytest.raises(UserError, match=r"in\.jsonl: no rows were found; wanted one at least"):
        import_dataset("corpus", [path], tmp_path / "out")
    with pytest.raises(UserError, match="no input was given"):
        import_dataset("pairs", [], tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="samples_per_shard 0, max_shard_mib 256: both must be at least 1"):
        OutputConfig(samples_per_shard=0)
    with pytest.raises(UserError, match=r"output\.weight 0 must be above 0"):
        OutputConfig(weight=0)
    with pytest.raises(UserError, match=r"input\.part_mib must be at least 1, came 0"):
        InputConfig(part_mib=0)


# --- whole datasets ------------------------------------------------------------------------------------------


def test_an_import_says_where_it_came_from(beir: Path, tmp_path: Path) -> None:
    config = ImportConfig(output=OutputConfig(samples_per_shard=1, licence="CC0", weight=2.0, source_version="v3"))
    seen: dict[str, tuple[int, int]] = {}

    @contextmanager
    def progress(label: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: seen.__setitem__(label, (done, total))

    manifest = import_dataset("pairs", [beir], tmp_path / "out", config, ImportTools(progress=progress))
    assert manifest == Manifest.load(tmp_path / "out")
    assert (manifest.kind, manifest.samples, len(manifest.shards)) == ("pairs", 2, 2)
    assert (manifest.source, manifest.licence, manifest.weight) == ("tiny", "CC0", 2.0)
    assert manifest.report["pairs_kept"] == 2
    names = ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"]
    wanted = [{"name": f"tiny/{name}", "sha256": sha256_file(beir / name)} for name in names]
    assert manifest.made_by["inputs"] == wanted
    assert manifest.made_by["settings"]["split"] == "train"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert seen == {
        "checking inputs": (3, 3),
        "reading and cleaning parts": (1, 1),
        "looking for repetitions": (1, 1),
        "writing shards": (2, 2),
    }
    assert len(PairDataset(tmp_path / "out")) == 2


def test_two_imports_are_the_same_bytes(beir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        import_dataset("corpus", [beir], tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert [passage.id for passage in CorpusDataset(tmp_path / "one")] == ["d0", "d1", "d2", "d3", "d4"]
