"""A dataset behind a URL: its files come here through the cache, one at a time or ahead of need."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from data_shards.errors import UserError
from data_shards.remote.cache import ShardCache
from data_shards.remote.prefetch import Prefetcher
from data_shards.remote.transfer import RemoteStat, Retry, Source, Wanted, fetch, fetch_tail, listed, stat
from data_shards.storage import CacheConfig, FetchStats, plain_name

_CLOSE_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class RemoteFolder:
    """A `Storage` over a source and a cache.

    A forked child may go on with its parent's: it opens connections and starts threads of its own.
    """

    def __init__(self, source: Source, identity: str, config: CacheConfig) -> None:
        """Join a source and the cache.

        Args:
            source: where the files come from.
            identity: tells this folder from all others, in the names of copies that no checksum names.
            config: the cache's.
        """
        self.location = source.location
        self._source = source
        self._identity = identity
        self._cache = ShardCache(config.folder, int(config.budget_gib * (1 << 30)))
        self._retry = Retry(retries=config.retries, stopped=threading.Event())
        self._prefetcher = Prefetcher(self._fetch_ahead, config.prefetch_threads)
        self._counting: dict[int, threading.Lock] = {}  # by process: a parent's may be held for ever in its child
        self._fetched = FetchStats()

    @property
    def fetched(self) -> FetchStats:
        """See `Storage`."""
        return self._fetched

    def read(self, name: str) -> bytes:
        """See `Storage`; always the store's own, never a copy: a manifest may have been written anew."""
        content = io.BytesIO()
        self._fetch(Wanted(plain_name(name)), content, self._retry)
        return content.getvalue()

    def local(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """See `Storage`."""
        with self.hold(name, size=size, sha256=sha256) as path:
            return path

    @contextmanager
    def hold(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Iterator[Path]:
        """See `Storage`."""
        with self._hold(Wanted(plain_name(name), size, sha256), self._retry) as path:
            assert path is not None, "who waits gets it"
            yield path

    def try_local(self, name: str) -> Path | None:
        """See `Storage`."""
        if self._source.tells_missing:
            return self.local(name) if stat(self._source, plain_name(name), self._retry) else None
        try:
            with self._hold(Wanted(plain_name(name)), replace(self._retry, retries=0)) as path:
                return path
        except UserError:
            return None

    def names(self) -> list[str]:
        """See `Storage`."""
        return listed(self._source, self._retry)

    def tail(self, name: str, size: int) -> bytes:
        """See `Storage`."""
        whole = self._stat(name).size
        if whole is None:
            raise UserError(f"{self.location} does not tell the size of {name}; copy it to this machine")
        return fetch_tail(self._source, plain_name(name), max(whole - size, 0), self._retry)

    def tag(self, name: str) -> str:
        """See `Storage`."""
        found = self._stat(name)
        return f"{found.size} bytes, {found.tag or 'of no known version'}"

    def prefetch(self, names: Sequence[tuple[str, int | None, str | None]]) -> None:
        """See `Storage`. What other processes fetch at the moment is left to them."""
        ahead: list[Wanted] = []
        room = self._cache.budget_bytes // 2  # the other half is for what is being read
        for wanted in (Wanted(*each) for each in names):
            room -= wanted.size or 0
            if room < 0:
                break
            ahead.append(wanted)
        self._prefetcher.ask(ahead)

    def close(self) -> None:
        """See `Storage`; a fetch under way ends with its next block."""
        self._retry.stopped.set()
        self._prefetcher.close(_CLOSE_TIMEOUT_S)

    @contextmanager
    def _hold(self, wanted: Wanted, retry: Retry, wait: bool = True) -> Iterator[Path | None]:
        wanted, key = self._key(wanted, retry)
        filled = False

        def fill(file: BinaryIO) -> None:
            nonlocal filled
            filled = True
            self._fetch(wanted, file, retry)

        with self._cache.hold(key, wanted.name, size=wanted.size, fill=fill, wait=wait) as path:
            if path is not None and not filled:
                self._count(FetchStats(hits=1))
            yield path

    def _key(self, wanted: Wanted, retry: Retry) -> tuple[Wanted, str]:
        """Name a file's content: by its checksum where that is known, else by what the store says of it."""
        if wanted.sha256 is not None:
            parts = ["sha256", wanted.sha256, wanted.name]
        else:
            found = self._stat(wanted.name, retry)
            wanted = wanted._replace(size=found.size if wanted.size is None else wanted.size)
            parts = ["version", self._identity, found.version, wanted.name]
        return wanted, hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _stat(self, name: str, retry: Retry | None = None) -> RemoteStat:
        found = stat(self._source, plain_name(name), retry or self._retry)
        if found is None:
            raise UserError(f"{self.location} has no {name}; check the location, or copy the dataset there again")
        return found

    def _fetch(self, wanted: Wanted, file: BinaryIO, retry: Retry) -> None:
        began = time.monotonic()
        received = fetch(self._source, wanted, file, retry)
        self._count(FetchStats(files=1, bytes=received, seconds=time.monotonic() - began))

    def _count(self, more: FetchStats) -> None:
        with self._counting.setdefault(os.getpid(), threading.Lock()):
            self._fetched += more

    def _fetch_ahead(self, wanted: Wanted) -> None:
        """Fetch without waiting for anybody; what fails here will be met again by whoever needs the file."""
        try:
            plain_name(wanted.name)
            with self._hold(wanted, self._retry, wait=False):
                pass
        except Exception as error:  # also a library's own mistake: it must not end the thread, unseen
            _log.info("%s was not fetched ahead: %s", wanted.name, error)
