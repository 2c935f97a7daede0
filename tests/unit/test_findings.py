"""The validation report: each finding on a dataset small enough to count by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import UserError
from data_shards.findings.find import ChecksConfig, Findings, find
from data_shards.findings.finding import Finding
from data_shards.samples import Pair, Passage
from tests.unit.tiny import pair, passage, write_corpus, write_pairs

PLAIN = ChecksConfig(near_duplicates=False)


def of(name: str, findings: Findings) -> Finding:
    found = [finding for finding in findings.findings if finding.name == name]
    assert len(found) == 1, [finding.name for finding in findings.findings]
    return found[0]


def names(findings: Findings) -> set[str]:
    return {finding.name for finding in findings.findings}


def look(folder: Path, pairs: Sequence[Pair], **settings: Any) -> Findings:
    write_pairs(folder / "pairs", pairs)
    return find(folder / "pairs", ChecksConfig(**{"near_duplicates": False, **settings}))


def look_at_corpus(folder: Path, passages: Sequence[Passage], **settings: Any) -> Findings:
    return find(write_corpus(folder / "corpus", passages), ChecksConfig(**{"near_duplicates": False, **settings}))


def beir(folder: Path, queries: dict[str, str], corpus: dict[str, str], qrels: list[tuple[str, str, int]]) -> str:
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": name, "text": text}) for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": name, "text": text}) for name, text in corpus.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows))
    return f"{folder}:test"


def test_sound_pairs_have_nothing_to_say(tmp_path):
    findings = look(tmp_path, [pair(number) for number in range(9)])
    assert findings.findings == ()
    assert findings.fatal == []
    assert (findings.kind, findings.samples, findings.shards) == ("pairs", 9, 3)


def test_a_placeholder_is_counted_and_leads_back_to_its_row(tmp_path):
    pairs = [pair(number) for number in range(40)]
    pairs[6] = pair(6, query=" N/A ")
    finding = of("placeholder_query", look(tmp_path, pairs))
    assert (finding.severity, finding.count, finding.of, finding.share) == ("warning", 1, 40, 1 / 40)
    (example,) = finding.examples
    assert (example.shard, example.row, example.id, example.text) == ("train-000001.tar", 2, "q6", " N/A ")


def test_too_many_blank_texts_are_fatal_unless_allowed(tmp_path):
    pairs = [pair(number, query="" if number < 2 else f"query {number}") for number in range(19)]
    findings = look(tmp_path, pairs)
    assert of("blank_query", findings).severity == "fatal"  # 2 of 19 > 5 %
    assert findings.fatal == ["blank_query"]
    assert findings.to_dict()["fatal"] == ["blank_query"]
    allowed = find(tmp_path / "pairs", ChecksConfig(near_duplicates=False, allow=("blank_query",)))
    assert allowed.fatal == []
    assert of("blank_query", allowed).allowed
    wide = find(tmp_path / "pairs", ChecksConfig(near_duplicates=False, max_empty_share=2 / 19))
    assert of("blank_query", wide).severity == "warning"


def test_passages_under_several_ids_are_duplicates_and_blank_ones_are_not(tmp_path):
    texts = ["One  two", "ONE two", "three", "one two", "", ""]
    findings = look_at_corpus(tmp_path, [Passage(id=str(at), text=text) for at, text in enumerate(texts)])
    finding = of("passage_under_several_ids", findings)
    assert (finding.severity, finding.count, finding.of) == ("warning", 2, 4)
    (example,) = finding.examples  # one of each text
    assert example.like is not None
    assert (example.id, example.row, example.like.id, example.like.row) == ("1", 1, "0", 0)


def test_an_id_that_comes_twice_is_fatal(tmp_path):
    findings = look_at_corpus(tmp_path, [passage("a"), passage("b"), passage("a", "another text")])
    finding = of("id_not_unique", findings)
    assert (finding.severity, finding.count, finding.of) == ("fatal", 1, 3)
    assert finding.examples[0].text == "another text"
    assert findings.fatal == ["id_not_unique"]


def test_repetitions_among_pairs(tmp_path):
    same = (passage("p", "same text"),)
    findings = look(
        tmp_path,
        [
            pair(0, query="first", positives=same),
            pair(1, query="FIRST", positives=same),  # the pair again, under another query id
            pair(2, query="second", positives=(passage("other", "same text"),)),  # under another id
            pair(2, query="third", positives=(passage("p", "another text"),)),  # both ids once more
            pair(4, query="fourth", positives=(passage("p4"),)),
        ],
    )
    counts = {finding.name: (finding.count, finding.of) for finding in findings.findings}
    assert counts == {
        "repeated_pair": (1, 5),
        "repeated_query": (1, 5),
        "query_under_several_ids": (1, 4),
        "query_id_of_several_texts": (1, 4),
        "positive_under_several_ids": (1, 3),
        "positive_id_of_several_texts": (1, 3),
        "frequent_positive": (3, 5),
    }
    assert of("query_id_of_several_texts", findings).examples[0].text == "third"
    assert of("repeated_pair", findings).examples[0].row == 1


def test_a_query_and_its_positive_with_roles_swapped_are_not_the_same_pair(tmp_path):
    swapped = [
        pair(0, query="a b", positives=(passage("x", "c d"),)),
        pair(1, query="c d", positives=(passage("y", "a b"),)),
    ]
    assert "repeated_pair" not in names(look(tmp_path, swapped))


def test_evaluation_queries_in_training_are_fatal(tmp_path):
    split = beir(
        tmp_path / "eval",
        {"e1": "Query  3", "e2": "unseen", "e3": "query 4"},
        {"d1": "passage p7", "d2": "elsewhere"},
        [("e1", "d1", 1), ("e2", "d2", 1), ("e3", "d2", 0)],  # e3 has no right answer: it measures nothing
    )
    findings = look(tmp_path, [pair(number) for number in range(9)], evaluation=(split,))
    finding = of("evaluation_query_in_training", findings)
    assert (finding.severity, finding.count, finding.of) == ("fatal", 1, 2)
    assert [example.id for example in finding.examples] == ["q3"]
    shared = of("evaluation_passage_in_training", findings)
    assert (shared.severity, shared.count, shared.of, shared.examples[0].id) == ("note", 1, 9, "p7")
    few = find(tmp_path / "pairs", ChecksConfig(evaluation=(split,), max_leaked_share=0.5))
    assert of("evaluation_query_in_training", few).severity == "warning"


def test_a_corpus_should_hold_the_right_answers_of_its_evaluation(tmp_path):
    corpus = {"d1": "by id", "d2": "by text", "d3": "not at all", "d4": "not relevant"}
    qrels = [("e", "d1", 1), ("e", "d2", 2), ("e", "d3", 1), ("e", "d4", 0)]
    split = beir(tmp_path / "eval", {"e": "query"}, corpus, qrels)
    passages = [passage("d1", "changed"), passage("other", "By Text"), passage("more")]
    finding = of("evaluation_passage_not_in_corpus", look_at_corpus(tmp_path, passages, evaluation=(split,)))
    assert (finding.severity, finding.count, finding.of) == ("warning", 1, 3)


def test_positives_are_looked_up_in_their_corpus(tmp_path):
    corpus = write_corpus(
        tmp_path / "c", [passage("p0"), passage("p1", "changed"), passage("renamed", "passage p2"), passage("p9")]
    )
    findings = look(tmp_path, [pair(number) for number in range(4)], corpus=str(corpus))
    found = {finding.name: (finding.severity, finding.count, finding.examples[0].id) for finding in findings.findings}
    assert found == {
        "positive_not_in_corpus": ("fatal", 1, "p3"),
        "positive_differs_from_corpus": ("warning", 1, "p1"),
        "positive_under_another_id": ("note", 1, "p2"),
    }
    few = find(tmp_path / "pairs", ChecksConfig(corpus=str(corpus), max_missing_share=0.25))
    assert of("positive_not_in_corpus", few).severity == "warning"


@pytest.mark.parametrize("own_id", [True, False], ids=["under its id", "under another id"])
def test_positives_under_another_title_are_not_missing(tmp_path, own_id):
    """The corpus was imported with titles and the pairs without them, or the other way round."""
    corpus = [
        Passage(id="p0", title="One", text="first text"),
        Passage(id="p1", text="second text"),
        Passage(id="p2", title="Three", text="third text"),
        Passage(id="p3", title="Four", text=""),
    ]
    positives = [
        Passage(id="p0", text="first text"),
        Passage(id="p1", title="Two", text="second text"),
        Passage(id="p2", title="THREE", text="third  text"),
        Passage(id="p3", title="Five", text=""),  # nothing but titles: these are different
        Passage(id="p4", title="One", text="another text"),
    ]
    if not own_id:
        positives = [Passage(id=f"x{row.id}", title=row.title, text=row.text) for row in positives]
    place = write_corpus(tmp_path / "c", corpus)
    pairs = [pair(number, positives=(row,)) for number, row in enumerate(positives)]
    findings = look(tmp_path, pairs, corpus=str(place), max_missing_share=0.5)
    found = {
        one.name: (one.severity, one.count, one.of, {row.row for row in one.examples}) for one in findings.findings
    }
    assert found["positive_title_differs"] == ("warning", 2, 5, {0, 1})
    if own_id:
        assert found["positive_differs_from_corpus"] == ("warning", 1, 5, {3})
        assert found["positive_not_in_corpus"][:3] == ("warning", 1, 5)
    else:
        assert found["positive_under_another_id"][:3] == ("note", 1, 5)
        assert found["positive_not_in_corpus"][:3] == ("warning", 2, 5)


def test_pairs_without_positive_or_weight(tmp_path):
    pairs = [
        pair(0, positives=()),
        pair(1, weight=0.0),
        pair(2, scores=(0.0,)),
        pair(3, positives=(passage("a"), passage("b")), scores=(0.0, 2.0)),
        pair(4, positives=(passage("c"), passage("d")), scores=(2.0,)),
    ]
    findings = look(tmp_path, pairs)
    assert (of("pair_without_positive", findings).severity, of("pair_without_positive", findings).count) == (
        "fatal",
        1,
    )
    weightless = of("weightless_pair", findings)
    assert (weightless.severity, weightless.count, weightless.of) == ("fatal", 2, 5)
    assert [example.id for example in weightless.examples] == ["q1", "q2"]
    assert [example.id for example in of("scores_not_one_each", findings).examples] == ["q4"]
    few = find(tmp_path / "pairs", ChecksConfig(near_duplicates=False, max_empty_share=0.5))
    assert of("weightless_pair", few).severity == "warning"


def test_negatives_that_are_positives_or_come_twice(tmp_path):
    odd = pair(0, negatives=(passage("p0"), passage("n"), passage("n")))
    findings = look(tmp_path, [odd, pair(1, negatives=(passage("m"),))])
    assert (of("negative_is_positive", findings).count, of("negative_is_positive", findings).of) == (1, 4)
    assert of("repeated_negative", findings).count == 1


def test_uneven_weights_are_told(tmp_path):
    pairs = [pair(number, weight=1000.0 if number == 0 else 1.0) for number in range(40)]
    finding = of("uneven_weights", look(tmp_path, pairs))
    # (1000 + 39)^2 / (1000^2 + 39) = 1.08 of 40 pairs are in effect
    assert (finding.count, finding.of) == (39, 40)


def test_pairs_that_no_teacher_scored_are_told_where_others_are(tmp_path):
    taught = [pair(number, teacher_positives=(1.0,)) for number in range(3)]
    half = pair(3, negatives=(passage("n"),), teacher_positives=(1.0,))
    findings = look(tmp_path / "some", [*taught, half, pair(4)])
    finding = of("pair_without_teacher", findings)
    assert (finding.severity, finding.count, finding.of) == ("warning", 2, 5)
    assert findings.numbers["with_teacher"] == 3
    assert look(tmp_path / "all", taught).findings == ()
    assert "with_teacher" not in look(tmp_path / "none", [pair(4)]).numbers


def test_near_duplicates_are_found_once(tmp_path):
    words = [f"word{at}" for at in range(60)]
    texts = [" ".join(words), " ".join([*words[:-1], "changed"]), "something else altogether", " ".join(words), ""]
    findings = look_at_corpus(tmp_path, [Passage(id=str(at), text=text) for at, text in enumerate(texts)])
    assert "near_duplicate_passage" not in names(findings)  # switched off
    finding = of("near_duplicate_passage", find(tmp_path / "corpus", ChecksConfig()))
    assert (finding.count, finding.of, finding.examples[0].id) == (1, 3, "1")  # exact ones are counted elsewhere


def test_numbers_say_how_long_texts_are(tmp_path):
    counter: Callable[[Sequence[str]], list[int]] = lambda texts: [len(text.split()) + 2 for text in texts]  # noqa: E731
    write_pairs(tmp_path / "p", [pair(0, query="one"), pair(1, query="one two three"), pair(2, query="a b c d e")])
    config = ChecksConfig(near_duplicates=False, query_max_tokens=6)
    findings = find(tmp_path / "p", config, count_tokens=counter)
    query = findings.numbers["query"]
    assert query["words"] == {"mean": 3.0, "p5": 1, "p50": 3, "p95": 5, "max": 5}
    assert query["tokens"] == {"mean": 5.0, "p5": 3, "p50": 5, "p95": 7, "max": 7, "sampled": 3}
    assert sum(query["histogram"]["counts"]) == 3
    finding = of("too_long_query", findings)
    assert (finding.severity, finding.count, finding.of, finding.examples[0].id) == ("warning", 1, 3, "q2")
    assert findings.numbers["positives_per_query"] == {"1": 3}


def test_languages_are_told_and_the_odd_ones_named(tmp_path):
    english = [f"The weather in the city number {at} is nice and we go for a walk" for at in range(8)]
    german = "Das Wetter ist heute schön und wir gehen im Park spazieren"
    passages = [Passage(id=str(at), text=text) for at, text in enumerate([*english, german])]
    findings = look_at_corpus(tmp_path, passages)
    assert findings.numbers["passage"]["languages"] == {"sampled": 9, "shares": {"en": 0.8889, "de": 0.1111}}
    finding = of("other_language_passage", findings)
    assert (finding.count, finding.of, finding.examples[0].id) == (1, 9, "8")


def test_a_damaged_shard_can_be_left_out(tmp_path):
    write_pairs(tmp_path / "p", [pair(number, query="" if number < 4 else f"q {number}") for number in range(8)])
    (tmp_path / "p" / "train-000000.tar").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"train-000000\.tar"):
        find(tmp_path / "p", PLAIN)
    findings = find(tmp_path / "p", PLAIN, skip=["train-000000.tar"])
    assert findings.findings == ()
    assert findings.skipped == ("train-000000.tar",)
    assert findings.numbers["query"]["count"] == 4


def test_the_saved_report_names_no_place_and_is_the_same_again(tmp_path):
    write_pairs(tmp_path / "p", [pair(number, query="dup") for number in range(3)])
    first = find(tmp_path / "p", ChecksConfig()).save(tmp_path / "p").read_bytes()
    assert find(tmp_path / "p", ChecksConfig()).save(tmp_path / "p").read_bytes() == first
    assert str(tmp_path).encode() not in first
    row = json.loads(first)["findings"][0]
    assert {"name", "severity", "count", "of", "share", "unit", "advice", "examples"} == row.keys()


def test_progress_counts_samples(tmp_path):
    seen: list[tuple[int, int]] = []
    write_pairs(tmp_path / "p", [pair(number) for number in range(6)])
    find(tmp_path / "p", PLAIN, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"allow": ("blank_queri",)},
            "checks.allow holds 'blank_queri', which is no fatal finding; did you mean blank_query",
        ),
        ({"allow": ("mojibake_query",)}, "'mojibake_query', which is no fatal finding"),
        ({"evaluation": (":test",)}, "checks.evaluation holds ':test'; wanted FOLDER:SPLIT"),
        ({"max_leaked_share": 5}, "checks.max_leaked_share is 5, wanted a share from 0 to 1"),
        ({"sample_texts": -1}, "checks.sample_texts is -1, wanted 0 or more"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        ChecksConfig(**settings)


def test_a_missing_split_or_corpus_is_told_before_the_long_look(tmp_path):
    write_pairs(tmp_path / "p", [pair(0)])
    split = beir(tmp_path / "eval", {"e": "q"}, {"d": "t"}, [("e", "d", 1)]).replace(":test", ":dev")
    with pytest.raises(UserError, match="has no split 'dev'; there are: test"):
        find(tmp_path / "p", ChecksConfig(evaluation=(split,)))
    with pytest.raises(UserError, match="nowhere"):
        find(tmp_path / "p", ChecksConfig(corpus=str(tmp_path / "nowhere")))
