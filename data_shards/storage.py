"""Where a dataset lies: a local folder, or one behind a URL, of which files are copied here as they are needed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from data_shards.errors import UserError

_URL = re.compile("[a-z][a-z0-9+.-]*://")
_FLATTENED_URL = re.compile("([a-z][a-z0-9+.-]+):/(?!/)")
_PIPE = "pipe:"


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The copies of remote shards on this machine, and how they come here."""

    dir: str = ""
    """Where copies lie, shared by all processes of the machine; by default `~/.cache/dipole/shards`."""
    budget_gib: float = 64.0
    """Most that they take; the least recently used shards go first."""
    retries: int = 5
    """Tries after the first where a fetch breaks off, counted anew whenever bytes came."""
    timeout_s: float = 60.0
    """A store that says nothing for so long has broken off."""
    prefetch_threads: int = 2
    """Shards fetched ahead at the same time, by each process."""
    allow_pipe: bool = False
    """Allow `pipe:` locations, which run a shell command for each file."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.budget_gib > 0:
            raise UserError(f"cache.budget_gib must be above 0, came {self.budget_gib}")
        if not self.timeout_s > 0:
            raise UserError(f"cache.timeout_s must be above 0, came {self.timeout_s}")
        if self.retries < 0 or self.prefetch_threads < 0:
            raise UserError(
                f"cache.retries and cache.prefetch_threads must be 0 or more, came {self.retries} and"
                f" {self.prefetch_threads}"
            )

    @property
    def folder(self) -> Path:
        """The folder that `dir` names."""
        if self.dir:
            return Path(self.dir).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home).expanduser() / "dipole" / "shards"


@dataclass(frozen=True, kw_only=True)
class FetchStats:
    """What came from afar so far, into this process."""

    files: int = 0
    """Files fetched."""
    bytes: int = 0
    """Their bytes."""
    seconds: float = 0.0
    """Time of all fetches, side by side or not."""
    hits: int = 0
    """Files asked for that were here already."""

    def __add__(self, other: FetchStats) -> FetchStats:
        """Return the sum, of several datasets or of several moments."""
        return FetchStats(
            files=self.files + other.files,
            bytes=self.bytes + other.bytes,
            seconds=self.seconds + other.seconds,
            hits=self.hits + other.hits,
        )


class Storage(Protocol):
    """The files of one dataset. Safe from many threads."""

    location: str
    """For messages: no secrets."""

    @property
    def fetched(self) -> FetchStats:
        """What it cost so far."""
        ...

    def read(self, name: str) -> bytes:
        """Return a small file, such as the manifest.

        Raises:
            UserError: it is missing or cannot be had.
        """
        ...

    def local(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """Return the path of a file on this machine, once it is there whole.

        Args:
            name: plain, without folders.
            size: its bytes, where they are known; a remote file of another size is refused.
            sha256: its hex checksum, where it is known; verified on the way here, not again.

        Raises:
            ShardCorruptError: a remote file is not what `size` and `sha256` say.
            UserError: it is missing or cannot be had.
        """
        ...

    def hold(self, name: str, *, size: int | None = None, sha256: str | None = None) -> AbstractContextManager[Path]:
        """Yield what `local` returns, and keep it from leaving a cache that is short of room: open it in the block.

        One thread of one process at a time is in the block of a file: what is derived there is derived once, and
        asking for the same file again inside waits for ever.
        """
        ...

    def try_local(self, name: str) -> Path | None:
        """Return the path of a file that need not exist."""
        ...

    def names(self) -> list[str]:
        """Return the names of the folder's files.

        Raises:
            UserError: it cannot be listed.
        """
        ...

    def tail(self, name: str, size: int) -> bytes:
        """Return a file's last bytes, all of it where it has no more; nothing is kept.

        Raises:
            UserError: it is missing or cannot be had.
        """
        ...

    def tag(self, name: str) -> str:
        """Return what a store tells of a file's content: its size, and its ETag or time of change.

        Raises:
            UserError: it is missing or cannot be had.
        """
        ...

    def prefetch(self, names: Sequence[tuple[str, int | None, str | None]]) -> None:
        """Fetch files in the background: name, size and checksum each, the next to be read first.

        Replaces what is not begun of the last request; takes at most half of the cache.
        """
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...


class LocalFolder:
    """A folder of this machine: nothing is copied or verified here, since readers look at what they open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)
        self.fetched = FetchStats()

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return self.local(name).read_bytes()

    def local(self, name: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """See `Storage`."""
        if (path := self.try_local(name)) is None:
            raise UserError(f"{self.folder} has no {name}; check the location, or copy the dataset there again")
        return path

    def hold(self, name: str, *, size: int | None = None, sha256: str | None = None) -> AbstractContextManager[Path]:
        """See `Storage`; nothing needs to be held."""
        return nullcontext(self.local(name))

    def try_local(self, name: str) -> Path | None:
        """See `Storage`."""
        path = self.folder / plain_name(name)
        return path if path.is_file() else None

    def names(self) -> list[str]:
        """See `Storage`."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} does not exist; check the location")
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def tail(self, name: str, size: int) -> bytes:
        """See `Storage`."""
        with open(self.local(name), "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - size, 0))
            return file.read()

    def tag(self, name: str) -> str:
        """See `Storage`."""
        found = self.local(name).stat()
        return f"{found.st_size} bytes, changed {found.st_mtime_ns}"

    def prefetch(self, names: Sequence[tuple[str, int | None, str | None]]) -> None:
        """Do nothing: the files are here."""

    def close(self) -> None:
        """Do nothing."""


def is_remote(location: str | Path) -> bool:
    """Return whether a location is a URL or a command, and no folder."""
    text = _FLATTENED_URL.sub(r"\1://", str(location))
    return text.startswith(_PIPE) or (bool(_URL.match(text)) and not text.startswith("file://"))


def open_storage(location: str | Path, cache: CacheConfig | None = None) -> Storage:
    """Return the storage at a location: a folder, a URL of one, or `pipe:COMMAND with {name}`.

    Nothing is looked up yet: what is not there shows when it is read.

    Raises:
        UserError: the location is of no known kind, needs a library that is not installed, or is a command and
            commands are not allowed.
    """
    cache = cache or CacheConfig()
    # A URL that was taken for a path on its way here has lost a slash.
    text = _FLATTENED_URL.sub(r"\1://", str(location)) if isinstance(location, Path) else location
    if text.startswith(_PIPE):
        return _open_pipe(text, cache)
    if not _URL.match(text):
        return LocalFolder(Path(text))
    if text.startswith("file://"):
        return LocalFolder(Path(unquote(urlsplit(text).path)))
    from data_shards.remote.folder import RemoteFolder
    from data_shards.remote.object_store import open_source

    return RemoteFolder(open_source(text, cache.timeout_s), text, cache)


def plain_name(name: str) -> str:
    """Return a file's name.

    Raises:
        UserError: it leads out of its folder: names come from manifests, which come from outside.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"file name {name!r} leads out of its dataset; refused")
    return name


def _open_pipe(location: str, cache: CacheConfig) -> Storage:
    if not cache.allow_pipe:
        raise UserError(
            "a pipe: location runs a shell command for each file; if you trust it, set cache.allow_pipe=true"
        )
    from data_shards.remote.folder import RemoteFolder
    from data_shards.remote.pipe_source import PipeSource

    return RemoteFolder(PipeSource(location, cache.timeout_s), location, cache)
