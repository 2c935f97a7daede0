"""Files behind a URL, read through fsspec: object stores by ranges, web servers as one stream.

Retrying, resuming and caching are done above, in the same way for all; the libraries' own retries are turned off
where they can be, so that `cache.retries` means what it says.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec
from fsspec.asyn import sync
from fsspec.config import conf

from data_shards.errors import UserError
from data_shards.remote.transfer import (
    RefusedError,
    RemoteStat,
    TransientError,
    UnlikeError,
    in_a_line,
    without_secrets,
)

_BLOCK_BYTES = 8 << 20
_READ_BYTES = 1 << 20
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_WEB = ("http", "https")
_S3 = ("s3", "s3a")
_DENIED = (401, 403)
_MISSING = (404, 410)
_TELLING = ("etag", "md5hash", "last-modified", "lastmodified", "mtime", "created")  # of the content, best first
_PASSING = (408, 425, 429)  # client errors that time mends: timeout, too early, too many requests
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError")
_BAD_REQUESTS = ("ParamValidationError", "ProfileNotFound", "InvalidRegionError")
_HOPELESS = (*_NO_CREDENTIALS, *_BAD_REQUESTS)  # by name: the libraries that have them may not be installed
_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


class ObjectStore:
    """A folder of an object store, or of any file system that fsspec knows and that reads ranges."""

    tells_missing = True

    def __init__(self, url: str, timeout_s: float) -> None:
        """Look that the URL can be read at all; nothing is connected yet.

        Raises:
            UserError: the protocol is unknown, or its library is not installed.
        """
        self.location = without_secrets(url)
        self._parts = urlsplit(url)
        self._timeout_s = timeout_s
        # By process. The parent's is kept in a forked child: collected there, it would wait for a loop that is not.
        self._opened: dict[int, Any] = {}
        # Names the copies of files whose store does not tell when they change: they are fetched once per dataset.
        self._unversioned = uuid.uuid4().hex
        _look_for_library(self._parts.scheme, self.location)

    def stat(self, name: str) -> RemoteStat:
        """Ask for a file's size and version."""
        with _in_our_words():
            info = self._call("info", self._url(name))
        known = sorted((key, str(value)) for key, value in info.items())
        changing = {key.lower() for key in info} & {"etag", "last-modified", "lastmodified", "mtime", "created"}
        told = {key.lower(): value for key, value in info.items()}
        tag = next((f"{key} {told[key]}" for key in _TELLING if told.get(key)), "")
        return RemoteStat(size=info.get("size"), version=str(known) if changing else self._unversioned, tag=tag)

    def names(self) -> list[str]:
        """List the folder."""
        parts = self._parts._replace(query="", fragment="")
        with _in_our_words():
            found = self._call("ls", urlunsplit(parts), detail=True)
        return [entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file"]

    def blocks(self, name: str, begin: int, size: int | None) -> Iterator[bytes]:
        """Yield ranges, one request each."""
        found = self.stat(name).size
        _check_size(found, size)
        while found is None or begin < found:
            end = begin + _BLOCK_BYTES if found is None else min(begin + _BLOCK_BYTES, found)
            with _in_our_words():
                block = self._call("cat_file", self._url(name), start=begin, end=end)
            if not block and found is None:
                return
            if len(block) != end - begin and found is not None:
                raise TransientError(f"{len(block)} bytes came where {end - begin} were asked for")
            yield block
            begin += len(block)

    def _url(self, name: str) -> str:
        """Return a file's URL; what follows a `?` stays at the end."""
        parts = self._parts
        on_the_web = parts.scheme in _WEB
        path = f"{parts.path.rstrip('/')}/{quote(name) if on_the_web else name}"
        return urlunsplit(parts._replace(path=path, query=parts.query if on_the_web else "", fragment=""))

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system, with a limit on its time where fsspec can set one."""
        system = self._system()
        if system.async_impl:
            return sync(system.loop, getattr(system, f"_{method}"), *arguments, timeout=self._timeout_s, **options)
        return getattr(system, method)(*arguments, **options)

    def _system(self) -> Any:
        """Return this process's file system: event loops and connections do not survive a fork."""
        if (process := os.getpid()) not in self._opened:
            self._opened.setdefault(process, self._open_system())
        return self._opened[process]

    def _open_system(self) -> Any:
        options: dict[str, Any] = {"use_listings_cache": False}
        if self._parts.scheme in _S3:
            given = conf.get("s3", {}).get("config_kwargs", {})
            times = {"connect_timeout": self._timeout_s, "read_timeout": self._timeout_s}
            options["config_kwargs"] = {**times, **given, "retries": {"total_max_attempts": 1}}
        system = fsspec.filesystem(self._parts.scheme, skip_instance_cache=True, **options)
        if self._parts.scheme in _S3:
            system.retries = 1
        return system


class WebFolder(ObjectStore):
    """A folder of a web server: one request a file, since many servers know no ranges."""

    def names(self) -> list[str]:
        """Refuse: web servers list nothing that could be relied on."""
        raise RefusedError("a web server does not list its files; name one file, or give shards with a manifest")

    def blocks(self, name: str, begin: int, size: int | None) -> Iterator[bytes]:
        """Yield the body as it comes; where the server sends all of it anew, without the first `begin` bytes."""
        import aiohttp

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
        patience = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=self._timeout_s)
        with _in_our_words():
            # A size has to be given, or fsspec asks for it first; a block size of 0 means a stream.
            file = self._system().open(
                self._url(name),
                block_size=0,
                size=1,
                headers=headers,
                timeout=patience,
                read_bufsize=_READ_BYTES,
            )
        try:
            _check_size(_size_on_the_web(file.r), size)
            skipped = begin if file.r.status != 206 else 0
            while True:
                with _in_our_words():
                    block = file.read(_READ_BYTES)
                if not block:
                    return
                kept = block[skipped:]
                skipped -= len(block) - len(kept)
                if kept:
                    yield kept
        finally:
            file.close()


def open_source(url: str, timeout_s: float) -> ObjectStore:
    """Return what reads a URL.

    Raises:
        UserError: see `ObjectStore`.
    """
    return (WebFolder if urlsplit(url).scheme in _WEB else ObjectStore)(url, timeout_s)


def _look_for_library(scheme: str, location: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        fix = f"pip install 'dipole[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else in_a_line(error)
        raise UserError(f"{location} needs a library that is not installed: {fix}") from None
    except ValueError:
        raise UserError(
            f"{location} begins with {scheme}://, which nothing here reads; wanted a local folder, s3://, gs://,"
            " https://, or another protocol of fsspec"
        ) from None


def _size_on_the_web(response: Any) -> int | None:
    """Return the whole file's size as the headers of its body have it."""
    if response.status == 206:
        total = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        return int(total[1]) if total else None
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _check_size(found: int | None, wanted: int | None) -> None:
    if found is not None and wanted is not None and found != wanted:
        raise UnlikeError(f"the store has {found} bytes of it, the manifest says {wanted}", min(found, wanted))


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Sort what a library raises by what can be done about it; its own traceback may hold secrets."""
    try:
        yield
    except Exception as error:
        raise _translated(error) from None


def _translated(error: Exception) -> Exception:
    status = _status(error)
    in_words = str(error).startswith("Forbidden")  # all that gcsfs says of a 403
    hopeless = isinstance(error, PermissionError | ValueError) or type(error).__name__ in _HOPELESS
    if status in _DENIED or hopeless or in_words:
        return RefusedError(_with_status(error, status))
    # fsspec's look at a web server calls every failure "not found"; the cause tells.
    if status in _MISSING or (isinstance(error, FileNotFoundError) and error.__cause__ is None):
        return FileNotFoundError(in_a_line(error))
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return RefusedError(_with_status(error, status))
    if isinstance(error, _BUGS):
        return error
    told = error.__cause__ if isinstance(error, FileNotFoundError) else error
    return TransientError(_with_status(told or error, status))


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, as botocore, requests, aiohttp or gcsfs note it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            noted = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            noted = getattr(response, "status_code", None)
        # aiohttp gives its protocol errors a `code` too, which no server sent: 400 for a body that broke off.
        ours = "code" if type(error).__module__.startswith("gcsfs") else "status"
        for status in (noted, getattr(error, ours, None)):
            if isinstance(status, int):
                return status
        error = error.__cause__
    return None


def _with_status(error: BaseException, status: int | None) -> str:
    if isinstance(error, asyncio.TimeoutError | TimeoutError) and not str(error):
        return "no answer in time"
    return f"HTTP status {status}" + (f" ({in_a_line(error)})" if str(error) else "") if status else in_a_line(error)
