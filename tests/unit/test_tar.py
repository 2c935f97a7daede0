"""The tar layer: exact bytes out; every kind of damage noticed, by shard and offset."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import ShardCorruptError
from data_shards.sidecar import load_crcs, load_offsets, save_sidecar, sidecar_path
from data_shards.tar import TarWriter, _header, plain_json, read_span, scan_offsets, span_key, split_name, write_tar

MEMBERS = [("a.json", b'{"n":1}'), ("b.json", b"x" * 512), ("c.json", b""), ("d.json", b"y" * 513)]
STARTS = [0, 1024, 2048, 2560]  # one header each, and 1, 1, 0 and 2 blocks of payload
END = 4096


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "s-000000.tar"
    write_tar(path, MEMBERS)
    return path


def damage(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def renamed(name: str, size: int = 0) -> bytes:
    """Return the header of a member, with a right checksum, under a name that a writer may refuse."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def member(name: str, payload: bytes) -> bytes:
    """Return one member, header and padding included."""
    return renamed(name, len(payload)) + payload + bytes(-len(payload) % 512)


def test_a_sample_costs_one_header(shard: Path) -> None:
    summary = write_tar(shard, MEMBERS)
    assert summary.offsets.tolist() == [*STARTS, END]
    assert summary.bytes == shard.stat().st_size == END + 1024
    header = shard.read_bytes()[:512]
    assert header[:7] == b"a.json\0"
    assert header[124:136] == b"00000000007\0"  # size
    assert header[136:148] == b"00000000000\0"  # mtime
    assert header[108:124] == b"0000000\0" * 2  # uid, gid
    assert header[257:265] == b"ustar\x0000"
    assert header[265:329] == bytes(64)  # no owner's name


@pytest.mark.parametrize("name", ["a.json", "ü/é.json", "x" * 95 + ".json", "p" * 90 + "/" + "q" * 90 + ".json"])
@pytest.mark.parametrize("size", [0, 1, 511, 8**6, 8**11 - 1])
def test_a_header_is_what_tarfile_writes(name: str, size: int) -> None:
    assert _header(name, size) == renamed(name, size)


def test_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / name, MEMBERS) for name in ("one.tar", "two.tar"))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert first.sha256 == second.sha256


def test_offsets_are_found_by_walking(shard: Path) -> None:
    assert scan_offsets(shard).tolist() == [*STARTS, END]


def test_members_of_one_key_are_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    members = [("x/1.json", b"{}"), ("x/1.seg.png", b"p"), ("y/1.json", b"[]")]
    assert write_tar(path, members).offsets.tolist() == scan_offsets(path).tolist() == [0, 2048, 3072]
    span = path.read_bytes()[:2048]
    assert read_span(span, path, 0) == {"json": b"{}", "seg.png": b"p"}
    assert span_key(span, path, 0) == "x/1"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a.json", ("a", "json")), ("d.1/b.tar.gz", ("d.1/b", "tar.gz")), ("./7.txt", ("./7", "txt"))],
)
def test_a_name_is_split_at_the_first_dot_of_its_last_part(name: str, wanted: tuple[str, str]) -> None:
    assert split_name(name) == wanted


def test_sizes_beyond_the_octal_field_are_read(tmp_path: Path) -> None:
    """As PAX writes them, in a record before the member, and as GNU does, in base 256."""
    record = tarfile.TarInfo("x")
    record.type, record.size = b"x", len(b"9 size=3\n")
    pax = record.tobuf(tarfile.USTAR_FORMAT) + b"9 size=3\n".ljust(512, b"\0") + renamed("a.json")
    gnu = bytearray(renamed("b.json"))
    gnu[124:136] = b"\x80" + (2).to_bytes(11, "big")
    gnu[148:156] = b"%06o\0 " % (sum(gnu) - sum(gnu[148:156]) + 8 * 32)
    path = tmp_path / "s.tar"
    path.write_bytes(pax + b"abc".ljust(512, b"\0") + gnu + b"de".ljust(512, b"\0") + bytes(1024))
    assert scan_offsets(path).tolist() == [0, 2048, 3072]
    assert read_span(path.read_bytes()[:2048], path, 0) == {"json": b"abc"}
    assert read_span(path.read_bytes()[2048:3072], path, 2048) == {"json": b"de"}


def test_an_empty_archive_has_no_sample(tmp_path: Path) -> None:
    assert write_tar(tmp_path / "s.tar", []).offsets.tolist() == [0]
    assert scan_offsets(tmp_path / "s.tar").tolist() == [0]


def test_folders_and_dates_of_other_writers_are_taken(tmp_path: Path) -> None:
    """`tar cf` puts folders in, and float dates bring a PAX header before each member."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for key in ("d/1", "d/2"):
            info = tarfile.TarInfo(f"{key}.json")
            info.size, info.mtime = 2, 0.5
            archive.addfile(info, io.BytesIO(b"{}"))
    assert scan_offsets(path).tolist() == [512, 512 + 2048, 512 + 4096]
    assert read_span(path.read_bytes()[512 : 512 + 2048], path, 512) == {"json": b"{}"}


DAMAGES = {
    "corrupt header": (1024 + 130, b"7", 1024, "corrupt header: its checksum does not match"),
    "name changed": (1024, b"z", 1024, "corrupt header: its checksum does not match"),
    "zeroed header": (1024, bytes(512), 1024, "a zeroed header, .* data go on at byte 1536"),
    "zeroed kilobyte": (1024, bytes(1024), 1024, "a zeroed header, .* data go on at byte 2048"),
    "no header at all": (1024, b"!" * 512, 1024, "corrupt header"),
    "garbage behind the end": (END + 700, b"!", END, "garbage behind the archive's end: data go on at byte 4796"),
    "a path upwards": (2048, renamed("../x.json"), 2048, r"member name '\.\./x\.json' points outside its archive"),
    "an upward path inside": (2048, renamed("a/../../x.json"), 2048, "points outside its archive"),
    "an absolute path": (2048, renamed("/etc/x.json"), 2048, "member name '/etc/x.json' points outside its archive"),
    "a name twice": (1024, renamed("a.json"), 1024, "a second member 'a.json' in one sample"),
    "no extension": (2048, renamed("README"), 2048, "member name 'README' is not KEY.EXTENSION"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(shard: Path, case: str) -> None:
    offset, data, named, message = DAMAGES[case]
    damage(shard, offset, data)
    with pytest.raises(ShardCorruptError, match=message) as caught:
        scan_offsets(shard)
    assert (caught.value.path, caught.value.offset) == (shard, named)


@pytest.mark.parametrize(
    ("size", "named", "message"),
    [
        (0, 0, "came an empty file"),
        (100, 0, "the file ends: truncated"),
        (1024, 1024, "wanted a header or the end-of-archive, the file ends: truncated"),
        (1500, 1024, "the file ends: truncated"),
        (1600, 1024, "its member of 512 bytes runs past the end: truncated"),
        (END, END, "wanted a header or the end-of-archive, the file ends: truncated"),
        (END + 512, END, "wanted two end-of-archive blocks"),
    ],
)
def test_truncation_is_named(shard: Path, size: int, named: int, message: str) -> None:
    with open(shard, "r+b") as file:
        file.truncate(size)
    with pytest.raises(ShardCorruptError, match=message) as caught:
        scan_offsets(shard)
    assert (caught.value.path, caught.value.offset) == (shard, named)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.json")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ShardCorruptError, match=r"at byte 0: member of type .* wanted plain files only"):
        scan_offsets(path)


@pytest.mark.parametrize("records", [b"nonsense", b"0 path=x\n", b"13 size=-51\n\n", b"99999 path=x"])
def test_a_corrupt_pax_header_is_named(tmp_path: Path, records: bytes) -> None:
    path = tmp_path / "s.tar"
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", len(records)
    block = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    path.write_bytes(block + renamed("a.json") + bytes(1024))
    with pytest.raises(ShardCorruptError, match="at byte 0: corrupt PAX header"):
        scan_offsets(path)


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/../x.json", "noextension", ".json", ""])
def test_unsafe_or_nameless_members_are_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="member name"):
        TarWriter(io.BytesIO()).add(name, b"")


def test_a_plain_sample_needs_no_parsing() -> None:
    assert plain_json(member("a.json", b"{}")) == b"{}"
    assert plain_json(member("a.json", bytes(512))) == bytes(512)
    assert plain_json(member("a.json", b"")) == b""


@pytest.mark.parametrize(
    "span",
    [
        pytest.param(lambda: member("a.txt", b"{}"), id="another extension"),
        pytest.param(lambda: renamed("b/../x.json", 2) + b"{}" + bytes(510), id="dots"),
        pytest.param(lambda: renamed("/x.json", 2) + b"{}" + bytes(510), id="absolute"),
        pytest.param(lambda: renamed("p" * 90 + "/" + "q" * 90 + ".json", 2) + b"{}" + bytes(510), id="prefix"),
        pytest.param(lambda: member("a.json", b"{}") + member("a.cls", b"1"), id="two members"),
        pytest.param(lambda: member("a.json", b"{}")[:512], id="cut"),
        pytest.param(
            lambda: member("a.json", b"{}")[:124] + b"xxxxxxxxxxx" + member("a.json", b"{}")[135:], id="size"
        ),
        pytest.param(lambda: bytes(1024), id="zeroed"),
        pytest.param(lambda: b"", id="nothing"),
        pytest.param(lambda: member("a.meta.json", b"{}"), id="longer extension"),
        pytest.param(lambda: member("x" * 95 + ".json", b"{}"), id="a name without an end"),
    ],
)
def test_what_is_not_plain_is_left_to_the_careful_reader(span: Callable[[], bytes]) -> None:
    assert plain_json(span()) is None


def test_each_sample_has_its_checksum(shard: Path, tmp_path: Path) -> None:
    archive, borders = shard.read_bytes(), [*STARTS, END]
    wanted = [zlib.crc32(archive[begin:end]) for begin, end in pairwise(borders)]
    offsets = np.array(borders, dtype=np.uint64)
    assert load_crcs(shard, offsets).tolist() == wanted
    assert write_tar(tmp_path / "again.tar", MEMBERS).crcs.tolist() == wanted
    content = np.array(wanted, dtype="<u4").tobytes()
    seal = hashlib.sha256(content + hashlib.sha256(archive).hexdigest().encode()).digest()[:8]
    assert sidecar_path(shard, "crc").read_bytes() == content + seal


def test_a_span_of_two_samples_tells_of_a_wrong_sidecar(shard: Path) -> None:
    with pytest.raises(
        ShardCorruptError, match="at byte 0: wanted one sample, its span holds 2: the sidecar is wrong"
    ):
        read_span(shard.read_bytes()[:2048], shard, 0)


def test_a_sidecar_is_written_on_first_use_and_read_afterwards(shard: Path) -> None:
    assert load_offsets(shard).tolist() == [*STARTS, END]
    assert np.fromfile(sidecar_path(shard), dtype="<u8").tolist() == [*STARTS, END]
    save_sidecar(shard, "idx", np.array([0, 2048, END], dtype=np.uint64))
    assert load_offsets(shard).tolist() == [0, 2048, END]


@pytest.mark.parametrize(
    "sidecar",
    [
        b"",
        b"odd",
        np.array([*STARTS, END + 512], dtype="<u8").tobytes(),
        np.array([0, 2048, 1024, END], dtype="<u8").tobytes(),
        np.array([0, 1000, END], dtype="<u8").tobytes(),
        np.array([*STARTS, END], dtype="<u8").tobytes() + b"?",
    ],
)
def test_a_sidecar_that_does_not_fit_is_mended(shard: Path, sidecar: bytes, caplog: pytest.LogCaptureFixture) -> None:
    sidecar_path(shard).write_bytes(sidecar)
    assert load_offsets(shard).tolist() == [*STARTS, END]
    assert np.fromfile(sidecar_path(shard), dtype="<u8").tolist() == [*STARTS, END]
    assert "does not fit its shard" in caplog.text


def test_where_a_sidecar_cannot_be_written_it_stays_in_memory(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("data_shards.sidecar.save_sidecar", refuse)
    assert load_offsets(shard).tolist() == [*STARTS, END]
    assert not sidecar_path(shard).exists()
