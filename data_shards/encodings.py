"""Texts that are no UTF-8: told apart from what is, and named by what they look like."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NOT_IN_WINDOWS_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_WESTERN_SHARE = 1 / 3  # of letters beyond ASCII: of other languages the bytes alone do not tell the encoding


def not_utf8(raw: bytes, why: str = "") -> str:
    """Say of bytes that are no UTF-8 what they look like, and what to do.

    Args:
        raw: some of the text, a line at the least.
        why: what was met, and where.
    """
    encoding = ""
    if raw[:2] in _UTF16_MARKS:
        encoding = "UTF-16"
    elif sum(byte > 127 for byte in raw) < _WESTERN_SHARE * len(raw) and not _NOT_IN_WINDOWS_1252.search(raw):
        encoding = "WINDOWS-1252"
    because = f" ({why})" if why else ""
    looks = f"it looks like {encoding}, " if encoding else ""
    return f"not UTF-8 text{because}; {looks}convert the file with `iconv -f {encoding or 'ENCODING'} -t UTF-8`"


def undecoded(texts: Sequence[str]) -> bytes | None:
    """Return the bytes of texts that were read with `surrogateescape`, where some are no UTF-8; else None."""
    joined = ",".join(texts)
    if joined.isascii() or not _ESCAPED_BYTE.search(joined):
        return None
    return joined.encode("utf-8", "surrogateescape")
