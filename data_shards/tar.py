"""Tar files of samples, written and read without the standard library's slow per-member path.

Written: USTAR, one owner, no dates, so that the same samples give the same bytes, and 512 bytes of header per
member (a float mtime would force a PAX header: two more blocks each). Read: whatever a WebDataset may be made of
(USTAR, GNU long names, PAX), every header's checksum verified. Members are only ever read into memory; a name
that points outside its archive is refused all the same.

A sample is a run of members whose names agree up to the first dot of the last path component.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_path
from data_shards.errors import ShardCorruptError

BLOCK_BYTES = 512
END_BYTES = 2 * BLOCK_BYTES  # two zero blocks end an archive

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_FILE_TYPES = (b"0", b"\0", b"7")
_SCAN_BYTES = 1 << 20

# The header's fields, as slices (POSIX ustar).
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _MAGIC, _PREFIX = slice(156, 157), slice(257, 263), slice(345, 500)
_PLAIN_NAME = re.compile(rb"[^/.\0]+\.json\0").match


@dataclass(frozen=True, kw_only=True)
class TarSummary:
    """What was written."""

    offsets: NDArray[np.uint64]
    """Where each sample begins, and where the last one ends: one value more than samples."""
    crcs: NDArray[np.uint32]
    """CRC-32 of each sample's span, headers and padding included."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hex checksum of the file."""


class Member(NamedTuple):
    """One file or folder of an archive; positions are relative to the buffer it was read from."""

    name: str
    is_file: bool
    data: int
    size: int
    end: int


class TarWriter:
    """Writes members to an open file and keeps the samples' offsets and the checksums on the way."""

    def __init__(self, file: BinaryIO) -> None:
        """Start an archive at the file's present, empty state."""
        self._file = file
        self._digest = hashlib.sha256()
        self._offsets: list[int] = []
        self._crcs: list[int] = []
        self._key = ""
        self.position = 0
        """Bytes written so far."""

    @property
    def samples(self) -> int:
        """Samples begun so far."""
        return len(self._offsets)

    def add(self, name: str, payload: bytes) -> None:
        """Append one member; a name whose key differs from the last one's begins a new sample.

        Raises:
            ValueError: the name is unsafe, has no extension or is too long for USTAR.
        """
        if not _is_safe(name):
            raise ValueError(f"member name {name!r} points outside its archive")
        key, _ = split_name(name)
        if key != self._key:
            self._offsets.append(self.position)
            self._crcs.append(0)
            self._key = key
        record = b"".join((_header(name, len(payload)), payload, bytes(-len(payload) % BLOCK_BYTES)))
        self._crcs[-1] = zlib.crc32(record, self._crcs[-1])
        self._write(record)

    def finish(self) -> TarSummary:
        """Write the end of the archive and return what it holds."""
        offsets = np.array([*self._offsets, self.position], dtype=np.uint64)
        self._write(bytes(END_BYTES))
        crcs = np.array(self._crcs, dtype=np.uint32)
        return TarSummary(offsets=offsets, crcs=crcs, bytes=self.position, sha256=self._digest.hexdigest())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.position += len(data)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> TarSummary:
    """Write an archive of (name, payload), atomically; equal members give equal bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        writer = TarWriter(file)
        for name, payload in members:
            writer.add(name, payload)
        return writer.finish()


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into its sample's key and its extension, as WebDataset does.

    Raises:
        ValueError: the name has no extension, so it belongs to no sample.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot:
        raise ValueError(f"member name {name!r} is not KEY.EXTENSION")
    return folder + slash + stem, extension


def member_at(view: memoryview, position: int, path: Path, base: int = 0) -> Member | None:
    """Read the member that begins at a position, with any PAX or GNU headers before it.

    Args:
        view: the archive, or a piece of it that ends where a member ends.
        position: where the member's first header begins in the view.
        path: the archive's name, for errors.
        base: the view's own offset in the archive, for errors.

    Returns:
        The member, or None where a zero block stands in place of a header.

    Raises:
        ShardCorruptError: no sound header is there, or the member runs past the view.
    """
    long_name: str | None = None
    long_size: int | None = None
    while True:
        at = base + position
        header = bytes(view[position : position + BLOCK_BYTES])
        if len(header) < BLOCK_BYTES:
            raise ShardCorruptError(path, at, "wanted a header or the end-of-archive, the file ends: truncated")
        if header == _ZERO_BLOCK:
            if long_name is not None or long_size is not None:
                raise ShardCorruptError(path, at, "wanted the header of a member, came a zeroed block")
            return None
        size = _verified_size(header, path, at)
        kind, data = header[_TYPE], position + BLOCK_BYTES
        if kind in _FILE_TYPES and long_size is not None:
            size = long_size
        end = data + size + -size % BLOCK_BYTES
        if end > len(view):
            raise ShardCorruptError(path, at, f"its member of {size} bytes runs past the end: truncated")
        if kind == b"x":
            records = _pax_records(bytes(view[data : data + size]), path, at)
            long_name = records.get("path", long_name)
            long_size = int(records["size"]) if "size" in records else long_size
        elif kind == b"L":
            long_name = _text(bytes(view[data : data + size]))
        elif kind in _FILE_TYPES or kind == b"5":
            name = long_name if long_name is not None else _name(header)
            if not _is_safe(name):
                raise ShardCorruptError(path, at, f"member name {name!r} points outside its archive; refused")
            return Member(name, kind != b"5", data, size, end)
        elif kind != b"g":
            raise ShardCorruptError(path, at, f"member of type {kind!r} (link or device), wanted plain files only")
        position = end


def scan_offsets(path: Path) -> NDArray[np.uint64]:
    """Walk a whole archive and return where its samples begin, and where the last one ends.

    Raises:
        ShardCorruptError: a header is corrupt, zeroed or missing, the archive is truncated, has anything but zeros
            behind its end, names a path outside itself, or holds two members of one name in a sample.
    """
    if path.stat().st_size == 0:
        raise ShardCorruptError(path, 0, "wanted a tar archive, came an empty file")
    archive: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    view = archive.data
    offsets: list[int] = []
    position, current, extensions = 0, "", set[str]()
    while (member := member_at(view, position, path)) is not None:
        if member.is_file:
            key, extension = _split_or_corrupt(member.name, path, position)
            if key != current:
                offsets.append(position)
                current, extensions = key, set()
            if extension in extensions:
                raise ShardCorruptError(path, position, f"a second member {member.name!r} in one sample")
            extensions.add(extension)
        position = member.end
    _check_end(archive, position, path)
    return np.array([*offsets, position], dtype=np.uint64)


def scan_crcs(path: Path, offsets: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return the CRC-32 of each sample's span, reading the whole archive once."""
    if len(offsets) < 2:
        return np.empty(0, dtype=np.uint32)
    archive: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    view, borders = archive.data, offsets.tolist()
    crcs = [zlib.crc32(view[begin:end]) for begin, end in pairwise(borders)]
    return np.array(crcs, dtype=np.uint32)


def read_span(buffer: bytes | memoryview, path: Path, offset: int) -> dict[str, bytes]:
    """Read one sample, every header verified.

    Args:
        buffer: the bytes from the sample's offset to the next one's.
        path: the archive's name, for errors.
        offset: the sample's offset, for errors.

    Returns:
        Payload by extension.

    Raises:
        ShardCorruptError: a header is damaged, or the span holds members of more than one sample.
    """
    return {split_name(name)[1]: payload for name, payload in _span_members(buffer, path, offset)}


def span_key(buffer: bytes | memoryview, path: Path, offset: int) -> str:
    """Return the key of the sample in a span (see `read_span`)."""
    return split_name(_span_members(buffer, path, offset)[0][0])[0]


def plain_json(span: bytes) -> bytes | None:
    """Return the payload of a span that is one ordinary `.json` file, without parsing its header.

    Args:
        span: one sample whose bytes are known to be what was written: their checksum matched.

    Returns:
        The payload, or None where the span is anything else: `read_span` says what.
    """
    try:
        if span[156] != 48 or span[345] or not _PLAIN_NAME(span):  # a file, by its type; no prefix before its name
            return None
        end = BLOCK_BYTES + int(span[124:135], 8)
    except (ValueError, IndexError):
        return None
    return span[BLOCK_BYTES:end] if end + -end % BLOCK_BYTES == len(span) else None


def _span_members(buffer: bytes | memoryview, path: Path, offset: int) -> list[tuple[str, bytes]]:
    view = memoryview(buffer)
    position, members, keys = 0, [], set()
    while position < len(view):
        member = member_at(view, position, path, offset)
        if member is None:
            raise ShardCorruptError(path, offset + position, "wanted the header of a member, came a zeroed block")
        if member.is_file:
            members.append((member.name, bytes(view[member.data : member.data + member.size])))
            keys.add(_split_or_corrupt(member.name, path, offset + position)[0])
        position = member.end
    if len(keys) != 1:
        raise ShardCorruptError(path, offset, f"wanted one sample, its span holds {len(keys)}: the sidecar is wrong")
    return members


def _header(name: str, size: int) -> bytes:
    """Return a file's header: owner 0, no date, mode 0644. `tarfile` would take longer than all the rest."""
    encoded = name.encode()
    if len(encoded) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8")
    digits = b"%011o" % size
    checksum = b"%06o" % (_FIXED_SUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))


# The fields of a header that never change: mode, owner, group; date; the checksum's end, type, magic, padding.
_BEFORE_SIZE, _AFTER_SIZE = b"0000644\0" + 2 * b"0000000\0", b"\0" + 11 * b"0" + b"\0"
_AFTER_CHECKSUM = b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK_BYTES - 265)
# The checksum is taken with its own eight bytes read as blanks.
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + 7 * ord(" ")


def _verified_size(header: bytes, path: Path, at: int) -> int:
    try:
        wanted = int(header[_CHECKSUM].strip(b" \0"), 8)
        # The checksum is taken with its own eight bytes read as blanks.
        if sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != wanted:
            raise ValueError
    except ValueError:
        raise ShardCorruptError(path, at, "corrupt header: its checksum does not match") from None
    field = header[_SIZE]
    if field[0] == 0x80:  # GNU's base 256, for 8 GiB and more
        return int.from_bytes(field[1:], "big")
    try:
        size = int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        raise ShardCorruptError(path, at, f"corrupt header: {field!r} is no size")
    return size


def _name(header: bytes) -> str:
    name = _text(header[_NAME])
    prefix = _text(header[_PREFIX]) if header[_MAGIC] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _is_safe(name: str) -> bool:
    return bool(name) and name[0] != "/" and not (".." in name and ".." in name.split("/"))


def _split_or_corrupt(name: str, path: Path, at: int) -> tuple[str, str]:
    try:
        return split_name(name)
    except ValueError as error:
        raise ShardCorruptError(path, at, str(error)) from None


def _pax_records(data: bytes, path: Path, at: int) -> dict[str, str]:
    records: dict[str, str] = {}
    try:
        while data:
            length = int(data[: data.index(b" ")])
            record, data = data[:length], data[length:]
            if length <= 0 or not record.endswith(b"\n"):
                raise ValueError
            key, _, value = record.partition(b" ")[2][:-1].partition(b"=")
            records[key.decode()] = value.decode()
        if int(records.get("size", "0")) < 0:
            raise ValueError
    except ValueError:
        raise ShardCorruptError(path, at, "corrupt PAX header") from None
    return records


def _check_end(archive: NDArray[np.uint8], position: int, path: Path) -> None:
    """Refuse anything but zeros from the first zero block on: there a zeroed header shows."""
    if len(archive) - position < END_BYTES:
        raise ShardCorruptError(path, position, "wanted two end-of-archive blocks, the file ends: truncated")
    for begin in range(position, len(archive), _SCAN_BYTES):
        found = np.flatnonzero(archive[begin : begin + _SCAN_BYTES])
        if len(found):
            what = f"a zeroed header, or garbage behind the archive's end: data go on at byte {begin + int(found[0])}"
            raise ShardCorruptError(path, position, what)
