"""What an index version says of itself, with a checksum over all of it: a manifest that was changed is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_shards.atomic import read_json, write_json
from data_shards.errors import UserError
from index_build.recall import Recall

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index version is, and how good."""

    version: int
    """Counted from 1."""
    factory: str
    """FAISS factory string."""
    metric: str
    """`inner_product`; of vectors of length 1 it is the cosine."""
    dim: int
    """Length of a vector."""
    ntotal: int
    """Passages that can be found."""
    search: dict[str, int]
    """Search parameters, `nprobe` where the index has lists; set when the index is opened."""
    recall: Recall
    """Measured against exact search; in the file under `recall@K`."""
    latency_ms: dict[str, float]
    """Of one query at a time: `median`, `p95`, and the `threads` that searched."""
    training: dict[str, int]
    """Sampled `rows` and the `seed` of the sample; empty for an index that is not trained."""
    embedding_set: dict[str, str]
    """`path` and `hash` of the vectors, and the form in which they are `kept`."""
    snapshot: dict[str, str]
    """`path` and `hash` of the encoder that made them."""
    corpus: dict[str, Any]
    """`path` and `dataset_id` of the passages; `left_out`, the ordinals without a row, where there are some."""
    versions: dict[str, str]
    """Of the libraries."""
    files: dict[str, str]
    """Hex SHA-256 by file name."""
    choice: str = ""
    """Why the vectors are kept as they are, in words."""
    on_disk: bool = False
    """Whether the inverted lists stay on disk."""
    wanted_recall: float = 0.0
    """What was asked for."""
    queries_per_s: float = 0.0
    """Of many queries at a time, with all threads."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """What other search parameters give: rows of `search`, `recall`, `low`, `high`, `latency_ms`, `queries_per_s`."""
    base_version: int = 0
    """The version that this one was changed from; 0 for one that was built."""
    changes: dict[str, int] = field(default_factory=dict)
    """Passages `added`, `replaced`, `removed` and `kept` since the base version; empty for one that was built."""
    wear: dict[str, float] = field(default_factory=dict)
    """How far the index is from a fresh one; see `index_wear`."""
    rebuild_due: str = ""
    """Why it should be built anew; empty where it need not."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What making it took, by step."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without its checksum."""
        row = asdict(self)
        recall = row.pop("recall")
        return {"schema_version": SCHEMA_VERSION, **row, f"recall@{recall.pop('k')}": recall}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> IndexManifest:
        """Read the JSON form.

        Raises:
            TypeError, KeyError, ValueError: it is none, or carries no measured recall.
        """
        fields = dict(row)
        if fields.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {row['schema_version']}, this dipole reads {SCHEMA_VERSION}")
        measured = [name for name in fields if name.startswith("recall@")]
        if len(measured) != 1:
            raise ValueError("it carries no measured recall")
        recall = Recall(k=int(measured[0].removeprefix("recall@")), **fields.pop(measured[0]))
        return cls(recall=recall, **fields)


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Write a version's manifest with its checksum."""
    row = manifest.to_dict()
    write_json(folder / MANIFEST_NAME, {**row, "checksum": checksum_of(row)})


def read_manifest(folder: Path) -> IndexManifest:
    """Read a version's manifest.

    Raises:
        UserError: it is missing, damaged or none.
    """
    path = folder / MANIFEST_NAME
    try:
        row = dict(read_json(path))
        found = row.pop("checksum", None)
        manifest = IndexManifest.from_dict(row)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no index manifest ({error}); build the index again") from None
    if found != checksum_of(row):
        raise UserError(
            f"{path} is damaged: its content has checksum {checksum_of(row)}, and it says {found}; roll back to "
            "another version or build the index again"
        )
    return manifest


def checksum_of(row: dict[str, Any]) -> str:
    """Return the checksum of a manifest's content, whatever the order of its keys."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
