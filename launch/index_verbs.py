"""`dipole index …`: build an index over an embedding set, and look after its versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from launch.progress import progress_bar

if TYPE_CHECKING:
    from index_build.index_version import IndexManifest


@dataclass(frozen=True, kw_only=True)
class IndexBuild:
    """Build the next version of an index over an embedding set, and measure its recall."""

    embeddings: Path
    """Folder made by `dipole embed`."""
    out: Path
    """Folder of the index's versions, new or not."""
    factory: str = "auto"
    """FAISS factory string; `auto` searches exactly up to 5,000 passages and probes IVF lists above."""
    wanted_recall: float = 0.95
    """The cheapest search that reaches this recall@10 is chosen."""
    seed: int = 0
    """Of the sampled vectors."""

    def run(self) -> dict[str, Any]:
        """Build, and return what was measured."""
        from index_build.embedding_set import EmbeddingSet
        from index_build.index import IndexConfig, build_index

        config = IndexConfig(factory=self.factory, wanted_recall=self.wanted_recall, seed=self.seed)
        with progress_bar("indexing") as progress:
            manifest = build_index(EmbeddingSet.open(self.embeddings), self.out, config, progress=progress)
        return {"index": str(self.out), **_facts(manifest)}


@dataclass(frozen=True, kw_only=True)
class IndexList:
    """List the versions of an index."""

    index: tyro.conf.Positional[Path]
    """Folder of its versions."""

    def run(self) -> dict[str, Any]:
        """Return every version and which one is current."""
        from index_build.index_version import current_version, list_versions, load_manifest

        current = current_version(self.index)
        versions = [_facts(load_manifest(self.index, number)) for number in list_versions(self.index)]
        return {"index": str(self.index), "current": current, "versions": versions}


@dataclass(frozen=True, kw_only=True)
class IndexRollback:
    """Search another version of an index from now on; its checksums are verified first."""

    index: tyro.conf.Positional[Path]
    """Folder of its versions."""
    version: int
    """Number of the version."""

    def run(self) -> dict[str, Any]:
        """Swap, and return what is current now."""
        from index_build.index_version import rollback

        return {"index": str(self.index), **_facts(rollback(self.index, self.version))}


@dataclass(frozen=True, kw_only=True)
class IndexCheck:
    """Verify every version of an index: checksums, number of passages, measured recall."""

    index: tyro.conf.Positional[Path]
    """Folder of its versions."""

    def run(self) -> dict[str, Any]:
        """Verify, and return the versions."""
        from index_build.index_version import check_index

        report = check_index(self.index)
        return {"index": str(self.index), "ok": True, **report}


def _facts(manifest: IndexManifest) -> dict[str, Any]:
    recall = manifest.recall
    return {
        "version": manifest.version,
        "factory": manifest.factory,
        "ntotal": manifest.ntotal,
        "search": manifest.search,
        f"recall@{recall.k}": recall.value,
        f"recall@{recall.k}_interval": [recall.low, recall.high],
        "latency_ms": manifest.latency_ms["median"],
        "snapshot": manifest.snapshot["hash"],
    }
