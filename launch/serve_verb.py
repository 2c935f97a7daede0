"""`dipole serve`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Search an index over HTTP: POST /search, GET /healthz, GET /metrics, and a page to try queries at /.

    A new version of the index is served as soon as it is current and whole, with no request lost. Ctrl-C or SIGTERM
    ends it once what is under way is answered.
    """

    index: Path
    """Folder made by `dipole index build`."""
    model: Path
    """The snapshot that embedded the corpus."""
    corpus: str | None = None
    """The corpus, where it has moved since."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 is for everybody who can reach this machine."""
    port: int = 8000
    """0 takes any that is free."""
    token_file: Path | None = None
    """File with the token that requests have to bring; without it DIPOLE_SERVE_TOKEN, and without that all are let
    in."""
    max_k: int = 1_000
    """Most passages for each query."""
    max_queries: int = 64
    """Most queries in one request."""
    max_chars: int = 10_000
    """Most characters of a query."""
    max_body_bytes: int = 1 << 20
    """Most bytes of a request."""
    max_batch: int = 64
    """Most queries that are searched together."""
    max_waiting: int = 1_024
    """Queries that may wait; more are told to come back (503)."""
    timeout_s: float = 10.0
    """How long a search may wait and take."""
    look_every_s: float = 1.0
    """Seconds between two looks for a new version."""

    def run(self) -> dict[str, Any]:
        """Serve until told to stop."""
        from data_shards.errors import UserError
        from index_build.search import Searcher

        try:
            from launch.serving import server, service
            from launch.serving.measures import Measures
        except ImportError as error:
            raise UserError(f"serving needs {error.name}: pip install 'dipole[serve]'") from None
        from launch.serving.gate import Limits, read_token
        from launch.serving.hot_index import HotIndex

        if min(self.max_batch, self.max_waiting) < 1 or min(self.timeout_s, self.look_every_s) <= 0:
            raise UserError(
                "--max-batch and --max-waiting must be at least 1, --timeout-s and --look-every-s above 0"
            )
        settings = service.ServiceSettings(
            token=read_token(self.token_file),
            limits=Limits(k=self.max_k, texts=self.max_queries, chars=self.max_chars, body_bytes=self.max_body_bytes),
            timeout_s=self.timeout_s,
            max_batch=self.max_batch,
            max_waiting=self.max_waiting,
        )
        taken = server.bind(self.host, self.port)
        measures = Measures()
        searcher = Searcher(self.index, self.model, self.corpus)
        searcher.search(["warm up"], 1)  # the first search of a process takes a while
        hot = HotIndex(searcher, measures, look_every_s=self.look_every_s)
        where = server.address(taken)
        _log.info("serving version %d of %s at %s", searcher.version, self.index, where)
        server.run(service.Service(hot, measures, settings).app(), taken)
        return {"index": str(self.index), "address": where, "version": hot.searcher.version}
