"""`dipole index …`: build an index over an embedding set, and look after its versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from launch.progress import progress_bar

if TYPE_CHECKING:
    from index_build.embedding_set import EmbeddingSet
    from index_build.index_manifest import IndexManifest


@dataclass(frozen=True, kw_only=True)
class IndexBuild:
    """Build the next version of an index over an embedding set, and measure its recall.

    Killed in between, run it again: what is trained and the chunks that are done are found.
    """

    embeddings: Path
    """Folder made by `dipole embed`."""
    out: Path
    """Folder of the index's versions, new or not."""
    factory: str = "auto"
    """FAISS factory string; `auto` chooses by size, dimension, memory and wanted recall, and says why."""
    memory_gib: float | None = None
    """Most memory that building and searching may take; by default four fifths of what is free."""
    prefer: Literal["memory", "latency"] = "memory"
    """`latency` takes more memory for quicker searches."""
    on_disk: Literal["auto", "never", "always"] = "auto"
    """Whether the lists stay on disk; `auto` leaves them there where they do not fit."""
    queries: Path | None = None
    """To measure recall with: .npy vectors, BEIR's queries.jsonl, or a text a line; by default rows of the corpus."""
    wanted_recall: float = 0.95
    """The cheapest search that reaches this recall@10 is chosen."""
    workers: int = 1
    """Processes on Ray that add vectors; 1 is this one, with all its threads."""
    ray_address: str | None = None
    """Of an existing Ray cluster that sees the same files."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where k-means is trained."""
    seed: int = 0
    """Of the sampled vectors."""

    def run(self) -> dict[str, Any]:
        """Build, and return what was measured."""
        from data_shards.errors import UserError
        from index_build.embedding_set import EmbeddingSet
        from index_build.index import build_index
        from index_build.index_config import IndexConfig
        from index_build.index_fill import Workers
        from launch.index_report import REPORT_NAME, write_index_report

        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}, wanted at least 1")
        config = IndexConfig(
            factory=self.factory,
            memory_gib=self.memory_gib,
            prefer=self.prefer,
            on_disk=self.on_disk,
            wanted_recall=self.wanted_recall,
            device=self.device,
            seed=self.seed,
        )
        vectors = EmbeddingSet.open(self.embeddings)
        queries = _queries(self.queries, vectors)
        with progress_bar("indexing") as progress:
            manifest = build_index(
                vectors,
                self.out,
                config,
                queries,
                progress,
                workers=Workers(count=self.workers, address=self.ray_address),
                report=write_index_report,
            )
        return {"index": str(self.out), **_facts(manifest), "report": str(_folder(self.out, manifest) / REPORT_NAME)}


@dataclass(frozen=True, kw_only=True)
class IndexUpdate:
    """Make the index hold what a new embedding set holds: passages are added, replaced and deleted.

    The set has to be of the same snapshot. What has not changed is left as it is.
    """

    index: tyro.conf.Positional[Path]
    """Folder of its versions."""
    embeddings: Path
    """The new set."""
    queries: Path | None = None
    """To measure recall with; by default those of the version before, else rows of the corpus."""

    def run(self) -> dict[str, Any]:
        """Update, and return what has changed and what was measured."""
        from index_build.embedding_set import EmbeddingSet
        from index_build.index_config import IndexConfig
        from index_build.index_update import update_index
        from launch.index_report import write_index_report

        vectors = EmbeddingSet.open(self.embeddings)
        queries = _queries(self.queries, vectors)
        with progress_bar("indexing") as progress:
            manifest = update_index(self.index, vectors, IndexConfig(), queries, progress, report=write_index_report)
        return {"index": str(self.index), **_facts(manifest), **_wear(manifest)}


@dataclass(frozen=True, kw_only=True)
class IndexDelete:
    """Delete passages from an index: a new version does not find them any more."""

    index: tyro.conf.Positional[Path]
    """Folder of its versions."""
    ids: Path
    """File with a passage id a line."""

    def run(self) -> dict[str, Any]:
        """Delete, and return what has changed and what was measured."""
        from data_shards.errors import UserError
        from index_build.index_config import IndexConfig
        from index_build.index_update import delete_ids
        from launch.index_report import write_index_report

        try:
            lines = self.ids.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.ids} cannot be read ({error}); give a file with a passage id a line") from None
        ids = [line.removesuffix("\r") for line in lines]
        manifest = delete_ids(self.index, [line for line in ids if line], IndexConfig(), report=write_index_report)
        return {"index": str(self.index), **_facts(manifest), **_wear(manifest)}


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
    """Verify every version of an index: checksums, slots, ids against its embedding set and corpus."""

    index: tyro.conf.Positional[Path]
    """Folder of its versions."""
    embeddings: Path | None = None
    """The current version's embedding set, where it has moved."""
    corpus: str | None = None
    """The current version's corpus, where it has moved; a URL is compared with only where it is given."""

    def run(self) -> dict[str, Any]:
        """Verify, and return the versions."""
        from index_build.index_check import check_index

        report = check_index(self.index, self.embeddings, self.corpus)
        return {"index": str(self.index), "ok": True, **report}


def _queries(path: Path | None, vectors: EmbeddingSet) -> Any:
    from index_build.held_out import read_queries

    return None if path is None else read_queries(path, vectors.dim, Path(vectors.snapshot["path"]))


def _folder(root: Path, manifest: IndexManifest) -> Path:
    from index_build.index_version import version_dir

    return version_dir(root, manifest.version)


def _facts(manifest: IndexManifest) -> dict[str, Any]:
    recall = manifest.recall
    return {
        "version": manifest.version,
        "factory": manifest.factory,
        "choice": manifest.choice,
        "on_disk": manifest.on_disk,
        "ntotal": manifest.ntotal,
        "search": manifest.search,
        f"recall@{recall.k}": recall.value,
        f"recall@{recall.k}_interval": [recall.low, recall.high],
        "latency_ms": manifest.latency_ms["median"],
        "queries_per_s": manifest.queries_per_s,
        "snapshot": manifest.snapshot["hash"],
        "rebuild_due": manifest.rebuild_due or "no",
    }


def _wear(manifest: IndexManifest) -> dict[str, Any]:
    return {"base_version": manifest.base_version, "changes": manifest.changes, "wear": manifest.wear}
