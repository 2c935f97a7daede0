"""What is let in: who knows the token, and requests of bounded size."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UserError

TOKEN_VARIABLE = "DIPOLE_SERVE_TOKEN"
_LEAST_TOKEN_CHARS = 16


class RefusedError(Exception):
    """A request that is not served, with the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        """Keep the status beside the reason.

        Args:
            status: of HTTP.
            reason: one line for whoever sent it.
        """
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a request may be."""

    k: int = 1_000
    """Passages wanted for each text."""
    texts: int = 64
    """Texts in one request."""
    chars: int = 10_000
    """Characters of one text."""
    body_bytes: int = 1 << 20
    """The whole request."""

    def __post_init__(self) -> None:
        """Check that something is let in."""
        if min(self.k, self.texts, self.chars, self.body_bytes) < 1:
            raise UserError("limits of k, texts, chars and body bytes must all be at least 1")

    def check_size(self, headers: Mapping[str, str]) -> None:
        """Refuse a request by its announced size.

        Raises:
            RefusedError: it is too large, or says no size.
        """
        said = headers.get("content-length", "")
        if not said.isdigit():
            raise RefusedError(411, "send a Content-Length")
        if int(said) > self.body_bytes:
            raise RefusedError(413, f"the request has {said} bytes, at most {self.body_bytes} are taken")

    def check(self, texts: list[str], k: int) -> None:
        """Refuse a search that is too large, or empty.

        Raises:
            RefusedError: it is.
        """
        if not 1 <= k <= self.k:
            raise RefusedError(422, f"k is {k}, wanted 1 to {self.k}")
        if not 1 <= len(texts) <= self.texts:
            raise RefusedError(422, f"{len(texts)} queries in one request, wanted 1 to {self.texts}")
        for text in texts:
            if not text.strip():
                raise RefusedError(422, "a query is empty; give some words")
            if len(text) > self.chars:
                raise RefusedError(422, f"a query has {len(text)} characters, at most {self.chars} are taken")


def read_token(file: Path | None) -> str | None:
    """Return the token that requests have to bring: of a file, else of the environment; None where there is none.

    Raises:
        UserError: the file is missing or readable by others, or the token is too short.
    """
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(f"token file {file} cannot be read ({error.strerror})") from None
        if file.stat().st_mode & 0o077:
            raise UserError(f"others may read {file}; chmod 600 it")
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return None
    if len(token) < _LEAST_TOKEN_CHARS or not token.isascii():
        raise UserError(
            f"the token has to be at least {_LEAST_TOKEN_CHARS} ASCII characters; try `openssl rand -hex 24`"
        )
    return token


def check_token(wanted: str | None, headers: Mapping[str, str]) -> None:
    """Refuse a request that does not bring the token.

    Raises:
        RefusedError: it does not.
    """
    if wanted is None:
        return
    kind, _, brought = headers.get("authorization", "").partition(" ")
    # In a time that does not tell how much of it was right.
    if kind.lower() != "bearer" or not hmac.compare_digest(brought.strip().encode(), wanted.encode()):
        raise RefusedError(401, "bring the token: Authorization: Bearer …")
