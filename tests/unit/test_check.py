"""Checking, describing and sampling a dataset, by function and by verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_shards.atomic import sha256_file
from data_shards.check import MOST_SAMPLES, Damage, damages_of, sample
from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import ShardEntry, dataset_id_of
from data_shards.reader import CorpusDataset
from data_shards.samples import Pair, Passage
from data_shards.writer import ShardWriter
from launch.cli import main
from launch.shards_look import ShardsCheck, ShardsSample, ShardsStats

TEXTS = ["one two three", "four five", "One  two THREE", "six"]


def write_corpus(folder: Path, ids: list[str]) -> Path:
    with ShardWriter(folder, "corpus", samples_per_shard=2) as writer:
        for passage_id, text in zip(ids, TEXTS, strict=True):
            writer.add(Passage(id=passage_id, text=text))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", ["a", "b", "c", "d"])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    passages = [Passage(id=str(at), text=text) for at, text in enumerate(TEXTS)]
    with ShardWriter(tmp_path / "pairs", "pairs") as writer:
        writer.add(Pair(query_id="1", query="a b", positives=(passages[0],), negatives=(passages[3],)))
        writer.add(Pair(query_id="2", query="c", positives=(passages[1], passages[2])))
    return tmp_path / "pairs"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def lines(folder: Path) -> list[str]:
    return [str(damage) for damage in damages_of(folder)]


def resign(folder: Path) -> None:
    """Make the manifest agree with its shards, as one who writes nonsense on purpose would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"]:
        shard = folder / entry["path"]
        entry.update(sha256=sha256_file(shard), bytes=shard.stat().st_size)
    manifest["dataset_id"] = dataset_id_of("corpus", [ShardEntry(**entry) for entry in manifest["shards"]])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for sidecar in folder.glob("*.crc"):
        sidecar.unlink()


def test_a_whole_dataset_passes(corpus: Path, pairs: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert damages_of(corpus, lambda done, total: seen.append((done, total))) == []
    assert seen == [(2, 4), (4, 4)]
    assert damages_of(pairs) == []


def test_a_dataset_without_sidecars_passes(corpus: Path) -> None:
    for ending in ("idx", "crc"):
        (corpus / f"corpus-000001.tar.{ending}").unlink()
    assert damages_of(corpus) == []


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (3, b"z", "corpus-000001.tar at byte 0: corrupt header"),
        (1024, bytes(512), "corpus-000001.tar at byte 1024: a zeroed header"),
        (520, b"z", "corpus-000001.tar at byte 0: sample 0 is not what was written (its CRC-32 differs)"),
        (1024 + 520, b"z", "corpus-000001.tar at byte 1024: sample 1 is not what was written (its CRC-32 differs)"),
    ],
)
def test_damage_is_found_and_placed(corpus: Path, offset: int, data: bytes, message: str) -> None:
    overwrite(corpus / "corpus-000001.tar", offset, data)
    (found, *_) = lines(corpus)
    assert found.startswith(message)


def test_a_flipped_bit_that_no_sidecar_knows_is_somewhere(corpus: Path) -> None:
    overwrite(corpus / "corpus-000001.tar", 560, b"z")
    (corpus / "corpus-000001.tar.crc").unlink()
    (found,) = damages_of(corpus)
    assert found.offset is None
    assert "which sample differs cannot be told" in found.what


def test_every_damaged_shard_is_told(corpus: Path) -> None:
    (corpus / "corpus-000000.tar").unlink()
    with open(corpus / "corpus-000001.tar", "r+b") as file:
        file.truncate(1500)
    (corpus / "stray.tar").write_bytes(b"")
    missing, short, cut, stray = damages_of(corpus)
    assert "Every shard is damaged; their texts were not looked at." in str(ShardsCheck(dir=corpus).run()["text"])
    assert (missing.shard, missing.offset) == ("corpus-000000.tar", None)
    assert "the shard is missing" in missing.what
    assert (short.shard, short.offset) == ("corpus-000001.tar", 1500)
    assert "the file ends at byte 1500, the manifest says at 3072" in short.what
    assert (cut.shard, cut.offset) == ("corpus-000001.tar", 1024)
    assert "truncated" in cut.what
    assert str(stray).startswith("stray.tar: the manifest does not name it")


def test_a_shard_of_another_dataset_is_found(corpus: Path, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", ["w", "x", "y", "z"])
    (corpus / "corpus-000000.tar").write_bytes((other / "corpus-000000.tar").read_bytes())
    (found,) = lines(corpus)
    assert found.startswith("corpus-000000.tar: its checksum is not the manifest's")


@pytest.mark.parametrize(("ending", "data", "at"), [("idx", (0, 512, 2048), 9), ("crc", (0,), 0)])
def test_a_sidecar_of_another_shard_is_found(corpus: Path, ending: str, data: tuple[int, ...], at: int) -> None:
    """One that a reader would take, or would blame the shard for."""
    size = 8 if ending == "idx" else 4
    written = b"".join(value.to_bytes(size, "little") for value in data)
    (corpus / f"corpus-000001.tar.{ending}").write_bytes(written)
    (found,) = lines(corpus)
    assert found.startswith(
        f"corpus-000001.tar.{ending} at byte {at}: it does not match corpus-000001.tar; delete it"
    )


def test_checksums_without_a_seal_are_old_and_no_damage(corpus: Path) -> None:
    """Until a reader seals them: the values are right."""
    path = corpus / "corpus-000001.tar.crc"
    sealed = path.read_bytes()
    path.write_bytes(sealed[:-8])
    assert lines(corpus) == []
    list(CorpusDataset(corpus))
    assert path.read_bytes() == sealed
    path.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    (found,) = lines(corpus)
    assert found.startswith("corpus-000001.tar.crc at byte 15: it does not match corpus-000001.tar; delete it")


def test_positives_of_another_shard_are_found(pairs: Path) -> None:
    overwrite(pairs / "train-000000.tar.pos", 0, b"another!")
    (found,) = lines(pairs)
    assert found == "train-000000.tar.pos: it is damaged, or another shard's; delete it, it is made anew when needed"


def test_an_edited_manifest_is_found(corpus: Path) -> None:
    path = corpus / "manifest.json"
    row = json.loads(path.read_text())
    row["shards"].pop()
    path.write_text(json.dumps(row))
    edited, stray = lines(corpus)
    assert edited.startswith("manifest.json: it does not match its own dataset_id; it was edited")
    assert stray.startswith("corpus-000001.tar: the manifest does not name it")


def test_a_wrong_count_is_found(corpus: Path) -> None:
    row = json.loads((corpus / "manifest.json").read_text())
    row["shards"][0]["samples"] = 3
    (corpus / "manifest.json").write_text(json.dumps(row))
    assert lines(corpus) == ["corpus-000000.tar at byte 2048: 2 samples, the manifest says 3"]


def test_payloads_that_are_no_samples_are_found(corpus: Path) -> None:
    """Checksums say what was written, not that it makes sense."""
    shard = corpus / "corpus-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"text":"', b'"tixt":"'))
    resign(corpus)
    first, second = lines(corpus)
    assert first.startswith("corpus-000000.tar at byte 0: row 0 holds no passage (KeyError: 'text')")
    assert second.startswith("corpus-000000.tar at byte 1024: row 1 holds no passage")


def test_half_a_surrogate_pair_is_no_sample_and_the_rest_is_still_looked_at(corpus: Path) -> None:
    shard = corpus / "corpus-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"One  two THREE"', b'"One \\ud83d   x"'))
    resign(corpus)
    answer = ShardsCheck(dir=corpus).run()
    (damage,) = damages_of(corpus)
    assert str(damage).startswith("corpus-000001.tar at byte 0: row 0 holds no passage (")
    assert answer["exit_code"] == 1


def test_a_thousand_bad_rows_are_not_a_thousand_lines(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "c", "corpus") as writer:
        for at in range(MOST_SAMPLES + 5):
            writer.add(Passage(id=str(at), text="x"))
    shard = tmp_path / "c" / "corpus-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"text"', b'"tixt"'))
    resign(tmp_path / "c")
    found = damages_of(tmp_path / "c")
    assert len(found) == MOST_SAMPLES + 1
    assert found[-1] == Damage(shard="corpus-000000.tar", offset=None, what="5 more rows like these")


def test_samples_are_drawn_by_seed(corpus: Path, pairs: Path) -> None:
    drawn = sample(corpus, 3, seed=1)
    assert drawn == sample(corpus, 3, seed=1)
    assert len({row["id"] for row in drawn}) == 3
    assert {row["text"] for row in sample(corpus, 99)} == set(TEXTS)
    assert sample(pairs, 2)[0].keys() == {
        "query_id",
        "query",
        "positives",
        "negatives",
        "source",
        "weight",
        "scores",
        "teacher_positives",
        "teacher_negatives",
    }
    for count in (0, -1):
        with pytest.raises(UserError, match=f"^{count} samples were asked for; set --n to 1 or more$"):
            sample(pairs, count)


def test_what_is_not_there_is_told_before_every_byte_is_read(
    pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the bytes are read")

    monkeypatch.setattr("data_shards.check.damages_of", never)
    for option, value, message in [
        ("--corpus", "nowhere", "nowhere is no dataset"),
        ("--evaluation", "nowhere:test", "nowhere is no folder"),
        ("--tokenizer", "nowhere", "nowhere"),
    ]:
        assert main(["shards", "check", str(pairs), option, value]) == 2
        assert message in capsys.readouterr().err


def test_check_goes_on_with_the_sound_shards_and_exits_1(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overwrite(corpus / "corpus-000001.tar", 1024, bytes(512))
    assert main(["shards", "check", str(corpus), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["whole"] is False
    assert [row["shard"] for row in answer["damages"]] == ["corpus-000001.tar"]
    assert answer["findings"]["skipped"] == ["corpus-000001.tar"]
    assert answer["findings"]["numbers"]["passage"]["count"] == 2
    assert main(["shards", "check", str(corpus)]) == 1
    out = capsys.readouterr().out
    assert "NOT WHOLE: 1 damage\n  corpus-000001.tar at byte 1024: a zeroed header" in out


def test_check_exits_1_on_a_fatal_finding_and_0_where_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_corpus(tmp_path / "corpus", ["a", "b", "a", "d"]))
    assert main(["shards", "check", folder]) == 1
    assert "FATAL      id_not_unique: 1 of 4 passages, 25.0%" in capsys.readouterr().out
    assert main(["shards", "check", folder, "--allow", "id_not_unique"]) == 0
    assert main(["shards", "check", folder, "--bytes-only"]) == 0
    assert main(["shards", "check", folder, "--allow", "id_unique"]) == 2
    assert "did you mean id_not_unique" in capsys.readouterr().err


def test_check_passes_on_where_to_look(corpus: Path, pairs: Path, snapshot: Path) -> None:
    answer = ShardsCheck(dir=pairs, corpus=corpus, tokenizer=snapshot).run()
    assert (answer["whole"], answer["exit_code"]) == (True, 0)
    found = json.loads(json.dumps(answer["findings"]))
    # Ids 0, 1, 2 are not those of the corpus, a, b, c, but the texts are there.
    assert ("positive_under_another_id", 3) in [(row["name"], row["count"]) for row in found["findings"]]
    assert found["numbers"]["query"]["tokens"]["sampled"] == 2
    with pytest.raises(UserError, match="is no tokenizer that can be loaded here"):
        ShardsCheck(dir=pairs, tokenizer=corpus).run()


def test_stats_are_numbers_a_table_and_a_page(pairs: Path, tmp_path: Path) -> None:
    answer = ShardsStats(dir=pairs, html=tmp_path / "page.html").run()
    query = answer["query"]
    assert isinstance(query, dict)
    assert query["words"] == {"mean": 1.5, "p5": 1, "p50": 1, "p95": 2, "max": 2}
    assert answer["positives_per_query"] == {"1": 1, "2": 1}
    assert answer["negatives_per_query"] == {"0": 1, "1": 1}
    assert "queries                2  words        1.5        1        1        2        2" in str(answer["text"])
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    json.dumps(answer)


def test_stats_of_a_damaged_dataset_are_refused_in_one_line(corpus: Path) -> None:
    (corpus / "corpus-000001.tar").unlink()
    with pytest.raises(ShardCorruptError, match=r"corpus-000001\.tar"):
        ShardsStats(dir=corpus).run()


def test_samples_read_well(pairs: Path) -> None:
    answer = ShardsSample(dir=pairs, n=2).run()
    text = str(answer["text"])
    assert "query 1\n  a b\n  positive 0\n    one two three\n  negative 3\n    six" in text
    assert json.loads(json.dumps(answer["samples"]))[0]["query_id"] in {"1", "2"}


@pytest.mark.parametrize("place", ["s3://bucket/pairs", "https://host/pairs", "pipe:cat /pairs/{name}"])
@pytest.mark.parametrize("verb", ["check", "stats"])
def test_what_lies_elsewhere_is_not_called_missing(verb: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", verb, place]) == 2
    assert "is no folder of this machine, and this verb reads no others; copy" in capsys.readouterr().err
