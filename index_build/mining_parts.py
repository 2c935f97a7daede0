"""What a refresh needs before it can search: passages, embeddings, index, sources."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.corpora import Passages, without
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Passage
from encoder.snapshot import snapshot_hash
from index_build.candidates import CandidateSource, Dense, Random
from index_build.corpus_rows import CorpusRows, write_positives, write_sample
from index_build.embedding_set import EmbeddingSet
from index_build.filters import Float32s, Int64s
from index_build.gpu import check_depth, gpus_to_use
from index_build.index import build_index
from index_build.index_config import IndexConfig
from index_build.index_version import OpenIndex, open_index
from index_build.known_positives import KnownPositives
from index_build.mining_config import MiningConfig
from index_build.near_positives import NearPositives
from index_build.sieve import Sieve, Timed
from index_build.similarity import PositiveScores

if TYPE_CHECKING:  # the config of a run is read without loading Ray and torch
    from index_build.ray_pool import EmbedPool

_log = logging.getLogger(__name__)

BLOCK_QUERIES = 1_024
_EMBEDDED_AT_ONCE = 16 * BLOCK_QUERIES
_RANDOM_FOR_EACH = 4  # passages named for each negative wanted: filters may drop some


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What is mined for."""

    train: PairDataset
    ordinals: Int64s
    """Sorted, each once."""

    def positives(self) -> Iterator[Passage]:
        """Yield the positives of all its pairs; one may come twice."""
        for start in range(0, len(self.ordinals), BLOCK_QUERIES):
            for pair in self.train.pairs(self.ordinals[start : start + BLOCK_QUERIES]):
                yield from pair.positives


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that a refresh searches with."""

    dataset: Passages
    """The corpus, or the sample of it, as far as it could be embedded; candidates are rows of it."""
    sieve: Sieve
    vectors: EmbeddingSet | None
    """Of the corpus; None where no snapshot is asked."""
    queries: Float32s | None
    """[Q, dim] of the stretch, memory-mapped; None likewise."""
    index: dict[str, Any]
    """`factory`, `ntotal` and measured `recall@K`."""


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """Makes the parts."""

    config: MiningConfig
    index_config: IndexConfig
    snapshot: Path
    pool: EmbedPool
    work_dir: Path
    """For what is of this refresh alone."""
    cache_dir: Path | None
    """Where the newest embeddings stay."""
    timed: Timed

    def parts(self, corpus: Path, stretch: Stretch, known: KnownPositives, version: int) -> Parts:
        """Embed, index, and put the sieve together."""
        gpus = gpus_to_use(self.index_config.device) if self.config.embeds else 0
        check_depth(self.config.depth, gpus)
        sampled = self._sampled(self._candidates(CorpusDataset(corpus), known), stretch, version)
        dataset: Passages = sampled
        rows: CorpusRows | None = None
        vectors: EmbeddingSet | None = None
        queries: Float32s | None = None
        facts: dict[str, Any] = {}
        sources: dict[str, CandidateSource] = {}
        if self.config.embeds:
            vectors, queries = self._embed(sampled, stretch)
            dataset = without(sampled, [each.row for each in vectors.quarantined])
            rows = CorpusRows(dataset, vectors.hashes)
            index, facts = self._index(vectors, queries, gpus)
            positives = PositiveScores(vectors, rows, lambda texts: self._embed_passages(texts))
            sources["dense"] = Dense(index, vectors, positives, self.config.depth)
        if "bm25" in self.config.sources:
            from index_build.candidates_bm25 import Bm25

            with self.timed("bm25"):
                sources["bm25"] = bm25 = Bm25.build(dataset, stretch.positives, self.config.depth)
            rows = rows or bm25.corpus
        if rows is None:
            with self.timed("scan"):
                rows = CorpusRows.scan(dataset)
        sources["random"] = Random(len(rows), _RANDOM_FOR_EACH * self.config.per_query + 4)
        sieve = Sieve(
            self.config,
            rows,
            [(name, sources[name]) for name in self.config.sources],
            vectors=vectors,
            near=self._near(rows),
            teacher=self._teacher(dataset),
        )
        return Parts(dataset=dataset, sieve=sieve, vectors=vectors, queries=queries, index=facts)

    def clear(self) -> None:
        """Remove what this refresh alone has needed, and the work folder if nothing else is in it."""
        made = (path for kind in ("embeddings", "positives") for path in self.work_dir.glob(f"{kind}-*"))
        for folder in (self.work_dir / "index", self.work_dir / "corpus", *made):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("queries.npy", "signatures.npy"):
            (self.work_dir / name).unlink(missing_ok=True)
        if self.work_dir.is_dir() and not any(self.work_dir.iterdir()):
            self.work_dir.rmdir()

    def _candidates(self, whole: CorpusDataset, known: KnownPositives) -> CorpusDataset:
        """Return the corpus, or what training pairs name of it: written once, it serves until they change."""
        if self.config.candidates == "corpus":
            return whole
        with self.timed("candidates"):
            ids = [name.removeprefix("sha256:")[:16] for name in (whole.dataset_id, known.dataset_id)]
            name = "-".join(["positives", *ids])
            place = self.cache_dir or self.work_dir
            for other in place.glob("positives-*"):
                if other.name != name:
                    shutil.rmtree(other, ignore_errors=True)
            out = place / name
            return CorpusDataset(out) if out.exists() else write_positives(whole, known.passage_ids, out)

    def _sampled(self, whole: CorpusDataset, stretch: Stretch, version: int) -> CorpusDataset:
        """Return all candidates, or a sample of them that holds the stretch's positives."""
        if not self.config.corpus_sample or self.config.corpus_sample >= len(whole):
            return whole
        with self.timed("sample"):
            out = self.work_dir / "corpus"
            shutil.rmtree(out, ignore_errors=True)  # of a refresh that was killed
            key = f"{self.config.seed} {version}"
            return write_sample(whole, stretch.positives(), out, size=self.config.corpus_sample, key=key)

    def _embed(self, dataset: CorpusDataset, stretch: Stretch) -> tuple[EmbeddingSet, Float32s]:
        with self.timed("embed_corpus"):
            folder = self._embeddings_dir(dataset)
            vectors = self.pool.embed_corpus(self.snapshot, Path(dataset.location), folder)
        with self.timed("embed_queries"):
            shape = (len(stretch.ordinals), vectors.dim)
            path = self.work_dir / "queries.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            queries = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(queries), _EMBEDDED_AT_ONCE):
                pairs = stretch.train.pairs(stretch.ordinals[start : start + _EMBEDDED_AT_ONCE])
                texts = [pair.query for pair in pairs]
                queries[start : start + len(pairs)] = self.pool.embed_texts(self.snapshot, texts, "query")
        return vectors, queries

    def _embed_passages(self, texts: list[str]) -> Float32s:
        return self.pool.embed_texts(self.snapshot, texts, "passage")

    def _embeddings_dir(self, dataset: CorpusDataset) -> Path:
        """Name the embeddings after what made them, and remove those of any other: the newest alone are kept.

        A refresh by the same weights, or one that was killed half-way, finds its own. A sampled corpus is another
        one at each version: its embeddings are of no use to the next, and go with the refresh.
        """
        weights, corpus = (
            name.removeprefix("sha256:")[:16] for name in (snapshot_hash(self.snapshot), dataset.dataset_id)
        )
        name = f"embeddings-{weights}-{self.pool.precision}-{corpus}"
        if self.cache_dir is None or Path(dataset.location).is_relative_to(self.work_dir.absolute()):
            return self.work_dir / name
        for other in self.cache_dir.glob("embeddings-*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)
        return self.cache_dir / name

    def _index(self, vectors: EmbeddingSet, queries: Float32s, gpus: int) -> tuple[OpenIndex, dict[str, Any]]:
        with self.timed("index"):
            folder = self.work_dir / "index"
            shutil.rmtree(folder, ignore_errors=True)  # of a refresh that was killed
            built = build_index(vectors, folder, self.index_config, queries)
            index = open_index(folder).on_gpus(gpus, self.index_config.gpu_layout)
        recall = {f"recall@{built.recall.k}": built.recall.value}
        return index, {"factory": built.factory, "ntotal": built.ntotal, **recall, **({"gpus": gpus} if gpus else {})}

    def _near(self, rows: CorpusRows) -> NearPositives | None:
        if not self.config.near_duplicates:
            return None
        self.work_dir.mkdir(parents=True, exist_ok=True)
        return NearPositives(rows, self.work_dir / "signatures.npy", self.config.near_duplicates)

    def _teacher(self, dataset: Passages) -> Any:
        if not self.config.teacher:
            return None
        from index_build.teacher import teacher_of

        margin, most = self.config.teacher_margin, self.config.teacher_candidates
        return teacher_of(Path(self.config.teacher), self.pool, dataset, margin=margin, most=most)
