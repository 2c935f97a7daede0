"""Invariant 9: members that are no samples, in tars that were made so: manifest and sidecars agree with them.

Checksums say what was written, not that it makes sense. Read like the table in test_damages.py.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import shard_reader
from data_shards.atomic import sha256_file
from data_shards.manifest import FIELDS, Manifest, ShardEntry, dataset_id_of
from data_shards.reader import PairDataset
from data_shards.samples import sample_key
from data_shards.sidecar import save_sidecar, sidecar_path
from data_shards.tar import scan_crcs
from tests.unit.damaged import (
    ROWS,
    SHARD,
    SPAN,
    WHOLE_SHARD,
    assert_raises,
    assert_skips,
    forget_sidecars,
    pair,
)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def remake(place: Path, name: str, payload: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    """Put another second member into the shard, and make sidecars and manifest fit it."""
    path, archive = place / SHARD, io.BytesIO()
    offsets = []
    for row in range(ROWS):
        offsets.append(archive.tell())
        one, data = (f"{sample_key(ROWS + row)}.json", pair(ROWS + row).to_json()) if row != 1 else (name, payload)
        archive.write(header(one, len(data), kind if row == 1 else tarfile.REGTYPE))
        archive.write(data + bytes(-len(data) % 512))
    borders = np.array([*offsets, archive.tell()], dtype="<u8")
    path.write_bytes(archive.getvalue() + bytes(1024))
    forget_sidecars(path)
    sidecar_path(path, "idx").write_bytes(borders.tobytes())
    save_sidecar(path, "crc", scan_crcs(path, borders.astype(np.uint64)))
    manifest = Manifest.load(place)
    entry = ShardEntry(path=SHARD, samples=ROWS, bytes=path.stat().st_size, sha256=sha256_file(path))
    shards = [manifest.shards[0], entry, manifest.shards[2]]
    replace(manifest, shards=shards, dataset_id=dataset_id_of("pairs", shards)).save(place)


def json_of(**changes: object) -> bytes:
    row = {name: value for name, value in {**json.loads(pair(5).to_json()), **changes}.items() if value != "left out"}
    return json.dumps(row).encode()


NO_SAMPLE = "row 1 holds no training sample"
PAYLOADS = {
    "no JSON": (b"{" * 40, f"{NO_SAMPLE} \\(JSONDecodeError"),
    "empty": (b"", f"{NO_SAMPLE} \\(JSONDecodeError"),
    "zeros": (bytes(600), f"{NO_SAMPLE} \\(JSONDecodeError"),
    "bad UTF-8": (pair(5).to_json().replace(b"query 05", b"query \xff5"), f"{NO_SAMPLE} \\(UnicodeDecodeError"),
    "half a surrogate pair": (json_of(query="\ud800"), f"{NO_SAMPLE} \\(UnicodeEncodeError"),
    "a list": (b"[]", "TypeError: wanted a JSON object, came list"),
    "a number": (b"5", "TypeError: wanted a JSON object, came int"),
    "no query": (json_of(query="left out"), f"{NO_SAMPLE} \\(KeyError: 'query'"),
    "no positives": (json_of(positives="left out"), f"{NO_SAMPLE} \\(KeyError: 'positives'"),
    "a query that is a number": (json_of(query=5), "TypeError: `query` is of type int, wanted text"),
    "a query id that is a truth value": (json_of(query_id=True), "TypeError: an id is of type bool, wanted text"),
    "positives that are no list": (json_of(positives=3), f"{NO_SAMPLE} \\(TypeError"),
    "a positive that is a text": (json_of(positives=["p5"]), f"{NO_SAMPLE} \\(TypeError"),
    "a positive without text": (json_of(positives=[{"id": "p"}]), f"{NO_SAMPLE} \\(KeyError: 'text'"),
    "a title that is a list": (
        json_of(positives=[{"id": "p", "title": [1], "text": "x"}]),
        "`title` is of type list",
    ),
    "a source that is a number": (json_of(source=5), "`source` is of type int"),
    "a weight that is no number": (json_of(weight="much"), f"{NO_SAMPLE} \\(ValueError"),
    "a weight of NaN": (json_of(weight=float("nan")), "ValueError: `weight` holds nan, wanted finite numbers of 0"),
    "a weight below 0": (json_of(weight=-1), "ValueError: `weight` holds -1.0, wanted finite numbers of 0 or more"),
    "a score below 0": (json_of(scores=[-0.5]), "ValueError: `scores` holds -0.5"),
    "an endless score": (json_of(scores=[float("inf")]), "ValueError: `scores` holds inf"),
    "deep nesting": (b'{"query":' + b"[" * 100_000, "ValueError: its JSON is nested too deeply"),
}


@pytest.mark.parametrize(("payload", "message"), PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_a_member_that_is_no_sample_is_named(place: Path, payload: bytes, message: str, bare: bool) -> None:
    """Checksums say what was written, not that it makes sense. One sample is lost, sidecars or none."""
    remake(place, "000000005.json", payload)
    if bare:
        forget_sidecars(place / SHARD)
    assert_raises(place, SPAN, message)
    assert_skips(place, [(1, SPAN)])


MEMBERS = {
    "upwards": ("../x.json", tarfile.REGTYPE, r"member name '\.\./x\.json' points outside its archive; refused"),
    "upwards inside": ("a/../../x.json", tarfile.REGTYPE, "points outside its archive; refused"),
    "absolute": ("/etc/x.json", tarfile.REGTYPE, "member name '/etc/x.json' points outside its archive; refused"),
    "upwards by the prefix": (
        "../" + "a" * 90 + "/" + "b" * 90 + ".json",
        tarfile.REGTYPE,
        "points outside its archive; refused",
    ),
    "a link": ("000000005.json", tarfile.SYMTYPE, "member of type b'2' .*, wanted plain files only"),
    "a device": ("000000005.json", tarfile.CHRTYPE, "member of type b'3' .*, wanted plain files only"),
    "no extension": ("000000005", tarfile.REGTYPE, "member name '000000005' is not KEY.EXTENSION"),
}


@pytest.mark.parametrize(("name", "kind", "message"), MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_a_member_that_no_archive_of_samples_may_hold_is_refused(
    place: Path, name: str, kind: bytes, message: str, bare: bool
) -> None:
    remake(place, name, pair(5).to_json(), kind)
    if bare:
        forget_sidecars(place / SHARD)
    assert_raises(place, SPAN, message)
    assert_skips(place, [(WHOLE_SHARD if bare else 1, SPAN)])


@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_a_member_that_is_no_json_is_named(place: Path, bare: bool) -> None:
    remake(place, "000000005.txt", pair(5).to_json())
    if bare:
        forget_sidecars(place / SHARD)
    assert_raises(place, SPAN, r"wanted a \.json member, came txt")
    assert_skips(place, [(1, SPAN)])


@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
@pytest.mark.parametrize("read_bytes", [512, 2048])
def test_a_huge_sample_is_never_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, bare: bool, read_bytes: int
) -> None:
    """Sound, but of more bytes than any sample has."""
    remake(place, "000000005.json", pair(5, "y" * 3000).to_json())
    if bare:
        forget_sidecars(place / SHARD)
    monkeypatch.setattr(shard_reader, "MAX_SAMPLE_BYTES", 2048)
    monkeypatch.setattr(shard_reader, "_READ_BYTES", read_bytes)
    assert_raises(place, SPAN, "a sample of 4,608 bytes, more than 2,048; leave it out or chunk it")
    assert_skips(place, [(1, SPAN)])


def test_the_table_s_manifest_is_a_real_one(place: Path) -> None:
    """`remake` with the pair that was there gives the dataset that was there."""
    before = asdict(Manifest.load(place))
    remake(place, "000000005.json", pair(5).to_json())
    assert asdict(Manifest.load(place)) == before
    assert before["fields"] == FIELDS["pairs"]
    assert list(PairDataset(place)) == [pair(number) for number in range(12)]
