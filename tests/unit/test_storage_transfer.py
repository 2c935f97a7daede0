"""Fetches that break off, wrong content, refusals: against a scripted source, by hand."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections.abc import Iterator

import pytest

from data_shards.errors import ShardCorruptError, UserError
from data_shards.remote import transfer
from data_shards.remote.transfer import (
    RefusedError,
    RemoteStat,
    Retry,
    TransientError,
    UnlikeError,
    Wanted,
    fetch,
    stat,
    without_secrets,
)

CONTENT = b"abcdef"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Step = bytes | Exception


class Scripted:
    """Answers each request with the next list of blocks and errors; notes from where it was asked."""

    location = "store://place"
    tells_missing = True

    def __init__(self, *answers: list[Step]) -> None:
        self.answers = list(answers)
        self.begins: list[int] = []

    def stat(self, name: str) -> RemoteStat:
        step = self.answers.pop(0)[0]
        if isinstance(step, Exception):
            raise step
        return RemoteStat(len(step), "")

    def blocks(self, name: str, begin: int, size: int | None) -> Iterator[bytes]:
        self.begins.append(begin)
        for step in self.answers.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_FIRST_WAIT_S", 1e-4)


def bring(source: Scripted, wanted: Wanted, retries: int = 2) -> bytes:
    file = io.BytesIO()
    received = fetch(source, wanted, file, Retry(retries=retries, stopped=threading.Event()))
    file.truncate()
    assert received == len(file.getvalue())
    return file.getvalue()


BROKEN = TransientError("broken off")


def test_a_broken_fetch_goes_on_from_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    source = Scripted([b"ab", BROKEN], [b"c", BROKEN], [b"def"])
    assert bring(source, Wanted("a.tar", 6, SHA256)) == CONTENT
    assert source.begins == [0, 2, 3]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2
    assert warned[0].startswith("a.tar of store://place: broken off; retry 1 of 2 in ")


def test_tries_are_counted_anew_whenever_bytes_came() -> None:
    source = Scripted(*([step] for step in (BROKEN, BROKEN)), [b"a", BROKEN], [BROKEN], [b"bcdef"])
    assert bring(source, Wanted("a.tar", 6, SHA256)) == CONTENT


def test_a_fetch_that_keeps_breaking_is_given_up_in_one_line() -> None:
    source = Scripted([BROKEN], [BROKEN], [BROKEN])
    line = r"a\.tar could not be fetched from store://place: broken off \(3 tries\); check that the store answers, or"
    with pytest.raises(UserError, match=line):
        bring(source, Wanted("a.tar"))
    assert source.begins == [0, 0, 0]


def test_breaking_after_the_last_byte_is_no_break() -> None:
    assert bring(Scripted([CONTENT, BROKEN]), Wanted("a.tar", 6, SHA256)) == CONTENT


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError("x"), r"store://place has no a\.tar; check the location"),
        (
            RefusedError("HTTP status 403"),
            r"store://place refuses a\.tar: HTTP status 403; check the location and your",
        ),
    ],
)
def test_what_no_retry_mends_is_said_at_once(error: Exception, line: str) -> None:
    source = Scripted([error])
    with pytest.raises(UserError, match=line):
        bring(source, Wanted("a.tar"))
    assert source.begins == [0]


def test_a_wrong_checksum_is_fetched_anew() -> None:
    """And the longer first try leaves nothing behind the second."""
    source = Scripted([b"abcdeX"], [CONTENT])
    assert bring(source, Wanted("a.tar", 6, SHA256)) == CONTENT
    assert bring(Scripted([b"abcdefgh"], [CONTENT]), Wanted("a.tar", None, SHA256)) == CONTENT


def test_the_same_wrong_checksum_twice_is_corrupt() -> None:
    source = Scripted([b"abcdeX"], [b"abcdeX"])
    found = hashlib.sha256(b"abcdeX").hexdigest()
    line = (
        rf"a\.tar at byte 0: its sha256 is {found}, the manifest says {SHA256} \(fetched 2 times from store://place\)"
    )
    with pytest.raises(ShardCorruptError, match=line):
        bring(source, Wanted("a.tar", 6, SHA256), retries=5)
    assert len(source.begins) == 2


def test_ever_new_wrong_checksums_are_given_up_too() -> None:
    source = Scripted([b"1bcdef"], [b"2bcdef"], [b"3bcdef"])
    with pytest.raises(ShardCorruptError, match=r"fetched 3 times"):
        bring(source, Wanted("a.tar", 6, SHA256))


def test_without_retries_the_first_wrong_one_is_it() -> None:
    with pytest.raises(ShardCorruptError, match=r"fetched 1 times"):
        bring(Scripted([b"abcdeX"]), Wanted("a.tar", 6, SHA256), retries=0)


def test_a_file_that_ends_early_or_goes_on_is_corrupt_at_that_byte() -> None:
    with pytest.raises(ShardCorruptError, match=r"a\.tar at byte 3: the file ends here, the manifest says at 6"):
        bring(Scripted([b"abc"], [b"abc"]), Wanted("a.tar", 6))
    with pytest.raises(
        ShardCorruptError, match=r"a\.tar at byte 6: it goes on here, the manifest says it has 6 bytes"
    ):
        bring(Scripted([b"abcd", b"efg"], [b"abcd", b"efg"]), Wanted("a.tar", 6))
    unlike = UnlikeError("the store has 3 bytes of it, the manifest says 6", 3)
    with pytest.raises(
        ShardCorruptError, match=r"a\.tar at byte 3: the store has 3 bytes of it, the manifest says 6"
    ):
        bring(Scripted([unlike], [unlike]), Wanted("a.tar", 6))


def test_errors_of_the_disk_are_not_the_stores() -> None:
    class FullFile(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    source = Scripted([CONTENT])
    with pytest.raises(OSError, match="No space left"):
        fetch(source, Wanted("a.tar"), FullFile(), Retry(retries=2, stopped=threading.Event()))
    assert len(source.begins) == 1


def test_a_closed_dataset_fetches_no_further() -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(UserError, match="a.tar was not fetched: its dataset is closed"):
        fetch(Scripted([b"ab", b"cd"]), Wanted("a.tar"), io.BytesIO(), Retry(retries=2, stopped=stopped))


def test_waits_double_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    stopped = threading.Event()
    monkeypatch.setattr(stopped, "wait", waits.append)
    monkeypatch.setattr(transfer, "_FIRST_WAIT_S", 0.5)
    retry = Retry(retries=8, stopped=stopped)
    for failures in range(1, 9):
        retry.wait(Scripted(), Wanted("a.tar"), BROKEN, failures)
    for wait, longest in zip(waits, (0.5, 1, 2, 4, 8, 16, 30, 30), strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == 8


def test_looking_up_retries_and_tells_missing() -> None:
    retry = Retry(retries=2, stopped=threading.Event())
    assert stat(Scripted([BROKEN], [BROKEN], [b"abc"]), "a", retry) == RemoteStat(3, "")
    assert stat(Scripted([FileNotFoundError("a")]), "a", retry) is None
    with pytest.raises(UserError, match="could not be fetched"):
        stat(Scripted([BROKEN], [BROKEN], [BROKEN]), "a", retry)
    with pytest.raises(UserError, match="refuses a: no"):
        stat(Scripted([RefusedError("no")]), "a", retry)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host/a?token=x", "https://host/a"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("403, url='https://host/a?sig=x&se=y' here", "403, url='https://host/a' here"),
        ("a question? yes, at noon", "a question? yes, at noon"),
        ("two: http://a@b/ and http://c/?d", "two: http://b/ and http://c/"),
    ],
)
def test_secrets_are_taken_out(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
