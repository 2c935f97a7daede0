"""What the first phase of an import leaves on disk: clean samples, and the keys by which repetitions are found.

A part of the input becomes segments, each small enough to be held in memory, whatever the part's size:

    KEY.000.jsonl           samples, one a line, as a shard will hold them
    KEY.000.keys.npy        uint64 [positions, 2]; a pair has a position for each positive, a passage has one
    KEY.000.signatures.npy  MinHash signatures, a row a sample, where near-duplicates are asked for
    KEY.quarantine.jsonl    malformed rows, where there were some
    KEY.done.json           written last: rows and checksums of the above, and what was counted
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.atomic import atomic_path, read_json, sha256_file, write_json
from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.importing.columns import exact_hash
from data_shards.importing.repeats import Keys
from data_shards.npy import npy_bytes
from data_shards.rows import Row
from data_shards.samples import Pair, Passage

SEGMENT_ROWS = 1 << 16
SEGMENT_BYTES = 32 << 20
_RAW_BYTES = 2048
_SIGN_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Some clean samples of a part, in order."""

    stem: str
    """Of its files' names."""
    source: str
    """Name of the input that it was made from."""
    rows: int
    """Samples."""
    positions: int
    """Rows of the keys."""

    def samples(self, work: Path) -> Iterator[bytes]:
        """Yield the samples' payloads."""
        with open(work / f"{self.stem}.jsonl", "rb") as file:
            for line in file:
                yield line[:-1]

    def keys(self, work: Path) -> Keys:
        """Return [positions, 2]: key and content."""
        keys: Keys = np.load(work / f"{self.stem}.keys.npy", allow_pickle=False)
        return keys

    def signatures(self, work: Path) -> Path:
        """Return the place of the MinHash signatures."""
        return work / f"{self.stem}.signatures.npy"


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What `KEY.done.json` says."""

    key: str
    segments: tuple[Segment, ...]
    counts: dict[str, int]
    files: dict[str, str]
    """Checksum by name."""

    def save(self, work: Path) -> None:
        """Write it, atomically: from then on the part is done."""
        write_json(work / f"{self.key}.done.json", asdict(self))

    @property
    def quarantine(self) -> str | None:
        """Name of the quarantine file, where there is one."""
        name = f"{self.key}.quarantine.jsonl"
        return name if name in self.files else None


def finished_part(work: Path, key: str) -> PartRecord | None:
    """Return the record of a part that is done, every file of it as it was written; else None."""
    path = work / f"{key}.done.json"
    if not path.is_file():
        return None
    try:
        row: dict[str, Any] = read_json(path)
        segments = tuple(Segment(**segment) for segment in row["segments"])
        record = PartRecord(key=key, segments=segments, counts=row["counts"], files=row["files"])
        whole = all(sha256_file(work / name) == checksum for name, checksum in record.files.items())
    except (UserError, KeyError, TypeError, FileNotFoundError):
        return None
    return record if whole else None


class SegmentWriter(AbstractContextManager["SegmentWriter"]):
    """Writes one part; its record is written when the block ends well."""

    def __init__(self, work: Path, key: str, cleaning: CleaningConfig, name: str) -> None:
        """Begin a part.

        Args:
            work: the folder.
            key: of the part.
            cleaning: says whether signatures are wanted.
            name: of the input, for the quarantine file.
        """
        self._work, self._key, self._cleaning, self._name = work, key, cleaning, name
        self.counts: Counter[str] = Counter()
        self.record: PartRecord | None = None
        self._segments: list[Segment] = []
        self._files: dict[str, str] = {}
        self._bad: list[bytes] = []
        self._bad_file: io.BufferedWriter | None = None
        self._stack = ExitStack()
        self._begin_segment()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last segment and the record; after an error leave the part undone."""
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        self._end_segment()
        self._stack.close()
        if self._bad_file is not None:
            self._note(f"{self._key}.quarantine.jsonl")
        segments, counts = tuple(self._segments), dict(sorted((+self.counts).items()))
        self.record = PartRecord(key=self._key, segments=segments, counts=counts, files=self._files)
        self.record.save(self._work)

    def add(self, sample: Pair | Passage) -> None:
        """Take a sample."""
        line = sample.to_json()
        self._lines.append(line)
        self._bytes += len(line)
        if isinstance(sample, Pair):
            for passage in sample.positives:
                self._keys += (exact_hash(sample.query, passage.title, passage.text), 0)
        else:
            self._keys += (exact_hash(sample.id), exact_hash(sample.title, sample.text))
        if self._cleaning.near_duplicates:
            self._unsigned.append(sample.query if isinstance(sample, Pair) else sample.content)
            self._answers.append(sample.first_positive_hash if isinstance(sample, Pair) else 0)
            if len(self._unsigned) >= _SIGN_AT_ONCE:
                self._sign()
        if len(self._lines) >= SEGMENT_ROWS or self._bytes >= SEGMENT_BYTES:
            self._end_segment()

    def quarantine(self, row: Row, reason: str) -> None:
        """Set a malformed row aside."""
        self.counts["quarantined"] += 1
        if self._bad_file is None:
            place = self._work / f"{self._key}.quarantine.jsonl"
            self._bad_file = self._stack.enter_context(open(self._stack.enter_context(atomic_path(place)), "wb"))
        self._bad_file.write(quarantine_line(self._name, row, reason))

    def _begin_segment(self) -> None:
        self._lines: list[bytes] = []
        self._bytes = 0
        self._keys: list[int] = []
        self._unsigned: list[str] = []
        self._answers: list[int] = []
        self._signatures: list[NDArray[np.uint32]] = []

    def _end_segment(self) -> None:
        if not self._lines:
            return
        stem = f"{self._key}.{len(self._segments):03d}"
        self._write(f"{stem}.jsonl", b"\n".join(self._lines) + b"\n")
        keys = np.array(self._keys, dtype=np.uint64).reshape(-1, 2)
        self._write(f"{stem}.keys.npy", npy_bytes(keys))
        if self._cleaning.near_duplicates:
            self._sign()
            self._write(f"{stem}.signatures.npy", npy_bytes(np.concatenate(self._signatures)))
        self._segments.append(Segment(stem=stem, source=self._name, rows=len(self._lines), positions=len(keys)))
        self._begin_segment()

    def _sign(self) -> None:
        from data_shards.cleaning.near_duplicates import signatures

        if self._unsigned:
            # Two pairs are nearly the same where their queries are, and their positive is one: with other positives
            # the signatures share nothing.
            answers = np.array(self._answers, dtype=np.int64).astype(np.uint32)
            self._signatures.append(signatures(self._unsigned, self._cleaning) ^ answers[:, None])
            self._unsigned, self._answers = [], []

    def _write(self, name: str, content: bytes) -> None:
        with atomic_path(self._work / name) as temporary:
            temporary.write_bytes(content)
        self._note(name)

    def _note(self, name: str) -> None:
        self._files[name] = sha256_file(self._work / name)


def quarantine_line(name: str, row: Row, reason: str) -> bytes:
    """Return a malformed row as a line of a quarantine file, the row itself cut to 2 kB."""
    raw = row.raw or json.dumps(row.values, ensure_ascii=False, default=str).encode("utf-8", "replace")
    entry = {
        "file": name,
        **({row.unit: row.place} if row.number else {}),
        "reason": reason,
        "raw": raw[:_RAW_BYTES].decode("utf-8", "replace").rstrip("\r\n"),
    }
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
