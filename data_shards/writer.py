"""Writing a dataset: samples in, shards with sidecars and a manifest out."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_shards.atomic import atomic_dir, atomic_path
from data_shards.errors import UserError
from data_shards.manifest import FIELDS, MANIFEST_NAME, Kind, Manifest, ShardEntry, dataset_id_of
from data_shards.samples import Pair, Passage, sample_key
from data_shards.sidecar import save_sidecars
from data_shards.tar import TarWriter

SAMPLES_PER_SHARD = 65_536
"""About 100 MB of short texts."""
MAX_SHARD_BYTES = 256 << 20
"""Reached first by longer texts."""

_NAMES: dict[Kind, str] = {"pairs": "train", "corpus": "corpus"}


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes one dataset; its folder appears whole when the block ends well, or not at all.

    The same samples, settings and report give the same bytes. `report` and `made_by` may be filled until the block
    ends; `manifest` is there afterwards.
    """

    def __init__(
        self,
        out_dir: Path,
        kind: Kind,
        *,
        name: str | None = None,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        max_bytes: int = MAX_SHARD_BYTES,
        source: str = "",
        licence: str = "",
        weight: float = 1.0,
    ) -> None:
        """Say where the dataset goes and how it is cut.

        Args:
            out_dir: must be empty or not there.
            kind: what the samples are.
            name: shards are called `NAME-000000.tar`; by default `train` or `corpus`.
            samples_per_shard: a shard is closed at so many samples,
            max_bytes: or at so many bytes, whichever comes first.
            source: see `Manifest`.
            licence: see `Manifest`.
            weight: see `Manifest`.

        Raises:
            UserError: `out_dir` holds something, or a setting is out of range.
        """
        if samples_per_shard < 1 or max_bytes < 1:
            raise UserError(f"a shard of {samples_per_shard} samples and {max_bytes} bytes holds nothing; raise both")
        self.out_dir = out_dir
        self.kind: Kind = kind
        self.name = name or _NAMES[kind]
        self.samples_per_shard = samples_per_shard
        self.max_bytes = max_bytes
        self.report: dict[str, Any] = {}
        self.made_by: dict[str, Any] = {}
        self.manifest: Manifest | None = None
        self._source, self._licence, self._weight = source, licence, weight
        self._entries: list[ShardEntry] = []
        self._samples = self._with_teacher = 0
        self._positives: list[int] = []  # of the open shard; see `first_positive_hash`
        self._folder = ExitStack()
        self._shard = ExitStack()
        self._tar: TarWriter | None = None
        refuse_occupied(out_dir)

    def __enter__(self) -> ShardWriter:
        """Open a hidden folder beside the wanted one."""
        refuse_occupied(self.out_dir)
        if self.out_dir.exists():
            self.out_dir.rmdir()
        self._place = self._folder.enter_context(atomic_dir(self.out_dir))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last shard, write the manifest, rename the folder into place; after an error remove it."""
        # The folder goes last, also where closing the shard fails as writing it did: a full disk.
        self._folder.push(self._shard)
        if error is not None:
            self._folder.__exit__(kind, error, trace)
            return
        with self._folder:
            self._close_shard()
            self._save_manifest()

    def add(self, sample: Pair | Passage) -> None:
        """Append one sample.

        Raises:
            TypeError: a passage came for a dataset of pairs, or the other way round.
        """
        if isinstance(sample, Pair) != (self.kind == "pairs"):
            raise TypeError(f"a {type(sample).__name__} came for a dataset of kind {self.kind}")
        tar = self._tar or self._open_shard()
        tar.add(f"{sample_key(self._samples)}.json", sample.to_json())
        self._samples += 1
        if isinstance(sample, Pair):
            self._positives.append(sample.first_positive_hash)
            self._with_teacher += sample.has_teacher
        if tar.samples >= self.samples_per_shard or tar.position >= self.max_bytes:
            self._close_shard()

    def _open_shard(self) -> TarWriter:
        self._path = self._place / f"{self.name}-{len(self._entries):06d}.tar"
        temporary = self._shard.enter_context(atomic_path(self._path))
        file = self._shard.enter_context(open(temporary, "wb"))
        self._tar = TarWriter(file)
        return self._tar

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        samples, summary = self._tar.samples, self._tar.finish()
        self._shard.close()
        self._tar = None
        positives = np.array(self._positives, dtype=np.int64) if self.kind == "pairs" else None
        save_sidecars(self._path, summary, positives)
        self._positives.clear()
        entry = ShardEntry(path=self._path.name, samples=samples, bytes=summary.bytes, sha256=summary.sha256)
        self._entries.append(entry)

    def _save_manifest(self) -> None:
        if not self._entries:
            raise UserError(f"no sample came for {self.out_dir}; nothing was written")
        self.manifest = Manifest(
            kind=self.kind,
            dataset_id=dataset_id_of(self.kind, self._entries),
            shards=self._entries,
            fields=FIELDS[self.kind],
            report=self.report,
            made_by={"dipole": dipole_version(), **self.made_by},
            source=self._source,
            licence=self._licence,
            weight=self._weight,
            with_teacher=self._with_teacher if self.kind == "pairs" else None,
        )
        self.manifest.save(self._place)


def refuse_occupied(out_dir: Path) -> None:
    """Refuse an output folder that holds something already.

    Raises:
        UserError: it does; the message says what, and to choose another.
    """
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file, wanted a folder; choose another --out")
    if (out_dir / MANIFEST_NAME).exists():
        raise UserError(f"{out_dir} already holds a dataset; choose another --out or remove it")
    found = next(out_dir.iterdir(), None)
    if found is not None:
        raise UserError(f"{out_dir} is not empty (it holds {found.name}); choose another --out")


def dipole_version() -> str:
    """Return Dipole's version as installed, or `unknown` when run from a bare source tree."""
    try:
        return metadata.version("dipole")
    except metadata.PackageNotFoundError:
        return "unknown"
