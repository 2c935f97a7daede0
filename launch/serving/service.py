"""The HTTP service: `/search`, `/healthz`, `/metrics`, and a page to try queries at `/`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from launch.serving.batcher import Answer, Batcher, BusyError
from launch.serving.gate import Limits, RefusedError, check_token
from launch.serving.hot_index import HotIndex
from launch.serving.measures import Measures
from launch.serving.page import page_headers, search_page

_log = logging.getLogger(__name__)
_DRAINED_BYTES = 16 << 20
_PATHS = ("/", "/search", "/healthz", "/metrics")


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How a service behaves."""

    token: str | None
    """What requests have to bring; None lets everybody in."""
    limits: Limits
    """How large they may be."""
    timeout_s: float
    """How long a search may wait and take."""
    max_batch: int
    """Most texts searched together."""
    max_waiting: int
    """Most texts that may wait."""


class Service:
    """What the paths answer."""

    def __init__(self, hot: HotIndex, measures: Measures, settings: ServiceSettings) -> None:
        """Take over an open index."""
        self._hot, self._measures, self._settings = hot, measures, settings
        self._batcher: Batcher | None = None

    def app(self) -> FastAPI:
        """Return the application that a server runs."""
        app = FastAPI(title="dipole serve", lifespan=self._lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        app.middleware("http")(self._count)
        app.add_exception_handler(RefusedError, _refused)
        app.add_exception_handler(HTTPException, _no_such_place)
        app.add_exception_handler(Exception, _failed)
        app.add_api_route("/search", self._post, methods=["POST"])
        app.add_api_route("/search", self._get, methods=["GET"])
        app.add_api_route("/healthz", self._healthz, methods=["GET"])
        app.add_api_route("/metrics", self._metrics, methods=["GET"])
        app.add_api_route("/", self._page, methods=["GET"])
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        settings = self._settings
        self._batcher = Batcher(
            self._search, self._measures, max_texts=settings.max_batch, max_waiting=settings.max_waiting
        )
        self._batcher.start()
        self._hot.start()
        yield
        self._hot.close()
        await self._batcher.close()

    def _search(self, texts: Sequence[str], k: int) -> Answer:
        searcher = self._hot.searcher  # of this moment: an exchange in between waits for the next call
        return searcher.version, searcher.search(texts, k)

    async def _count(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        path = request.url.path if request.url.path in _PATHS else "other"  # not one series for each thing asked for
        self._measures.requests.labels(path, str(response.status_code)).inc()
        return response

    async def _answer(self, texts: list[str], k: int) -> dict[str, Any]:
        self._settings.limits.check(texts, k)
        assert self._batcher is not None, "the service has not started"
        began = time.perf_counter()
        try:
            version, hits = await asyncio.wait_for(self._batcher.search(texts, k), self._settings.timeout_s)
        except BusyError as error:
            raise RefusedError(503, f"busy: {error}; try again in a second") from None
        except asyncio.TimeoutError:
            raise RefusedError(504, f"no answer within {self._settings.timeout_s:g} s") from None
        seconds = time.perf_counter() - began
        self._measures.seconds.observe(seconds)
        rows = [[{"rank": rank, **asdict(hit)} for rank, hit in enumerate(found, 1)] for found in hits]
        return {"version": version, "ms": round(1e3 * seconds, 2), "hits": rows}

    async def _post(self, request: Request) -> dict[str, Any]:
        check_token(self._settings.token, request.headers)
        try:
            self._settings.limits.check_size(request.headers)
        except RefusedError:
            await _drain(request)
            raise
        texts, k, one = _read_search(await request.body())
        found = await self._answer(texts, k)
        return {**found, "hits": found["hits"][0]} if one else found

    async def _get(self, request: Request) -> dict[str, Any]:
        check_token(self._settings.token, request.headers)
        k = request.query_params.get("k", "10")
        if not (k.isascii() and k.isdigit() and len(k) < 10):
            raise RefusedError(422, f"k is {k[:40]!r}, wanted a number")
        found = await self._answer([request.query_params.get("q", "")], int(k))
        return {**found, "hits": found["hits"][0]}

    async def _healthz(self) -> dict[str, Any]:
        made = self._hot.searcher.index.manifest
        health: dict[str, Any] = {"ok": True, "version": made.version, "passages": made.ntotal}
        return {**health, "refused": True} if self._hot.refused else health  # why is in the log: it names paths

    async def _metrics(self, request: Request) -> Response:
        check_token(self._settings.token, request.headers)
        return PlainTextResponse(generate_latest(self._measures.registry), media_type=CONTENT_TYPE_LATEST)

    async def _page(self) -> Response:
        needs_token = self._settings.token is not None
        nonce, text = search_page(self._hot.searcher, needs_token=needs_token, most=self._settings.limits.k)
        return HTMLResponse(text, headers=page_headers(nonce))


async def _drain(request: Request) -> None:
    """Let a client send what is refused, within reason: one that is cut off while it sends never reads why."""
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > _DRAINED_BYTES:
            return


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers)


async def _no_such_place(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the search failed; the service's log says why"}, status_code=500)


def _read_search(body: bytes) -> tuple[list[str], int, bool]:
    """Read a request: `{"query": TEXT, "k": 10}`, or `{"queries": [TEXT, …], "k": 10}`.

    Returns:
        Texts, k, and whether it is one text alone.

    Raises:
        RefusedError: it is something else.
    """
    try:
        row = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is no JSON") from None
    if not isinstance(row, dict) or set(row) - {"query", "queries", "k"} or ("query" in row) == ("queries" in row):
        raise RefusedError(422, 'wanted {"query": "…", "k": 10} or {"queries": ["…"], "k": 10}')
    k = row.get("k", 10)
    texts = [row["query"]] if "query" in row else row["queries"]
    if isinstance(k, bool) or not isinstance(k, int):
        raise RefusedError(422, f"k is {json.dumps(k)[:40]}, wanted a number")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RefusedError(422, "queries have to be texts")
    return texts, k, "query" in row
