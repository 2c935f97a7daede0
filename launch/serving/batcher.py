"""Requests that wait at the same time are embedded and searched together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from index_build.search import Hit
from launch.serving.measures import Measures

_log = logging.getLogger(__name__)

Answer = tuple[int, list[list[Hit]]]
"""The index version that was searched, and the hits of each text."""
Search = Callable[[Sequence[str], int], Answer]


class BusyError(RuntimeError):
    """More texts wait than the service takes on."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    texts: list[str]
    k: int
    answer: asyncio.Future[Answer]


class Batcher:
    """One thread searches; while it does, what comes in is gathered for its next call.

    Nobody is made to wait for company: a request that finds the thread idle is searched at once, so batches grow with
    the load alone.
    """

    def __init__(self, search: Search, measures: Measures, *, max_texts: int, max_waiting: int) -> None:
        """Take over a way to search.

        Args:
            search: called in a thread, with texts and k.
            measures: where batches are counted.
            max_texts: most texts of one call; a request with more has one of its own.
            max_waiting: most texts that may wait.
        """
        self._search, self._measures = search, measures
        self._max_texts, self._max_waiting = max_texts, max_waiting
        self._queue: deque[_Waiting] = deque()
        self._texts = 0
        self._thread = ThreadPoolExecutor(1, "search")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Serve from now on, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def close(self) -> None:
        """End; who still waits is told."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for request in self._queue:
            request.answer.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def search(self, texts: list[str], k: int) -> Answer:
        """Return the k nearest passages of each text.

        Raises:
            BusyError: too many wait already.
        """
        if self._texts + len(texts) > self._max_waiting:
            raise BusyError(f"{self._texts} texts wait already")
        request = _Waiting(texts, k, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._count(len(texts))
        self._wake.set()
        return await request.answer

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._take()
            if not batch:
                self._wake.clear()
                continue
            texts = [text for request in batch for text in request.texts]
            k = max(request.k for request in batch)
            self._measures.batch.observe(len(texts))
            try:
                version, hits = await loop.run_in_executor(self._thread, self._search, texts, k)
            except Exception as error:
                self._fail(batch, error)
                continue
            at = 0
            for request in batch:
                own = hits[at : at + len(request.texts)]
                at += len(request.texts)
                if not request.answer.done():  # it may have given up waiting
                    request.answer.set_result((version, [found[: request.k] for found in own]))

    def _take(self) -> list[_Waiting]:
        """Take the oldest requests, as many as fit into one call."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].texts) <= self._max_texts):
            request = self._queue.popleft()
            self._count(-len(request.texts))
            if not request.answer.done():
                size += len(request.texts)
                batch.append(request)
        return batch

    def _count(self, more: int) -> None:
        self._texts += more
        self._measures.waiting.set(self._texts)

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        _log.error("a search of %d requests failed", len(batch), exc_info=error)
        for request in batch:
            if not request.answer.done():
                request.answer.set_exception(error)
