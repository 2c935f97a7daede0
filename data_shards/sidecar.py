"""The sidecars of a shard: where its samples begin, what their bytes sum up to, and whose positives are the same.

    NAME.tar.idx   uint64: the offset of each sample, and the end of the last one: any sample is one `pread` away
    NAME.tar.crc   uint32: CRC-32 of each sample's bytes: a flipped bit is noticed where it lies
    NAME.tar.pos   int64: hash of each pair's first positive (see `text_hash`): the order keeps equal ones apart

All are little-endian. The last two end with a seal: eight bytes of a hash over their values and the tar's SHA-256. It
tells the sidecars of a foreign shard when they are opened: its checksums would call all of its samples sound, and its
positives no other file would show to be wrong.

A sidecar is only ever derived from its tar, so whatever is wrong with it is mended by reading the tar once more: from
a tar that is what the manifest says, else a sidecar would vouch for its damage.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_path, sha256_file
from data_shards.manifest import ShardEntry
from data_shards.tar import BLOCK_BYTES, END_BYTES, TarSummary, scan_crcs, scan_offsets

logger = logging.getLogger(__name__)

SEAL_BYTES = 8
_TYPES = {"idx": "<u8", "crc": "<u4", "pos": "<i8"}
_SEALED = ("crc", "pos")


def sidecar_path(tar_path: Path, ending: str = "idx") -> Path:
    """Return the place of a shard's sidecar."""
    return tar_path.with_name(f"{tar_path.name}.{ending}")


def sidecar_bytes(ending: str, values: NDArray[Any], tar_sha256: str) -> bytes:
    """Return what a sidecar file holds."""
    content = values.astype(_TYPES[ending]).tobytes()
    return content + _seal(content, tar_sha256) if ending in _SEALED else content


def read_sidecar(path: Path, ending: str, tar_sha256: str | None = None) -> NDArray[Any] | None:
    """Return the values of a sidecar file; None where it is cut, or sealed to another tar.

    Args:
        path: the file.
        ending: which of the sidecars it is.
        tar_sha256: of its tar; None where that is not known: the seal is then passed over.
    """
    content = path.read_bytes()
    if ending in _SEALED:
        content, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
        if tar_sha256 is not None and seal != _seal(content, tar_sha256):
            return None
    stored = np.dtype(_TYPES[ending])
    if len(content) % stored.itemsize:
        return None
    return np.frombuffer(content, dtype=stored).astype(stored.newbyteorder("="))


def save_sidecars(tar_path: Path, summary: TarSummary, positives: NDArray[np.int64] | None = None) -> None:
    """Write what is known of a shard that was just written."""
    save_sidecar(tar_path, "idx", summary.offsets, summary.sha256)
    save_sidecar(tar_path, "crc", summary.crcs, summary.sha256)
    if positives is not None:
        save_sidecar(tar_path, "pos", positives, summary.sha256)


def save_sidecar(tar_path: Path, ending: str, values: NDArray[Any], tar_sha256: str | None = None) -> None:
    """Write one sidecar, atomically; where the tar's checksum is not known and a seal needs it, the tar is read."""
    if tar_sha256 is None:
        tar_sha256 = sha256_file(tar_path) if ending in _SEALED else ""
    with atomic_path(sidecar_path(tar_path, ending)) as temporary:
        temporary.write_bytes(sidecar_bytes(ending, values, tar_sha256))


def save_if_possible(tar_path: Path, ending: str, values: NDArray[Any], tar_sha256: str | None = None) -> None:
    """Write one sidecar, for the next time, where the folder can be written."""
    try:
        save_sidecar(tar_path, ending, values, tar_sha256)
    except OSError as error:
        logger.info("the index of %s stays in memory: %s", tar_path, error)


def load_offsets(
    tar_path: Path, entry: ShardEntry | None = None, verify: Callable[[], None] = lambda: None
) -> NDArray[np.uint64]:
    """Return a shard's sample offsets (see `scan_offsets`), from its sidecar where that fits the tar.

    A sidecar that is missing or does not fit is made anew, and written for the next time; in a folder that cannot be
    written it is kept in memory alone.

    Args:
        tar_path: the shard.
        entry: what the manifest says of it: the sidecar has to fit that. It then tells of a tar that was truncated
            where all samples were.
        verify: called before a sidecar made anew is trusted; raises where the tar is not what it should be.

    Raises:
        ShardCorruptError: the tar had to be walked and is damaged.
    """
    tar_bytes = tar_path.stat().st_size

    def fits(offsets: NDArray[np.uint64]) -> bool:
        if entry is None:
            return _fits(offsets, tar_bytes)
        exact = len(offsets) == entry.samples + 1 and int(offsets[-1]) + END_BYTES == entry.bytes
        return exact and _fits(offsets, entry.bytes)

    def make() -> NDArray[np.uint64]:
        offsets = scan_offsets(tar_path)
        verify()
        return offsets

    return _load(tar_path, "idx", fits, make, None)


def load_crcs(
    tar_path: Path,
    offsets: NDArray[np.uint64],
    entry: ShardEntry | None = None,
    verify: Callable[[], None] = lambda: None,
) -> NDArray[np.uint32]:
    """Return the CRC-32 of each of a shard's samples; what is missing or does not fit is made as `load_offsets` says.

    With an `entry` a sidecar has to be sealed to the tar that the manifest means: one that came along with a foreign
    tar of the same size is made anew, and `verify` then finds the tar out.
    """

    def make() -> NDArray[np.uint32]:
        verify()
        return scan_crcs(tar_path, offsets)

    sha256 = entry.sha256 if entry is not None else None
    return _load(tar_path, "crc", lambda crcs: len(crcs) == len(offsets) - 1, make, sha256)


def read_positives(path: Path, samples: int, tar_sha256: str | None) -> NDArray[np.int64] | None:
    """Return the hash of each pair's first positive; None where the sidecar at `path` is not of this tar."""
    hashes = read_sidecar(path, "pos", tar_sha256)
    return hashes if hashes is not None and len(hashes) == samples else None


def _seal(content: bytes, tar_sha256: str) -> bytes:
    return hashlib.sha256(content + tar_sha256.encode()).digest()[:SEAL_BYTES]


def _load(
    tar_path: Path,
    ending: str,
    fits: Callable[[NDArray[Any]], bool],
    make: Callable[[], NDArray[Any]],
    tar_sha256: str | None,
) -> NDArray[Any]:
    path = sidecar_path(tar_path, ending)
    if path.exists():
        values = read_sidecar(path, ending, tar_sha256)
        if values is not None and fits(values):
            return values
        logger.warning("%s does not fit its shard; reading the shard to mend it", path)
    values = make()
    save_if_possible(tar_path, ending, values, tar_sha256)
    return values


def _fits(offsets: NDArray[np.uint64], tar_bytes: int) -> bool:
    return bool(
        len(offsets)
        and (offsets[1:] > offsets[:-1]).all()
        and not (offsets % BLOCK_BYTES).any()
        and int(offsets[-1]) + END_BYTES <= tar_bytes
    )
