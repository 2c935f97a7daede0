"""Every form of input gives the same samples back; columns are found by their usual names or by the config's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.atomic import sha256_file
from data_shards.errors import UserError
from data_shards.importing.columns import Columns
from data_shards.importing.config import ImportConfig, InputConfig
from data_shards.importing.importers import import_dataset
from data_shards.manifest import Manifest
from data_shards.samples import Pair, Passage
from data_shards.tar import write_tar
from data_shards.writer import ShardWriter
from tests.unit.import_helpers import FORMS, imported, jsonl, saved_dataset, write_rows

PAIR_ROWS = [
    {"query_id": f"q{n}", "query": f"question {n} «é»", "positive": f"answer {n}", "negative": f"wrong {n}"}
    for n in range(5)
]
PASSAGE_ROWS = [{"id": f"d{n}", "title": f"Title {n}", "text": f"text «é» {n}"} for n in range(5)]


@pytest.mark.parametrize("form", FORMS)
def test_pairs_come_back_from_every_form(tmp_path: Path, form: str) -> None:
    pairs = imported("pairs", [write_rows(tmp_path / f"in.{form}", PAIR_ROWS)], tmp_path / "out")
    found = [(p.query_id, p.query, p.positives[0].text, p.negatives[0].text) for p in pairs]
    assert found == [tuple(row.values()) for row in PAIR_ROWS]
    assert {p.source for p in pairs} == {Manifest.load(tmp_path / "out").source}


@pytest.mark.parametrize("form", FORMS)
def test_passages_come_back_from_every_form(tmp_path: Path, form: str) -> None:
    found = imported("corpus", [write_rows(tmp_path / f"in.{form}", PASSAGE_ROWS)], tmp_path / "out")
    assert found == [Passage(**row) for row in PASSAGE_ROWS]


@pytest.mark.parametrize("form", FORMS)
def test_columns_of_every_form_can_be_named(tmp_path: Path, form: str) -> None:
    names = {"query": "frage", "query_id": "nr", "positive": "antwort", "negative": "falsch"}
    rows = [{names[key]: value for key, value in row.items()} for row in PAIR_ROWS]
    config = ImportConfig(columns=Columns(**names))
    pairs = imported("pairs", [write_rows(tmp_path / f"in.{form}", rows)], tmp_path / "out", config)
    assert [(p.query_id, p.query) for p in pairs] == [(row["query_id"], row["query"]) for row in PAIR_ROWS]
    passages = [{"nr": row["id"], "kopf": row["title"], "leib": row["text"]} for row in PASSAGE_ROWS]
    config = ImportConfig(columns=Columns(id="nr", title="kopf", text="leib"))
    found = imported("corpus", [write_rows(tmp_path / f"p.{form}", passages)], tmp_path / "corpus", config)
    assert found == [Passage(**row) for row in PASSAGE_ROWS]


def test_our_own_shards_need_no_names_and_come_back_bit_by_bit(tmp_path: Path) -> None:
    first = Passage(id="p1", title="T", text="a")
    pairs = [
        Pair(query_id="q1", query="q", positives=(first, Passage(id="p2", text="b")), scores=(2.0, 1.0), source="s"),
        Pair(query_id="q2", query="r", positives=(first,), negatives=(Passage(id="n", text="c"),), weight=0.5),
    ]
    with ShardWriter(tmp_path / "one", "pairs", samples_per_shard=1, source="one") as writer:
        for pair in pairs:
            writer.add(pair)
    config = ImportConfig(columns=Columns(query="not", positive="used", negative="here"))
    assert imported("pairs", [tmp_path / "one"], tmp_path / "two", config)[0] == pairs[0]
    one, two = Manifest.load(tmp_path / "one"), Manifest.load(tmp_path / "two")
    assert [entry["name"] for entry in two.made_by["inputs"]] == ["one/train-000000.tar", "one/train-000001.tar"]
    assert [entry["sha256"] for entry in two.made_by["inputs"]] == [shard.sha256 for shard in one.shards]
    with pytest.raises(UserError, match="of kind pairs, wanted corpus"):
        import_dataset("corpus", [tmp_path / "one"], tmp_path / "three")


def test_members_of_a_tar_are_columns_and_others_are_not_touched(tmp_path: Path) -> None:
    members = [
        ("a/1.query.txt", b"q"),
        ("a/1.json", json.dumps({"positive": "p", "weight": 3}).encode()),
        ("a/1.meta.json", b'{"x": 1}'),
        ("a/1.jpg", b"\xff\xd8"),
        ("a/1.pyd", b"cos\nsystem\n(S'exit 1'\ntR."),
    ]
    write_tar(tmp_path / "in.tar", members)
    pair = imported("pairs", [tmp_path / "in.tar"], tmp_path / "out")[0]
    assert (pair.query, pair.positives[0].text, pair.weight) == ("q", "p", 3.0)
    config = ImportConfig(columns=Columns(query="query.txt", query_id="__key__"))
    pair = imported("pairs", [tmp_path / "in.tar"], tmp_path / "named", config)[0]
    assert (pair.query_id, pair.query) == ("a/1", "q")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".idx"] == []


def test_a_folder_of_data_files_is_taken_by_split(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "in.folder", PASSAGE_ROWS)
    config = ImportConfig(input=InputConfig(split="test"))
    assert imported("corpus", [folder], tmp_path / "out", config) == [Passage(**PASSAGE_ROWS[0])]
    with pytest.raises(UserError, match=r"has no split 'dev'; there are: test, train"):
        import_dataset("corpus", [folder], tmp_path / "dev", ImportConfig(input=InputConfig(split="dev")))
    plain = tmp_path / "plain"
    plain.mkdir()
    jsonl(plain / "b.jsonl", PASSAGE_ROWS[1:])
    jsonl(plain / "a.jsonl", PASSAGE_ROWS[:1])
    jsonl(plain / ".hidden.jsonl", [{"text": "no"}])
    assert len(imported("corpus", [plain], tmp_path / "all")) == 5
    with pytest.raises(UserError, match=r"has no split 'test'; there are: train, as no file names a split"):
        import_dataset("corpus", [plain], tmp_path / "none", config)


def test_a_large_parquet_row_group_is_cut_at_its_borders(tmp_path: Path) -> None:
    """Five rows in groups of two, a part each: the order stays, and so does each row's number in the file."""
    path = write_rows(tmp_path / "in.parquet", PASSAGE_ROWS)
    from data_shards.importing.columnar_rows import parquet_borders, parquet_rows

    assert parquet_borders(path, 1) == [0, 1, 2, 3]
    assert parquet_borders(path, 1 << 30) == [0, 3]
    assert [(row.place, row.values["id"]) for row in parquet_rows(path, 1, 2)] == [(3, "d2"), (4, "d3")]


@pytest.fixture
def graded(tmp_path: Path) -> Path:
    folder = tmp_path / "graded"
    (folder / "qrels").mkdir(parents=True)
    jsonl(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": f"text {n}"} for n in range(4)])
    jsonl(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(3)])
    (folder / "qrels" / "train.tsv").write_text("q1\td3\t2\nq0\td0\t1\nq1\td0\t1\nq1\td1\t0\n")
    (folder / "qrels" / "same.tsv").write_text("q0\td0\t2\nq1\td1\t2\n")
    return folder


def test_grades_become_scores_where_they_differ(graded: Path, tmp_path: Path) -> None:
    pairs = imported("pairs", [graded], tmp_path / "out")
    found = [(p.query_id, [x.id for x in p.positives], p.scores) for p in pairs]
    assert found == [("q1", ["d3", "d0"], (2.0, 1.0)), ("q0", ["d0"], (1.0,))]
    config = ImportConfig(input=InputConfig(split="same"))
    assert [p.scores for p in imported("pairs", [graded], tmp_path / "same", config)] == [(), ()]


def test_two_grades_for_one_passage_are_named(graded: Path, tmp_path: Path) -> None:
    (graded / "qrels" / "train.tsv").write_text("q0\td0\t1\nq1\td0\t1\nq0\td0\t1\nq0\td0\t2\n")
    with pytest.raises(UserError, match=r"train\.tsv, line 4: q0 and d0 are judged 2, before 1"):
        import_dataset("pairs", [graded], tmp_path / "out")
    assert not (tmp_path / ".out.import").exists()


@pytest.mark.parametrize(
    ("row", "weight", "scores"),
    [
        ({"clicks": 12}, 12.0, ()),
        ({"clicks": "0.5"}, 0.5, ()),
        ({"clicks": None}, 1.0, ()),
        ({"clicks": 1, "ratings": [5, 2.5]}, 1.0, (5.0, 2.5)),
    ],
)
def test_weights_and_scores_travel(tmp_path: Path, row: dict[str, Any], weight: float, scores: tuple) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"query": "q", "positive": ["a", "b"], "ratings": None, **row}])
    config = ImportConfig(columns=Columns(weight="clicks", scores="ratings"))
    pair = imported("pairs", [path], tmp_path / "out", config)[0]
    assert (pair.weight, pair.scores) == (weight, scores)


@pytest.mark.parametrize(
    ("row", "columns", "positives", "negatives"),
    [
        ({"pos_scores": [3.5, -1], "neg_scores": [-2, -8]}, {}, (3.5, -1.0), (-2.0, -8.0)),  # FlagEmbedding
        ({"teacher_positives": [1, 2], "teacher_negatives": None}, {}, (1.0, 2.0), ()),
        ({"gold": [1, 2], "pos_scores": [7, 7]}, {"teacher_positives": "gold"}, (1.0, 2.0), ()),
        ({"scores": [9, 8, -7, 6.5]}, {}, (9.0, 8.0), (-7.0, 6.5)),  # sentence-transformers
        ({"score": ["9", 8, -7, 6.5]}, {}, (9.0, 8.0), (-7.0, 6.5)),
        ({"label": [9, 8, -7, 6.5]}, {"teacher": "label"}, (9.0, 8.0), (-7.0, 6.5)),
        ({"score": 0.5}, {}, (), ()),  # nobody knows of what
        ({"pos_scores": [], "neg_scores": ""}, {}, (), ()),
    ],
)
def test_a_teachers_scores_travel(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], positives: tuple, negatives: tuple
) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], **row}])
    config = ImportConfig(columns=Columns(**columns))
    pair = imported("pairs", [path], tmp_path / "out", config)[0]
    assert (pair.teacher_positives, pair.teacher_negatives, pair.scores) == (positives, negatives, ())
    assert Manifest.load(tmp_path / "out").with_teacher == int(bool(positives and negatives))
    # Our own shards give them back, as they are.
    assert imported("pairs", [tmp_path / "out"], tmp_path / "again")[0] == pair


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("tsv", "csv", "txt.tar")])
def test_a_teachers_scores_come_back_from_every_form_that_has_lists(tmp_path: Path, form: str) -> None:
    rows = [
        {"query": f"q{n}", "pos": [f"a{n}"], "neg": [f"b{n}"], "pos_scores": [n + 0.5], "neg_scores": [-n]}
        for n in range(3)
    ]
    pairs = imported("pairs", [write_rows(tmp_path / f"in.{form}", rows)], tmp_path / "out")
    assert [(p.teacher_positives, p.teacher_negatives) for p in pairs] == [((n + 0.5,), (-n,)) for n in range(3)]


@pytest.mark.parametrize("form", ["tsv", "csv", "txt.tar"])
def test_a_table_holds_one_score_a_column(tmp_path: Path, form: str) -> None:
    rows = [{"query": f"q{n}", "positive": f"a{n}", "negative": f"b{n}", "score": f"{n}.25"} for n in range(3)]
    config = ImportConfig(columns=Columns(teacher="score"))
    pairs = imported("pairs", [write_rows(tmp_path / f"in.{form}", rows)], tmp_path / "out", config)
    assert [(p.teacher_positives, p.teacher_negatives) for p in pairs] == [((0.0,), (-n - 0.25,)) for n in range(3)]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"pos_scores": [1]}, {}, "1 teacher scores for 2 positives; wanted one each"),
        ({"neg_scores": [1, 2, 3]}, {}, "3 teacher scores for 2 negatives; wanted one each"),
        ({"pos_scores": [1, None]}, {}, "teacher score None is no number"),
        ({"neg_scores": ["NaN", 1]}, {}, "teacher score NaN is not finite"),
        ({"neg_scores": [10**400, 1]}, {}, "teacher score 100000000000000000000000 is not finite"),
        (
            {"label": [1, 2]},
            {"teacher": "label"},
            "2 teacher scores for 2 positives and 2 negatives; wanted one each",
        ),
        ({}, {"teacher_positives": "gold"}, r"no teacher_positives \(looked for gold\).*--columns.teacher_positives"),
        ({"scores": [1, 2, 3]}, {}, "3 scores for 2 positives; wanted one each"),
    ],
)
def test_a_teachers_scores_that_do_not_fit_are_named(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], **row}])
    with pytest.raises(UserError, match=rf"in\.jsonl, line 1: {message}"):
        import_dataset("pairs", [path], tmp_path / "out", ImportConfig(columns=Columns(**columns)))


def test_a_teachers_scores_stay_with_their_passages(tmp_path: Path) -> None:
    """Whatever cleaning and repetitions take away."""
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["c"], "pos_scores": [1], "neg_scores": [-1]},
        {
            "query": "q",
            "pos": ["", "a", "b", "d"],
            "neg": ["c", "B", " ", "e"],
            "pos_scores": [1, 2, 3, 4],
            "neg_scores": [-1, -2, -3, -4],
        },
    ]
    pairs = imported("pairs", [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out")
    second = pairs[1]
    assert [(p.text, s) for p, s in zip(second.positives, second.teacher_positives, strict=True)] == [
        ("b", 3),
        ("d", 4),
    ]
    assert [(p.text, s) for p, s in zip(second.negatives, second.teacher_negatives, strict=True)] == [
        ("c", -1),
        ("e", -4),
    ]


def test_scores_stay_with_their_positives(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": ["a", "b"], "scores": [3, 2]},
        {"query": "q", "positive": ["", "b", "c", "d"], "scores": [9, 8, 0, 7]},
        {"query": "r", "positive": "a", "scores": 4},
        {"query": "s", "positive": "a", "weight": 0},
    ]
    pairs = imported("pairs", [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out")
    assert [([x.text for x in p.positives], p.scores) for p in pairs] == [
        (["a", "b"], (3.0, 2.0)),
        (["d"], (7.0,)),
        (["a"], (4.0,)),
    ]
    report = Manifest.load(tmp_path / "out").report
    assert (report["blank_positive"], report["repeated_positive"]) == (1, 1)
    assert (report["score_zero"], report["weight_zero"]) == (1, 1)


def test_a_dataset_of_the_hub_is_read_from_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself is stood in for: there is no network here. What it returns is as version 5 returns it."""
    from types import SimpleNamespace

    import datasets

    saved_dataset(tmp_path / "cache", PASSAGE_ROWS)
    file = tmp_path / "cache" / "data-00000-of-00001.arrow"
    commit = "0123456789abcdef0123456789abcdef01234567"

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        assert (name, config, split) == ("owner/name", "english", "train")
        info = SimpleNamespace(download_checksums={f"hf://datasets/owner/name@{commit}/train.parquet": {}})
        return SimpleNamespace(cache_files=[{"filename": str(file)}], info=info, _fingerprint="f")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = imported("corpus", [Path("hf:owner/name:english")], tmp_path / "out")
    assert found == [Passage(**row) for row in PASSAGE_ROWS]
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.source, manifest.made_by["source_version"]) == ("owner/name", commit)
    name = f"owner/name@{commit}/{file.name}"
    assert manifest.made_by["inputs"] == [{"name": name, "sha256": sha256_file(file)}]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hf:owner/nothing-here, split train, cannot be had \(.*check name and"):
        import_dataset("pairs", ["hf:owner/nothing-here"], tmp_path / "out")
    with pytest.raises(UserError, match="input hf:../etc names no dataset; wanted hf:OWNER/NAME"):
        import_dataset("pairs", ["hf:../etc"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
