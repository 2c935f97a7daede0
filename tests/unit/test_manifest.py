"""The manifest: what names a dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import UserError
from data_shards.manifest import FIELDS, Manifest, ShardEntry, dataset_id_of

SUMS = ["00" * 32, "ff" * 32]
ENTRIES = [ShardEntry(path=f"train-00000{at}.tar", samples=3, bytes=2048, sha256=SUMS[at]) for at in (0, 1)]


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": "pairs",
        "dataset_id": dataset_id_of("pairs", ENTRIES),
        "shards": ENTRIES,
        "fields": FIELDS["pairs"],
    }
    return Manifest(**{**values, **changes})


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = manifest(
        source="tldr", licence="CC BY 4.0", weight=2.0, report={"blank_query": 1}, made_by={"dipole": "0"}
    )
    saved.save(tmp_path)
    assert Manifest.load(tmp_path, "pairs") == saved
    assert (saved.samples, saved.bytes, saved.shards[1].stem) == (6, 4096, "train-000001")


def test_pairs_with_a_teacher_are_told_where_they_were_counted(tmp_path: Path) -> None:
    manifest(with_teacher=2).save(tmp_path)
    assert Manifest.load(tmp_path).with_teacher == 2
    row = json.loads((tmp_path / "manifest.json").read_text())
    del row["with_teacher"]  # written before anybody counted
    (tmp_path / "manifest.json").write_text(json.dumps(row))
    assert Manifest.load(tmp_path).with_teacher is None


def test_the_dataset_id_is_a_hash_of_kind_and_contents() -> None:
    by_hand = hashlib.sha256(b"pairs" + bytes(32) + b"\xff" * 32).hexdigest()
    assert dataset_id_of("pairs", ENTRIES) == f"sha256:{by_hand}"
    renamed = [ShardEntry(path=f"other-{at}.tar", samples=3, bytes=2048, sha256=SUMS[at]) for at in (0, 1)]
    assert dataset_id_of("pairs", renamed) == dataset_id_of("pairs", ENTRIES)
    assert dataset_id_of("corpus", ENTRIES) != dataset_id_of("pairs", ENTRIES)
    assert dataset_id_of("pairs", ENTRIES[::-1]) != dataset_id_of("pairs", ENTRIES)


def test_a_folder_without_one_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="is no dataset: it has no manifest.json; make one with `dipole shards pairs`"
    ):
        Manifest.load(tmp_path)


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    with pytest.raises(UserError, match="holds a dataset of kind pairs, wanted corpus"):
        Manifest.load(tmp_path, "corpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(schema_version=2), "schema version 2, this dipole reads 1; update dipole"),
        (lambda row: row.update(kind="images"), "kind 'images' is none of pairs, corpus"),
        (lambda row: row.update(surprise=1), "unexpected keyword argument 'surprise'"),
        (lambda row: row.update(with_teacher="all"), "with_teacher 'all' is no whole number"),
        (lambda row: row.pop("dataset_id"), "missing 1 required keyword-only argument: 'dataset_id'"),
        (lambda row: row.pop("shards"), "'shards'"),
        (lambda row: row["shards"][0].update(path="../train.tar"), "'../train.tar' is not the plain name of a .tar"),
        (lambda row: row["shards"][0].update(path="/train.tar"), "'/train.tar' is not the plain name of a .tar file"),
        (lambda row: row["shards"][0].update(samples="3"), "values of a wrong type"),
        (lambda row: row["shards"][0].update(sha256="zz"), "sha256 'zz' of shard train-000000.tar is no checksum"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    manifest().save(tmp_path)
    row = json.loads((tmp_path / "manifest.json").read_text())
    change(row)
    (tmp_path / "manifest.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"manifest.json is no dataset manifest: .*{message}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '"x"'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json is no dataset manifest"):
        Manifest.load(tmp_path)


def test_half_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "pai')
    with pytest.raises(UserError, match="manifest.json is not valid JSON"):
        Manifest.load(tmp_path)
