"""`dipole embed`, `dipole index …`, `dipole search`, `dipole evaluate`: what serves a corpus, and how well."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from launch.progress import progress_bar

if TYPE_CHECKING:
    from index_build.index_version import IndexManifest


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed a corpus with a snapshot, each passage once.

    Whatever is killed in between: run it again, and only what is missing or damaged is done.
    """

    model: Path
    """Folder of the encoder."""
    corpus: Path
    """Folder made by `dipole shards corpus`."""
    out: Path
    """Folder of the embedding set, new or begun."""
    workers: int | None = None
    """Worker processes; by default one for each CPU that this process may use."""
    threads_per_worker: int = 1
    """CPU threads of each."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the encoder computes; vectors are kept as float16 either way."""
    address: str | None = None
    """Of an existing Ray cluster; by default Ray is started on this machine and ended again."""

    def run(self) -> dict[str, Any]:
        """Embed, and return what the set holds."""
        from data_shards.reader import CorpusDataset
        from encoder.snapshot import check_is_model
        from index_build.ray_pool import EmbedPool

        check_is_model(self.model)  # both before Ray is started for nothing
        CorpusDataset(self.corpus)
        pool = EmbedPool(
            workers=len(os.sched_getaffinity(0)) if self.workers is None else self.workers,
            threads_per_worker=self.threads_per_worker,
            precision=self.precision,
            address=self.address,
        )
        with pool, progress_bar("embedding") as progress:
            made = pool.embed_corpus(self.model, self.corpus, self.out, progress)
        return {
            "embeddings": str(self.out),
            "passages": made.rows,
            "dim": made.dim,
            "parts": len(made.parts),
            "hash": made.hash,
            "snapshot": made.snapshot["hash"],
        }


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


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search an index with a text."""

    text: tyro.conf.Positional[str]
    """The query."""
    index: Path
    """Folder made by `dipole index build`."""
    model: Path
    """The snapshot that embedded the corpus."""
    corpus: Path | None = None
    """The corpus, where it has moved since."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Passages wanted."""
    text_chars: int = 300
    """Shown texts are cut to so many characters; 0 shows all."""

    def run(self) -> dict[str, Any]:
        """Search, and return the passages, best first."""
        from index_build.search import Searcher

        hits = Searcher(self.index, self.model, self.corpus).search([self.text], self.k)[0]
        rows = [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, 1)]
        return {"query": self.text, "hits": [{**row, "text": self._cut(row["text"])} for row in rows]}

    def _cut(self, text: str) -> str:
        return text if self.text_chars == 0 or len(text) <= self.text_chars else text[: self.text_chars] + " …"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure an encoder on a BEIR folder by exact search: nDCG@10, MRR@10, Recall@100."""

    data: Path
    """BEIR folder."""
    model: Path | None = None
    """Folder of the encoder; without one only baselines are measured."""
    split: str = "test"
    """Which judgements."""
    baselines: tuple[str, ...] = ()
    """To compare with, parted by commas or spaces: `bm25`, `untrained` (the same architecture, fresh weights)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the encoder computes."""

    def run(self) -> dict[str, Any]:
        """Evaluate, and return the metrics by what was measured."""
        from data_shards.errors import UserError
        from index_build.evaluate import evaluate_beir

        baselines = [name.strip() for name in ",".join(self.baselines).split(",") if name.strip()]
        if self.model is None and not baselines:
            raise UserError("nothing to measure; give --model, --baselines bm25, or both")
        with progress_bar("evaluating") as progress:
            metrics = evaluate_beir(
                self.model, self.data, self.split, baselines, precision=self.precision, progress=progress
            )
        return {"data": str(self.data), "split": self.split, "metrics": metrics}


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
