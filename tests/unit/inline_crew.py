"""Embedding with one worker in this process: a worker is a plain class, and a crew a function that runs jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from index_build.corpus_job import Wish, Work, embed_corpus
from index_build.embedding_set import EmbeddingSet
from index_build.ray_crew import Job
from index_build.ray_worker import EmbedWorker


def inline(jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
    worker = EmbedWorker(1, "float32")
    for number, job in enumerate(jobs):
        yield number, getattr(worker, job.method)(*job.arguments)


def embed(snapshot: Path, corpus: Path, out: Path, work: Work | None = None, **wish: Any) -> EmbeddingSet:
    return embed_corpus(inline, snapshot, corpus, out, Wish(**wish), work or Work(), None)
