"""The manifest of a dataset: which shards it has, what they hold, where they came from.

It is written last and carries no date, so that the same input gives the same bytes, and a folder without one is
no dataset.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

_SHA256 = re.compile("[0-9a-f]{64}")

Kind = Literal["pairs", "corpus"]
FIELDS: dict[Kind, list[str]] = {
    "pairs": ["query_id", "query", "positives", "negatives", "source"],
    "corpus": ["id", "title", "text"],
}


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard, as the manifest knows it."""

    path: str
    """File name within the dataset's folder."""
    samples: int
    """How many it holds."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Hex checksum of the tar."""

    def __post_init__(self) -> None:
        """Refuse a path that leaves the folder, and values of a wrong type: manifests come from outside."""
        if not isinstance(self.path, str) or self.path != Path(self.path).name or not self.path.endswith(".tar"):
            raise ValueError(f"shard path {self.path!r} is not the plain name of a .tar file")
        if not isinstance(self.samples, int) or not isinstance(self.bytes, int) or not isinstance(self.sha256, str):
            raise ValueError(f"the entry of shard {self.path} has values of a wrong type")
        if self.samples < 0 or self.bytes < 0:
            raise ValueError(f"the entry of shard {self.path} counts {self.samples} samples, {self.bytes} bytes")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 {self.sha256!r} of shard {self.path} is no checksum")

    @property
    def stem(self) -> str:
        """The name without `.tar`: what negatives versions are keyed by."""
        return self.path.removesuffix(".tar")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset is."""

    kind: Kind
    """`pairs` to train on, or a `corpus` to embed."""
    dataset_id: str
    """Hash of the kind and of the shards' contents, not of names or places; see `dataset_id_of`."""
    shards: list[ShardEntry]
    """In the order in which ordinals count through them."""
    fields: list[str]
    """Keys of a sample."""
    source: str = ""
    """Name of what it was made from."""
    licence: str = ""
    """As the source states it."""
    weight: float = 1.0
    """The dataset's share where several are mixed."""
    with_teacher: int | None = None
    """Pairs of which a teacher scored all passages, so that one can distil from it; None where nobody counted."""
    report: dict[str, Any] = field(default_factory=dict)
    """What cleaning read, kept and dropped."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """Dipole's version, the inputs with their checksums, the settings."""
    schema_version: int = SCHEMA_VERSION
    """Of this file."""

    def __post_init__(self) -> None:
        """Refuse a manifest from a newer Dipole, or of no known kind."""
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {self.schema_version}, this dipole reads {SCHEMA_VERSION}; update dipole"
            )
        if self.kind not in FIELDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(FIELDS)}")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise ValueError(f"weight {self.weight!r} is no number above 0")
        if not (self.with_teacher is None or isinstance(self.with_teacher, int)):
            raise ValueError(f"with_teacher {self.with_teacher!r} is no whole number")

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes in all shards."""
        return sum(shard.bytes for shard in self.shards)

    @classmethod
    def load(cls, folder: Path, kind: Kind | None = None) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            UserError: there is none, it is damaged, or the dataset is of another kind than wanted.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise UserError(no_dataset(folder))
        return cls.parse(read_json(path), path, kind)

    @classmethod
    def parse(cls, row: Any, place: Path | str, kind: Kind | None = None) -> Manifest:
        """Check what a manifest file holds; `place` is its name, for errors.

        Raises:
            UserError: it is no manifest, or of a dataset of another kind than wanted.
        """
        try:
            manifest = cls(**{**row, "shards": [ShardEntry(**entry) for entry in row["shards"]]})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{place} is no dataset manifest: {error}") from None
        if kind is not None and manifest.kind != kind:
            folder = str(place).removesuffix(f"/{MANIFEST_NAME}")
            raise UserError(f"{folder} holds a dataset of kind {manifest.kind}, wanted {kind}; choose another folder")
        return manifest

    def save(self, folder: Path) -> None:
        """Write the manifest, atomically: from then on the folder is a dataset."""
        write_json(folder / MANIFEST_NAME, asdict(self))


def no_dataset(place: Path | str) -> str:
    """Return the message for a place that has no manifest."""
    advice = "make one with `dipole shards pairs` or `dipole shards corpus`"
    return f"{place} is no dataset: it has no {MANIFEST_NAME}; {advice}"


def dataset_id_of(kind: Kind, shards: Sequence[ShardEntry]) -> str:
    """Return the hash of a dataset's content: its kind and its shards' checksums, in order."""
    digest = hashlib.sha256(kind.encode())
    for shard in shards:
        digest.update(bytes.fromhex(shard.sha256))
    return f"sha256:{digest.hexdigest()}"
