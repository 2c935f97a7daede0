"""Bringing one remote file here: verified on the way, resumed where it broke off, given up with one clear line."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from data_shards.errors import ShardCorruptError, UserError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_MOST_MESSAGE_CHARS = 300

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)
_dice = random.Random()  # of its own: jitter must not move anybody's seeded stream


class Wanted(NamedTuple):
    """A file of a dataset, with what is known of it beforehand."""

    name: str
    size: int | None = None
    sha256: str | None = None


class RemoteStat(NamedTuple):
    """What a source says of a file without sending it."""

    size: int | None
    """Bytes; None where it does not know."""
    version: str
    """Changes when the content does, as far as the source can tell."""
    tag: str = ""
    """The same in words that another process or a copy of the source would use; empty where it cannot tell."""


class TransientError(Exception):
    """A fetch broke off in a way that another try may mend."""


class RefusedError(Exception):
    """Another try will not mend it: no permission, no credentials, a bad request."""


class UnlikeError(Exception):
    """The source's file is not what it should be."""

    def __init__(self, what: str, offset: int = 0) -> None:
        super().__init__(what)
        self.offset = offset


class Source(Protocol):
    """Where files come from. Methods raise TransientError, RefusedError and FileNotFoundError, without secrets."""

    @property
    def location(self) -> str:
        """Its name in messages, without secrets."""
        ...

    @property
    def tells_missing(self) -> bool:
        """Whether it raises FileNotFoundError for a missing file, and no other error."""
        ...

    def names(self) -> list[str]:
        """List the folder's files; RefusedError where that cannot be."""
        ...

    def stat(self, name: str) -> RemoteStat:
        """Look a file up."""
        ...

    def blocks(self, name: str, begin: int, size: int | None) -> Iterator[bytes]:
        """Yield a file's bytes from `begin` on; UnlikeError where it has another size than it should."""
        ...


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and how soon after one another, a broken fetch is tried again."""

    retries: int
    """Tries after the first, counted anew whenever bytes came."""
    stopped: threading.Event
    """Ends all waiting when set."""

    def wait(self, source: Source, wanted: Wanted, error: Exception, failures: int) -> None:
        """Sleep before the next try: twice as long each time, and not all ranks at once.

        Raises:
            UserError: there is no next try.
        """
        if failures > self.retries or self.stopped.is_set():
            raise UserError(
                f"{wanted.name} could not be fetched from {source.location}: {error} ({failures} tries); check that"
                " the store answers, or raise cache.retries"
            ) from None
        longest = min(_FIRST_WAIT_S * 2 ** (failures - 1), _LONGEST_WAIT_S)
        wait_s = longest * _dice.uniform(0.5, 1)
        _log.warning(
            "%s of %s: %s; retry %d of %d in %.1f s",
            *(wanted.name, source.location, error, failures, self.retries, wait_s),
        )
        self.stopped.wait(wait_s)


def fetch(source: Source, wanted: Wanted, file: BinaryIO, retry: Retry) -> int:
    """Write a remote file to an open one, its size and checksum verified, and return its bytes.

    A wrong size or checksum may be the transfer's doing: the file is fetched anew, and found corrupt where it comes
    out wrong in the same way twice.

    Raises:
        ShardCorruptError: the remote file is not what it should be.
        UserError: it is not there, not to be read, or does not come through.
    """
    failures, last = 0, ""
    while True:
        file.seek(0)
        try:
            return _stream(source, wanted, file, retry)
        except UnlikeError as error:
            failures += 1
            if str(error) == last or failures > retry.retries:
                what = f"{error} (fetched {failures} times from {source.location})"
                raise ShardCorruptError(Path(wanted.name), error.offset, what) from None
            last = str(error)
            retry.wait(source, wanted, error, failures)
        except FileNotFoundError:
            what = f"{source.location} has no {wanted.name}; check the location, or copy the dataset there again"
            if wanted.sha256 is None:
                raise UserError(what) from None
            # A manifest names it: damage, which a quarantine may skip.
            raise ShardCorruptError(Path(wanted.name), 0, what) from None
        except RefusedError as error:
            raise UserError(
                f"{source.location} refuses {wanted.name}: {error}; check the location and your credentials"
            ) from None


def stat(source: Source, name: str, retry: Retry) -> RemoteStat | None:
    """Look a file up; None where it is not there.

    Raises:
        UserError: the source refuses or does not answer.
    """
    try:
        return _patiently(source, name, retry, lambda: source.stat(name))
    except FileNotFoundError:
        return None


def listed(source: Source, retry: Retry) -> list[str]:
    """Return the names of a folder's files; none where it is not there.

    Raises:
        UserError: the source refuses, cannot list, or does not answer.
    """
    try:
        return sorted(_patiently(source, "its list of files", retry, source.names))
    except FileNotFoundError:
        return []


def fetch_tail(source: Source, name: str, begin: int, retry: Retry) -> bytes:
    """Return a file's bytes from `begin` on.

    Raises:
        UserError: it is not there, the source refuses or does not answer.
    """
    try:
        return _patiently(source, name, retry, lambda: b"".join(source.blocks(name, begin, None)))
    except FileNotFoundError:
        raise UserError(f"{source.location} has no {name}; check the location") from None


def _patiently(source: Source, name: str, retry: Retry, ask: Callable[[], Answer]) -> Answer:
    """Ask, and again where that breaks off; FileNotFoundError is the asker's."""
    failures = 0
    while True:
        try:
            return ask()
        except RefusedError as error:
            raise UserError(
                f"{source.location} refuses {name}: {error}; check the location and your credentials"
            ) from None
        except TransientError as error:
            failures += 1
            retry.wait(source, Wanted(name), error, failures)


def _stream(source: Source, wanted: Wanted, file: BinaryIO, retry: Retry) -> int:
    """Write a file front to back; where it breaks off, go on from there."""
    digest, received, failures = hashlib.sha256(), 0, 0
    while True:
        try:
            for block in source.blocks(wanted.name, received, wanted.size):
                file.write(block)
                digest.update(block)
                received += len(block)
                failures = 0
                if retry.stopped.is_set():
                    raise UserError(f"{wanted.name} was not fetched: its dataset is closed")
                if wanted.size is not None and received > wanted.size:
                    raise UnlikeError(f"it goes on here, the manifest says it has {wanted.size} bytes", wanted.size)
            break
        except TransientError as error:
            if received == wanted.size:
                break
            failures += 1
            retry.wait(source, wanted, error, failures)
    if wanted.size is not None and received != wanted.size:
        raise UnlikeError(f"the file ends here, the manifest says at {wanted.size}", received)
    if wanted.sha256 is not None and (found := digest.hexdigest()) != wanted.sha256:
        raise UnlikeError(f"its sha256 is {found}, the manifest says {wanted.sha256}")
    return received


def without_secrets(text: str) -> str:
    """Return a text with user names, passwords and query strings taken out of its URLs."""
    text = re.sub(r"(?<=://)[^/\s@]*@", "", text)
    return re.sub(r"""(://[^\s?'"]*)\?[^\s'")]*""", r"\1", text)


def in_a_line(error: BaseException) -> str:
    """Return an error's first line, without secrets; its type where it says nothing."""
    lines = without_secrets(str(error)).strip().splitlines()
    return lines[0][:_MOST_MESSAGE_CHARS] if lines else type(error).__name__
