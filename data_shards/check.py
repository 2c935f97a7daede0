"""Is a dataset whole? Every damage that is there, and a few samples to read."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import sha256_file
from data_shards.errors import ShardCorruptError, UserError
from data_shards.manifest import MANIFEST_NAME, Kind, Manifest, ShardEntry, dataset_id_of
from data_shards.reader import PairDataset, open_dataset
from data_shards.samples import Pair, Passage
from data_shards.shard_reader import MAX_SAMPLE_BYTES
from data_shards.sidecar import SEAL_BYTES, read_positives, read_sidecar, sidecar_bytes, sidecar_path
from data_shards.tar import plain_json, read_span, scan_crcs, scan_offsets

MOST_SAMPLES = 20
"""So many damaged samples of a shard are told one by one."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not as the manifest, the sidecars or the tar format promise."""

    shard: str
    """File name."""
    offset: int | None
    """Byte offset of the first damaged header or payload; None where it cannot be told."""
    what: str
    """What was wanted, and what came."""

    def __str__(self) -> str:
        """Return one line."""
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.shard}{place}: {self.what}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def damages_of(folder: Path, progress: Progress | None = None) -> list[Damage]:
    """Read every byte of a dataset and return all that is damaged, shard by shard.

    Raises:
        UserError: the folder is no dataset.
    """
    manifest = Manifest.load(folder)
    found: list[Damage] = []
    if dataset_id_of(manifest.kind, manifest.shards) != manifest.dataset_id:
        what = "it does not match its own dataset_id; it was edited: make the dataset anew"
        found.append(Damage(shard=MANIFEST_NAME, offset=None, what=what))
    done = 0
    for entry in manifest.shards:
        found += _damages_of_shard(folder / entry.path, entry, manifest.kind)
        done += entry.samples
        if progress is not None:
            progress(done, manifest.samples)
    known = {entry.path for entry in manifest.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known:
            what = "the manifest does not name it; a reader that takes every tar would mix it in: remove it"
            found.append(Damage(shard=path.name, offset=None, what=what))
    return found


def sample(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return some samples, drawn without repetition; the same seed draws the same.

    Raises:
        UserError: the folder is no dataset, or `count` is below 1.
    """
    dataset = open_dataset(folder)
    if count < 1:
        raise UserError(f"{count} samples were asked for; set --n to 1 or more")
    ordinals = random.Random(seed).sample(range(len(dataset)), min(count, len(dataset)))
    drawn = dataset.pairs(ordinals) if isinstance(dataset, PairDataset) else dataset.passages(ordinals)
    return [msgspec.to_builtins(item) for item in drawn]


def summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return what the manifest says, in a few values."""
    return {
        "dir": str(folder),
        "kind": manifest.kind,
        "dataset_id": manifest.dataset_id,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "report": manifest.report,
    }


def _damages_of_shard(path: Path, entry: ShardEntry, kind: Kind) -> list[Damage]:
    if not path.is_file():
        what = "the shard is missing, though the manifest names it; copy the dataset again or make it anew"
        return [Damage(shard=entry.path, offset=None, what=what)]
    found = []
    size = path.stat().st_size
    if size != entry.bytes:
        what = f"the file ends at byte {size}, the manifest says at {entry.bytes}"
        found.append(Damage(shard=entry.path, offset=min(size, entry.bytes), what=what))
    try:
        offsets = scan_offsets(path)
        crcs = scan_crcs(path, offsets)
    except ShardCorruptError as error:
        return [*found, Damage(shard=entry.path, offset=error.offset, what=error.what)]
    if len(offsets) - 1 != entry.samples:
        what = f"{len(offsets) - 1} samples, the manifest says {entry.samples}"
        found.append(Damage(shard=entry.path, offset=int(offsets[-1]), what=what))
    if sha256_file(path) != entry.sha256:
        found.append(_flipped(path, entry, offsets, crcs))
    else:
        found += _damaged_sidecars(path, entry, {"idx": offsets, "crc": crcs})
        positives = sidecar_path(path, "pos")
        if positives.is_file() and read_positives(positives, entry.samples, entry.sha256) is None:
            what = "it is damaged, or another shard's; delete it, it is made anew when needed"
            found.append(Damage(shard=positives.name, offset=None, what=what))
    return found + list(_no_samples(path, offsets, kind))


def _flipped(path: Path, entry: ShardEntry, offsets: NDArray[np.uint64], crcs: NDArray[np.uint32]) -> Damage:
    """Say where a shard differs from what was written: its checksums, sample by sample, know."""
    place = sidecar_path(path, "crc")
    stored = read_sidecar(place, "crc") if place.exists() else None
    differing = np.flatnonzero(stored != crcs).tolist() if stored is not None and len(stored) == len(crcs) else []
    # Where all differ the sidecar is another shard's, or the shard is.
    if not 0 < len(differing) < max(2, len(crcs)):
        what = f"its checksum is not the manifest's {entry.sha256[:12]}…, and which sample differs cannot be told"
        return Damage(shard=entry.path, offset=None, what=what)
    row = differing[0]
    more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
    what = f"sample {row} is not what was written (its CRC-32 differs){more}; fetch the shard again"
    return Damage(shard=entry.path, offset=int(offsets[row]), what=what)


def _damaged_sidecars(path: Path, entry: ShardEntry, wanted: dict[str, NDArray[Any]]) -> Iterator[Damage]:
    """Compare the sidecars of a sound tar with it, before a reader would mend them, or trust them."""
    for ending, values in wanted.items():
        place = sidecar_path(path, ending)
        if not place.exists():
            continue  # made when it is needed
        right, found = sidecar_bytes(ending, values, entry.sha256), place.read_bytes()
        is_old = ending == "crc" and found == right[:-SEAL_BYTES]  # without a seal: made anew when it is next read
        if found != right and not is_old:
            shared = min(len(right), len(found))
            pieces = (np.frombuffer(data[:shared], dtype=np.uint8) for data in (right, found))
            differing = np.flatnonzero(np.not_equal(*pieces))
            at = int(differing[0]) if len(differing) else shared
            what = f"it does not match {path.name}; delete it, it is made anew when needed"
            yield Damage(shard=place.name, offset=at, what=what)


def _no_samples(path: Path, offsets: NDArray[np.uint64], kind: Kind) -> Iterator[Damage]:
    """Yield the members that are no samples: checksums say what was written, not that it makes sense."""
    wanted = "training sample" if kind == "pairs" else "passage"
    read = Pair.from_json if kind == "pairs" else Passage.from_json
    count = 0
    for row, begin, span in _spans(path, offsets):
        try:
            if len(span) > MAX_SAMPLE_BYTES:
                raise ValueError(f"a sample of {len(span):,} bytes, more than {MAX_SAMPLE_BYTES:,}")
            read(plain_json(span) or read_span(span, path, begin)["json"])
        except ShardCorruptError as error:
            what, at = error.what, error.offset
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what, at = f"row {row} holds no {wanted} ({type(error).__name__}: {error})", begin
        else:
            continue
        count += 1
        if count <= MOST_SAMPLES:
            yield Damage(shard=path.name, offset=at, what=what)
    if count > MOST_SAMPLES:
        yield Damage(shard=path.name, offset=None, what=f"{count - MOST_SAMPLES} more rows like these")


def _spans(path: Path, offsets: NDArray[np.uint64]) -> Iterator[tuple[int, int, bytes]]:
    """Yield row, offset and bytes of each sample; of a huge one only so much as shows that it is."""
    with open(path, "rb", buffering=1 << 20) as file:
        for row, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            file.seek(begin, os.SEEK_SET)
            yield row, begin, file.read(min(end - begin, MAX_SAMPLE_BYTES + 1))
