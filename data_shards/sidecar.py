"""The sidecar of a shard: where its samples begin, so that any of them is one `pread` away.

`NAME.tar.idx` holds little-endian uint64: the offset of each sample and the end of the last one. A sidecar is only
ever derived from its tar, so whatever is wrong with it is mended by walking the tar once more.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_path
from data_shards.tar import BLOCK_BYTES, END_BYTES, scan_offsets

logger = logging.getLogger(__name__)


def sidecar_path(tar_path: Path) -> Path:
    """Return the place of a shard's sidecar."""
    return tar_path.with_name(tar_path.name + ".idx")


def save_sidecar(tar_path: Path, offsets: NDArray[np.uint64]) -> None:
    """Write a shard's sidecar, atomically."""
    with atomic_path(sidecar_path(tar_path)) as temporary:
        temporary.write_bytes(offsets.astype("<u8").tobytes())


def load_sidecar(tar_path: Path) -> NDArray[np.uint64]:
    """Return a shard's sample offsets (see `scan_offsets`), from its sidecar where that fits the tar.

    A tar without a sidecar, or with one that does not fit, is walked, and the sidecar written for the next time;
    in a folder that cannot be written it is kept in memory alone.

    Raises:
        ShardCorruptError: the tar had to be walked and is damaged.
    """
    path = sidecar_path(tar_path)
    if path.exists():
        offsets = np.fromfile(path, dtype="<u8").astype(np.uint64)
        if path.stat().st_size == 8 * len(offsets) and _fits(offsets, tar_path.stat().st_size):
            return offsets
        logger.warning("%s does not fit its shard; walking the shard to mend it", path)
    offsets = scan_offsets(tar_path)
    try:
        save_sidecar(tar_path, offsets)
    except OSError as error:
        logger.info("the index of %s stays in memory: %s", tar_path, error)
    return offsets


def _fits(offsets: NDArray[np.uint64], tar_bytes: int) -> bool:
    return bool(
        len(offsets)
        and (offsets[1:] > offsets[:-1]).all()
        and not (offsets % BLOCK_BYTES).any()
        and int(offsets[-1]) + END_BYTES <= tar_bytes
    )
