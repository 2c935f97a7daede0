"""Negatives versions: seen whole or not at all, and refused when damaged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DamagedVersionError, ShardCorruptError, UserError
from data_shards.negatives import (
    MinedNegative,
    NegativesManifest,
    NegativesRow,
    NegativesVersion,
    published_versions,
    version_dir,
    write_negatives,
)
from data_shards.samples import Passage
from data_shards.shard_reader import ShardReader
from data_shards.sidecar import save_sidecars
from data_shards.tar import write_tar

MANIFEST = NegativesManifest(
    version=3,
    dataset_id="sha256:train",
    from_step=40,
    to_step=80,
    snapshot_hash="sha256:encoder",
    snapshot_step=40,
    per_query=2,
    index={"factory": "Flat", "recall@10": 1.0},
    filters={"known_positive": 4},
    scores={"positive": 0.7, "negative": 0.4},
    seconds={"embed": 1.5},
)


def mined(*numbers: int) -> list[MinedNegative]:
    return [MinedNegative(Passage(id=f"p{n}", title=f"T{n}", text=f"text {n}"), 1 / n) for n in numbers]


ROWS = [
    NegativesRow("train-000000", 2, "000000002", mined(1, 2)),
    NegativesRow("train-000000", 5, "000000005", []),
    NegativesRow("train-000000", 7, "000000007", mined(3)),
    NegativesRow("train-000002", 0, "000000020", mined(2)),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_negatives(tmp_path / "negatives", MANIFEST, ROWS)
    return tmp_path / "negatives"


def test_negatives_come_back_by_shard_and_row(root: Path) -> None:
    version = NegativesVersion.open(root, 3, "sha256:train")
    assert version.negatives("train-000000", 2) == [negative.passage for negative in mined(1, 2)]
    assert [negative.score for negative in version.mined("train-000000", 7)] == [0.333333]
    assert version.negatives("train-000002", 0) == [mined(2)[0].passage]
    assert len(version) == 3
    assert version.manifest == replace(MANIFEST, shards=version.manifest.shards)


def test_a_teachers_score_comes_back_where_there_is_one(tmp_path: Path) -> None:
    """Beside versions that have none: their bytes are as they were before there were any."""
    one, two = mined(1, 2)
    rows = [NegativesRow("train-000000", 2, "000000002", [one._replace(teacher=-4.5), two])]
    write_negatives(tmp_path, MANIFEST, rows)
    version = NegativesVersion.open(tmp_path, 3)
    assert [negative.teacher for negative in version.mined("train-000000", 2)] == [-4.5, None]
    assert version.negatives("train-000000", 2) == [one.passage, two.passage]
    found = json.loads(ShardReader(version.folder / "train-000000.tar").payload(0))["negatives"]
    assert [row.get("teacher", "none") for row in found] == [-4.5, "none"]
    bad = [NegativesRow("train-000000", 2, "000000002", [one._replace(teacher=float("nan"))])]
    with pytest.raises(ValueError, match="a teacher's score is nan, wanted a finite number"):
        write_negatives(tmp_path / "bad", MANIFEST, bad)


@pytest.mark.parametrize("change", [{"score": "near"}, {"teacher": "high"}, {"teacher": float("inf")}, {"id": None}])
def test_negatives_that_make_no_sense_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    """Sound bytes of somebody else's: seen when they are read."""
    write_negatives(tmp_path, MANIFEST, ROWS)
    folder = version_dir(tmp_path, 3)
    row = {"id": "p3", "title": "T3", "text": "text 3", "score": 0.3, **change}
    summary = write_tar(folder / "train-000002.tar", [("000000020.json", json.dumps({"negatives": [row]}).encode())])
    save_sidecars(folder / "train-000002.tar", summary)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1].update(sha256=summary.sha256, bytes=summary.bytes)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    version = NegativesVersion.open(tmp_path, 3)
    with pytest.raises(ShardCorruptError, match=r"train-000002\.tar at byte 0: row 0 holds no mined negatives \("):
        version.mined("train-000002", 0)


@pytest.mark.parametrize(
    ("stem", "row"), [("train-000000", 0), ("train-000000", 5), ("train-000000", 99), ("train-000001", 2)]
)
def test_a_row_without_negatives_has_none(root: Path, stem: str, row: int) -> None:
    assert NegativesVersion.open(root, 3).negatives(stem, row) == []


def test_the_layout_is_the_documented_one(root: Path) -> None:
    parts = [f"train-00000{at}{end}" for at in (0, 2) for end in (".rows.npy", ".tar", ".tar.crc", ".tar.idx")]
    folder = root / "v000003"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *parts]
    assert np.load(folder / "train-000000.rows.npy", allow_pickle=False).tolist() == [2, 7]
    reader = ShardReader(folder / "train-000000.tar")
    assert [reader.key(row) for row in range(len(reader))] == ["000000002", "000000007"]
    row = {"id": "p3", "title": "T3", "text": "text 3", "score": 0.333333}
    assert json.loads(reader.payload(1)) == {"negatives": [row]}


def test_the_same_negatives_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = write_negatives(tmp_path / "again", MANIFEST, ROWS)
    for path in again.iterdir():
        assert path.read_bytes() == (root / "v000003" / path.name).read_bytes()


def test_only_whole_versions_are_seen(root: Path) -> None:
    write_negatives(root, replace(MANIFEST, version=12), ROWS)
    (root / "v000004").mkdir()  # no manifest
    (root / "notes").mkdir()
    (root / "notes" / "manifest.json").touch()
    assert published_versions(root) == [3, 12]
    assert published_versions(root / "nowhere") == []
    with pytest.raises(UserError, match="v000004 is no published negatives version; there are: 3, 12"):
        NegativesVersion.open(root, 4)


def test_a_version_that_fails_half_way_is_not_seen(root: Path) -> None:
    def rows():
        yield ROWS[0]
        yield ROWS[3]
        assert published_versions(root) == [3]
        raise RuntimeError("mining broke")

    with pytest.raises(RuntimeError, match="mining broke"):
        write_negatives(root, replace(MANIFEST, version=4), rows())
    assert [path.name for path in root.iterdir()] == ["v000003"]


def test_a_killed_writer_leaves_nothing_that_is_seen(root: Path) -> None:
    """The child is ended in the middle of a version, as by SIGKILL; the next writer clears its remains."""
    child = os.fork()
    if child == 0:

        def rows():
            yield ROWS[0]
            yield ROWS[3]
            os._exit(9)

        write_negatives(root, replace(MANIFEST, version=4), rows())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert published_versions(root) == [3]
    assert any(path.name.startswith(".tmp-") for path in root.iterdir())
    write_negatives(root, replace(MANIFEST, version=4), ROWS)
    assert sorted(path.name for path in root.iterdir()) == ["v000003", "v000004"]


def test_a_version_is_never_overwritten(root: Path) -> None:
    with pytest.raises(UserError, match="v000003 is there already and is never overwritten"):
        write_negatives(root, MANIFEST, ROWS)


@pytest.mark.parametrize("order", [[2, 0], [0, 0], [3, 0], [0, 3, 2]])
def test_rows_out_of_order_are_a_mistake(tmp_path: Path, order: list[int]) -> None:
    with pytest.raises(ValueError, match="sort them by shard and row"):
        write_negatives(tmp_path, MANIFEST, [ROWS[at] for at in order])
    assert list(tmp_path.iterdir()) == []


def test_another_dataset_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="was mined for dataset sha256:train, training reads sha256:other"):
        NegativesVersion.open(root, 3, "sha256:other")


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.rows.npy"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_version_is_refused(root: Path, name: str, harm: str) -> None:
    path = version_dir(root, 3) / name
    if harm == "flip":
        data = bytearray(path.read_bytes())
        data[600 if name.endswith("tar") else -3] ^= 1
        path.write_bytes(data)
    elif harm == "truncate":
        os.truncate(path, path.stat().st_size - 8)
    else:
        path.unlink()
    with pytest.raises(ShardCorruptError, match=name):
        NegativesVersion.open(root, 3)


def test_a_damaged_manifest_is_refused(root: Path) -> None:
    path = version_dir(root, 3) / "manifest.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "shards": [{**row["shards"][0], "path": "../../x.tar"}]}))
    with pytest.raises(UserError, match="manifest.json is no negatives manifest .*mine anew"):
        NegativesVersion.open(root, 3)
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match="manifest.json is not valid JSON"):
        NegativesVersion.open(root, 3)


@pytest.mark.parametrize("name", ["train-000000.tar.idx", "train-000000.tar.crc"])
def test_a_damaged_sidecar_is_mended_from_its_verified_tar(root: Path, name: str) -> None:
    path = version_dir(root, 3) / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    version = NegativesVersion.open(root, 3)
    assert version.negatives("train-000000", 2) == [negative.passage for negative in mined(1, 2)]
    assert version.negatives("train-000000", 7) == [mined(3)[0].passage]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 4}, r"manifest\.json is of version 4; delete the folder"),
        ({"version": "3"}, r"`version` is '3', wanted a whole number"),
        ({"to_step": None}, r"`to_step` is None, wanted a whole number"),
        ({"filters": []}, r"`filters` is \[\], wanted an object"),
        ({"shards": None}, r"is no negatives manifest \(.*mine anew"),
        ({"colour": "red"}, r"is no negatives manifest \(.*colour.*mine anew"),
    ],
)
def test_a_damaged_manifest_is_an_error_of_its_own_that_a_trainer_can_catch(
    root: Path, change: dict[str, object], message: str
) -> None:
    path = version_dir(root, 3) / "manifest.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, **change}))
    with pytest.raises(DamagedVersionError, match=message):
        NegativesVersion.open(root, 3)
    for text in ("[]", "null", "", '{"version": 3'):
        path.write_text(text)
        with pytest.raises(DamagedVersionError, match=r"manifest\.json is no"):
            NegativesVersion.open(root, 3)


def test_the_sample_is_kept_with_its_checksum(tmp_path: Path) -> None:
    sample = [{"query": "q", "positives": [], "negatives": []}]
    write_negatives(tmp_path, MANIFEST, ROWS, sample=sample)
    version = NegativesVersion.open(tmp_path, 3)
    assert version.sample() == sample
    path = version.folder / "sample.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ShardCorruptError, match=r"sample\.json at byte 0: its sha256 is"):
        NegativesVersion.open(tmp_path, 3)


def test_a_version_from_before_there_were_statistics_is_read(root: Path) -> None:
    path = version_dir(root, 3) / "manifest.json"
    row = json.loads(path.read_text())
    for name in ("sources", "statistics", "sample_sha256"):
        del row[name]
    path.write_text(json.dumps(row))
    version = NegativesVersion.open(root, 3)
    assert (version.manifest.sources, version.manifest.statistics, version.sample()) == (("dense",), {}, [])


def test_publishing_is_timed_where_asked(tmp_path: Path) -> None:
    write_negatives(tmp_path, MANIFEST, ROWS, timed=True)
    seconds = NegativesVersion.open(tmp_path, 3).manifest.seconds
    assert list(seconds) == ["embed", "publish"]
    assert seconds["publish"] >= 0


def test_all_touched_rows_are_told(root: Path) -> None:
    found = {stem: rows.tolist() for stem, rows in NegativesVersion.open(root, 3).touched()}
    assert found == {"train-000000": [2, 7], "train-000002": [0]}


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of a large run touches thousands: all of them open would be more than a process may have."""
    monkeypatch.setattr("data_shards.negatives._OPEN_SHARDS", 2)
    rows = [NegativesRow(f"train-{n:06d}", n, f"{n:09d}", mined(n + 1)) for n in range(40)]
    write_negatives(tmp_path, MANIFEST, rows)
    before = len(os.listdir("/proc/self/fd"))
    version = NegativesVersion.open(tmp_path, 3)
    for _ in range(2):
        for n in range(40):
            assert version.negatives(f"train-{n:06d}", n) == [mined(n + 1)[0].passage]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 2


def test_rows_are_never_unpickled(root: Path) -> None:
    folder = version_dir(root, 3)
    np.save(folder / "train-000000.rows.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ShardCorruptError, match=r"rows\.npy"):
        NegativesVersion.open(root, 3)


def test_a_version_may_be_empty(tmp_path: Path) -> None:
    """The filters may leave nothing; that is a version all the same."""
    write_negatives(tmp_path, MANIFEST, [ROWS[1]])
    version = NegativesVersion.open(tmp_path, 3)
    assert (len(version), version.negatives("train-000000", 5)) == (0, [])
