"""Invariant 9, *nothing is lost silently*: every damage of a shard, and what becomes of it.

A dataset of three shards with four pairs each, the second one harmed. Without a quarantine reading it, forward or by
ordinal, raises with shard and offset. With one every sound sample comes out, and the file says what did not. Where a
shard's sidecars are lost as well, nothing tells which of its samples are sound: it is left out as a whole.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import shard_reader
from data_shards.atomic import sha256_file
from data_shards.errors import ShardCorruptError
from data_shards.manifest import FIELDS, Manifest, ShardEntry, dataset_id_of
from data_shards.quarantine import Quarantine
from data_shards.reader import PairDataset
from data_shards.samples import Pair, Passage, sample_key
from data_shards.shard_reader import ShardReader
from data_shards.sidecar import sidecar_path
from data_shards.writer import ShardWriter

ROWS = 4
SPAN = 1536  # of each sample: a header, and two blocks of payload
END = ROWS * SPAN
SIZE = END + 1024
SHARD = "train-000001.tar"
SOUND = [*range(4), *range(8, 12)]  # ordinals of the other two shards
SIDECARS = (".idx", ".crc", ".pos")

Harm = Callable[[Path], None]
Found = tuple[int | None, int]
"""A line of the quarantine file: row, offset."""
WHOLE_SHARD = None


def pair(number: int, word: str = "passage") -> Pair:
    positive = Passage(id=f"p{number:02d}", text=f"{word} {number:02d} " + "x" * 600)
    return Pair(query_id=f"q{number:02d}", query=f"query {number:02d}", positives=(positive,))


def write_pairs(folder: Path, word: str = "passage") -> Path:
    with ShardWriter(folder, "pairs", samples_per_shard=ROWS) as writer:
        for number in range(12):
            writer.add(pair(number, word))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound dataset, which no test may change."""
    folder = write_pairs(tmp_path_factory.mktemp("damages") / "pairs")
    for path in folder.glob("*.tar"):
        assert ShardReader(path).offsets.tolist() == [0, 1536, 3072, 4608, END]
    return folder


@pytest.fixture
def place(written: Path, tmp_path: Path) -> Path:
    """A copy of it to harm."""
    shutil.copytree(written, tmp_path / "pairs")
    return tmp_path / "pairs"


def overwrite(offset: int, data: bytes) -> Harm:
    def harm(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    return harm


def cut(size: int) -> Harm:
    return lambda path: os.truncate(path, size)


def swap(*, grow: int = 0, sidecars: bool = False) -> Harm:
    """Put another dataset's shard in its place; `grow` makes it another size."""

    def harm(path: Path) -> None:
        folder = path.parent.parent / "foreign"
        write_pairs(folder, word="foreign" if not grow else "foreign" + "y" * grow)
        assert ((folder / path.name).stat().st_size == SIZE) == (not grow)
        for ending in ("", *SIDECARS) if sidecars else ("",):
            shutil.copy(folder / f"{path.name}{ending}", path.parent / f"{path.name}{ending}")

    return harm


def huge_header(path: Path) -> None:
    """Have the second sample's header say nine GiB, its checksum right."""
    header = bytearray(path.read_bytes()[SPAN : SPAN + 512])
    header[124:136] = b"\x80" + (9 << 30).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    overwrite(SPAN, bytes(header))(path)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A damage, and what comes of it with the shard's sidecars beside it, and without."""

    harm: Harm
    error: tuple[int, str]
    """Offset and message where nothing may be lost."""
    bare_error: tuple[int, str]
    """The same without sidecars."""
    lost: list[Found] = field(default_factory=list)
    """What a quarantine then holds; the pairs of all other rows come out."""
    bare_lost: list[Found] = field(default_factory=list)
    """The same without sidecars."""


ENDS = f"the file ends here, the manifest says at {SIZE}"
SHA = "its sha256 is .*, the manifest says"
CRC = "the sample's bytes do not match its checksum"
MISSING = "the shard is missing, though the manifest names it; copy the dataset again or make it anew"

CASES = {
    "cut inside a header": Case(
        harm=cut(2 * SPAN + 100),
        error=(2 * SPAN + 100, ENDS),
        bare_error=(2 * SPAN + 100, ENDS),
        lost=[(2, 2 * SPAN), (3, 3 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "cut between two samples": Case(
        harm=cut(2 * SPAN),
        error=(2 * SPAN, ENDS),
        bare_error=(2 * SPAN, ENDS),
        lost=[(2, 2 * SPAN), (3, 3 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "cut inside a payload": Case(
        harm=cut(2 * SPAN + 900),
        error=(2 * SPAN + 900, ENDS),
        bare_error=(2 * SPAN + 900, ENDS),
        lost=[(2, 2 * SPAN), (3, 3 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "cut inside the end blocks, which loses no sample": Case(
        harm=cut(END + 512),
        error=(END + 512, ENDS),
        bare_error=(END + 512, ENDS),
        bare_lost=[(WHOLE_SHARD, END)],
    ),
    "cut to nothing": Case(
        harm=cut(0),
        error=(0, ENDS),
        bare_error=(0, ENDS),
        lost=[(row, row * SPAN) for row in range(ROWS)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "a corrupt header": Case(
        harm=overwrite(SPAN + 5, b"?"),
        error=(SPAN, "corrupt header: its checksum does not match"),
        bare_error=(SPAN, "corrupt header: its checksum does not match"),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, SPAN)],
    ),
    "a zeroed header": Case(
        harm=overwrite(SPAN, bytes(512)),
        error=(SPAN, "wanted the header of a member, came a zeroed block"),
        bare_error=(SPAN, f"a zeroed header, .* data go on at byte {SPAN + 512}"),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, SPAN)],
    ),
    "a zeroed kilobyte across two samples": Case(
        harm=overwrite(2 * SPAN - 512, bytes(1024)),
        error=(SPAN, CRC),
        bare_error=(2 * SPAN, f"a zeroed header, .* data go on at byte {2 * SPAN + 512}"),
        lost=[(1, SPAN), (2, 2 * SPAN)],
        bare_lost=[(WHOLE_SHARD, 2 * SPAN)],
    ),
    "a flipped bit in a payload, still JSON": Case(
        harm=overwrite(SPAN + 1400, b"y"),
        error=(SPAN, CRC),
        bare_error=(0, SHA),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "a header that says 9 GiB": Case(
        harm=huge_header,
        error=(SPAN, f"its member of {9 << 30} bytes runs past the end: truncated"),
        bare_error=(SPAN, f"its member of {9 << 30} bytes runs past the end: truncated"),
        lost=[(1, SPAN)],
        bare_lost=[(WHOLE_SHARD, SPAN)],
    ),
    "a missing shard": Case(
        harm=Path.unlink,
        error=(0, MISSING),
        bare_error=(0, MISSING),
        lost=[(WHOLE_SHARD, 0)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's shard of the same size": Case(
        harm=swap(),
        error=(0, CRC),
        bare_error=(0, SHA),
        lost=[(row, row * SPAN) for row in range(ROWS)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's shard of another size": Case(
        harm=swap(grow=1000),
        error=(SIZE + ROWS * 1024, ENDS),
        bare_error=(SIZE + ROWS * 1024, ENDS),
        lost=[(row, row * SPAN) for row in range(ROWS)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
    "another dataset's shard of another size, with its sidecars": Case(
        harm=swap(grow=1000, sidecars=True),
        error=(SIZE + ROWS * 1024, ENDS),
        bare_error=(SIZE + ROWS * 1024, ENDS),
        lost=[(WHOLE_SHARD, 0)],
        bare_lost=[(WHOLE_SHARD, 0)],
    ),
}


def forget_sidecars(path: Path) -> None:
    for ending in SIDECARS:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def lines(quarantine: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.exists() else []


def sound_of(lost: Iterable[Found]) -> list[int]:
    """Return the ordinals that come out."""
    rows = [row for row, _ in lost]
    left = [] if WHOLE_SHARD in rows else [ROWS + row for row in range(ROWS) if row not in rows]
    return sorted([*SOUND, *left])


def assert_raises(place: Path, offset: int, message: str) -> None:
    """Read a fresh dataset, forward and by ordinal: both say the same."""
    for read in (list, lambda dataset: dataset.pairs(range(12))):
        with pytest.raises(ShardCorruptError, match=message) as caught:
            read(PairDataset(place))
        assert (caught.value.path, caught.value.offset) == (place / SHARD, offset)


def assert_skips(place: Path, lost: list[Found]) -> None:
    """Read a fresh dataset with a quarantine, forward and by ordinal, for two epochs."""
    wanted = sound_of(lost)
    for name in ("forward", "ordinal"):
        quarantine = Quarantine(place.parent / f"{name}.jsonl")
        dataset = PairDataset(place, quarantine=quarantine)
        for _ in range(2):
            if name == "forward":
                assert list(dataset) == [pair(number) for number in wanted]
                continue
            ordinals, pairs = dataset.sound_pairs(list(range(11, -1, -1)))
            assert ordinals.tolist() == wanted[::-1]
            assert pairs == [pair(number) for number in wanted[::-1]]
            assert dataset.sound(np.arange(12)).tolist() == wanted
        found = lines(quarantine.path)
        assert [line["shard"] for line in found] == [str(place / SHARD)] * len(lost)
        assert sorted((line["row"], line["offset"]) for line in found) == sorted(lost)
        assert quarantine.places == len(lost)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_nothing_is_lost_silently(place: Path, case: Case, bare: bool) -> None:
    if bare:
        forget_sidecars(place / SHARD)
    case.harm(place / SHARD)
    assert_raises(place, *(case.bare_error if bare else case.error))
    if bare:
        forget_sidecars(place / SHARD)
    assert_skips(place, case.bare_lost if bare else case.lost)


def test_the_sound_samples_of_a_damaged_shard_are_read_without_a_quarantine(place: Path) -> None:
    overwrite(SPAN + 1400, b"y")(place / SHARD)
    assert PairDataset(place).pairs([4, 6, 7, 0]) == [pair(number) for number in (4, 6, 7, 0)]


@pytest.mark.parametrize("samples", [3, 5])
@pytest.mark.parametrize("bare", [False, True], ids=["with sidecars", "without"])
def test_a_wrong_count_in_the_manifest_is_named(place: Path, samples: int, bare: bool) -> None:
    """Which of its ordinals are the shard's then nobody can say: with a quarantine it is left out as a whole."""
    manifest = Manifest.load(place)
    shards = [*manifest.shards]
    shards[1] = replace(shards[1], samples=samples)
    replace(manifest, shards=shards).save(place)
    if bare:
        forget_sidecars(place / SHARD)
    message = f"{SHARD} at byte {END}: {ROWS} samples, the manifest says {samples}$"
    for read in (list, lambda dataset: dataset.pairs([4])):
        with pytest.raises(ShardCorruptError, match=message):
            read(PairDataset(place))
    quarantine = Quarantine(place.parent / "q.jsonl")
    dataset = PairDataset(place, quarantine=quarantine)
    assert list(dataset) == dataset.pairs(range(len(dataset))) == [pair(number) for number in SOUND]
    assert [(line["row"], line["offset"]) for line in lines(quarantine.path)] == [(WHOLE_SHARD, END)]


# --- tars that were made so: manifest and sidecars agree with them ---------------------------------------------


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
    crcs = shard_reader.scan_crcs(path, borders.astype(np.uint64))
    sidecar_path(path, "crc").write_bytes(crcs.astype("<u4").tobytes())
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


# --- sidecars of a sound shard: mended, and nothing is lost ----------------------------------------------------


def foreign_sidecar(path: Path) -> None:
    """Put that of another dataset's shard in its place: as long, with other values."""
    folder = path.parent.parent / "other"
    if not folder.exists():
        with ShardWriter(folder, "pairs", samples_per_shard=ROWS) as writer:
            for number in range(12):
                writer.add(pair(number, "other" + "z" * 500 * (number % 2)))
    shutil.copy(folder / path.name, path)


SIDECAR_HARMS: dict[str, Harm] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b"") and None,
    "odd": lambda path: path.write_bytes(path.read_bytes() + b"?") and None,
    "short": lambda path: path.write_bytes(path.read_bytes()[:-8]) and None,
    "long": lambda path: path.write_bytes(path.read_bytes() + bytes(8)) and None,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 4]) + path.read_bytes()[1:]) and None,
    "another shard's": foreign_sidecar,
}


@pytest.mark.parametrize("harm", SIDECAR_HARMS.values(), ids=SIDECAR_HARMS)
@pytest.mark.parametrize("ending", SIDECARS)
@pytest.mark.parametrize("quarantined", [False, True], ids=["error", "quarantine"])
def test_a_wrong_sidecar_of_a_sound_shard_is_mended(place: Path, harm: Harm, ending: str, quarantined: bool) -> None:
    path = place / f"{SHARD}{ending}"
    right = path.read_bytes()
    positives = [pair(number).first_positive_hash for number in range(12)]
    for read in ("forward", "ordinal", "positives"):
        path.write_bytes(right)
        harm(path)
        quarantine = Quarantine(place.parent / "q.jsonl") if quarantined else None
        dataset = PairDataset(place, quarantine=quarantine)
        if read == "forward":
            assert list(dataset) == [pair(number) for number in range(12)]
        elif read == "ordinal":
            assert dataset.pairs([7, 5, 4, 6]) == [pair(number) for number in (7, 5, 4, 6)]
        else:
            assert dataset._shards.positive_hashes(np.arange(12)).tolist() == positives
        if (read == "positives") == (ending == ".pos"):
            assert path.read_bytes() == right
        assert quarantine is None or quarantine.places == 0


def test_offsets_that_leave_a_border_out_are_mended(place: Path) -> None:
    """A sidecar that ends where the shard does, and rises: only the count tells."""
    path = sidecar_path(place / SHARD)
    right = path.read_bytes()
    path.write_bytes(np.array([0, 3072, 4608, END], dtype="<u8").tobytes())
    assert PairDataset(place).pairs([5]) == [pair(5)]
    assert path.read_bytes() == right


def test_offsets_of_a_shard_with_as_many_samples_are_mended(place: Path) -> None:
    """A sidecar of which nothing shows that it is wrong, until a sample's checksum does not match."""
    path = sidecar_path(place / SHARD)
    right = path.read_bytes()
    path.write_bytes(np.array([0, 512, 3072, 4608, END], dtype="<u8").tobytes())
    assert PairDataset(place).pairs([7, 4]) == [pair(7), pair(4)]
    assert path.read_bytes() == right


def test_no_sidecar_vouches_for_damage(place: Path) -> None:
    """One made of a harmed shard would make its damage the rule."""
    forget_sidecars(place / SHARD)
    overwrite(SPAN + 1400, b"y")(place / SHARD)
    for _ in range(2):
        assert_raises(place, 0, SHA)
    assert not sidecar_path(place / SHARD, "crc").exists()
    dataset = PairDataset(place, quarantine=Quarantine(place.parent / "q.jsonl"))
    assert dataset._shards.positive_hashes(np.arange(4, 8)).tolist() == [0] * 4
    assert not sidecar_path(place / SHARD, "pos").exists()


def test_the_order_is_not_computed_from_a_damaged_shard(place: Path) -> None:
    """Another node, whose copy is sound, would compute another one."""
    (place / f"{SHARD}.pos").unlink()
    overwrite(SPAN + 1400, b"y")(place / SHARD)
    with pytest.raises(ShardCorruptError, match=CRC):
        PairDataset(place)._shards.positive_hashes(np.arange(12))
    dataset = PairDataset(place, quarantine=Quarantine(place.parent / "q.jsonl"))
    wanted = [0 if number == 5 else pair(number).first_positive_hash for number in range(12)]
    assert dataset._shards.positive_hashes(np.arange(12)).tolist() == wanted
    assert not (place / f"{SHARD}.pos").exists()


def test_the_table_s_manifest_is_a_real_one(place: Path) -> None:
    """`remake` with the pair that was there gives the dataset that was there."""
    before = asdict(Manifest.load(place))
    remake(place, "000000005.json", pair(5).to_json())
    assert asdict(Manifest.load(place)) == before
    assert before["fields"] == FIELDS["pairs"]
    assert list(PairDataset(place)) == [pair(number) for number in range(12)]
