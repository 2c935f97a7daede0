"""The sidecars of a shard: where its samples begin, what their bytes sum up to, and whose positives are the same.

    NAME.tar.idx   uint64: the offset of each sample, and the end of the last one: any sample is one `pread` away
    NAME.tar.crc   uint32: CRC-32 of each sample's bytes: a flipped bit is noticed where it lies
    NAME.tar.pos   int64: hash of each pair's first positive (see `text_hash`): the order keeps equal ones apart;
                   and one value more, which seals them to the tar: no other file would show that they are wrong

All are little-endian. A sidecar is only ever derived from its tar, so whatever is wrong with it is mended by reading
the tar once more: from a tar that is what the manifest says, else a sidecar would vouch for its damage.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_path
from data_shards.manifest import ShardEntry
from data_shards.tar import BLOCK_BYTES, END_BYTES, TarSummary, scan_crcs, scan_offsets

logger = logging.getLogger(__name__)

SIDECARS = {"idx": "<u8", "crc": "<u4", "pos": "<i8"}


def sidecar_path(tar_path: Path, ending: str = "idx") -> Path:
    """Return the place of a shard's sidecar."""
    return tar_path.with_name(f"{tar_path.name}.{ending}")


def save_sidecars(tar_path: Path, summary: TarSummary, positives: NDArray[np.int64] | None = None) -> None:
    """Write what is known of a shard that was just written."""
    save_sidecar(tar_path, "idx", summary.offsets)
    save_sidecar(tar_path, "crc", summary.crcs)
    if positives is not None:
        save_sidecar(tar_path, "pos", _sealed(positives, summary.sha256))


def save_sidecar(tar_path: Path, ending: str, values: NDArray[Any]) -> None:
    """Write one sidecar, atomically."""
    with atomic_path(sidecar_path(tar_path, ending)) as temporary:
        temporary.write_bytes(values.astype(SIDECARS[ending]).tobytes())


def save_if_possible(tar_path: Path, ending: str, values: NDArray[Any]) -> None:
    """Write one sidecar, for the next time, where the folder can be written."""
    try:
        save_sidecar(tar_path, ending, values)
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

    return _load(tar_path, "idx", fits, make)


def load_crcs(
    tar_path: Path, offsets: NDArray[np.uint64], verify: Callable[[], None] = lambda: None
) -> NDArray[np.uint32]:
    """Return the CRC-32 of each of a shard's samples; a missing sidecar is made as `load_offsets` says."""

    def make() -> NDArray[np.uint32]:
        verify()
        return scan_crcs(tar_path, offsets)

    return _load(tar_path, "crc", lambda crcs: len(crcs) == len(offsets) - 1, make)


def read_positives(path: Path, samples: int, tar_sha256: str) -> NDArray[np.int64] | None:
    """Return the hash of each pair's first positive; None where the sidecar at `path` is not of this tar."""
    if path.stat().st_size != 8 * (samples + 1):
        return None
    sealed = np.fromfile(path, dtype=SIDECARS["pos"]).astype(np.int64)
    return sealed[:-1] if np.array_equal(_sealed(sealed[:-1], tar_sha256), sealed) else None


def save_positives(tar_path: Path, hashes: NDArray[np.int64], tar_sha256: str) -> None:
    """Write them for the next time, where the folder can be written."""
    save_if_possible(tar_path, "pos", _sealed(hashes, tar_sha256))


def _sealed(hashes: NDArray[np.int64], tar_sha256: str) -> NDArray[np.int64]:
    digest = hashlib.sha256(hashes.astype(SIDECARS["pos"]).tobytes() + tar_sha256.encode()).digest()
    return np.append(hashes, np.frombuffer(digest[:8], dtype=SIDECARS["pos"]).astype(np.int64))


def _load(
    tar_path: Path,
    ending: str,
    fits: Callable[[NDArray[Any]], bool],
    make: Callable[[], NDArray[Any]],
) -> NDArray[Any]:
    path = sidecar_path(tar_path, ending)
    if path.exists():
        stored = np.dtype(SIDECARS[ending])
        if path.stat().st_size % stored.itemsize == 0:
            values = np.fromfile(path, dtype=stored).astype(stored.newbyteorder("="))
            if fits(values):
                return values
        logger.warning("%s does not fit its shard; reading the shard to mend it", path)
    values = make()
    save_if_possible(tar_path, ending, values)
    return values


def _fits(offsets: NDArray[np.uint64], tar_bytes: int) -> bool:
    return bool(
        len(offsets)
        and (offsets[1:] > offsets[:-1]).all()
        and not (offsets % BLOCK_BYTES).any()
        and int(offsets[-1]) + END_BYTES <= tar_bytes
    )
