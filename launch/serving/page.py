"""The page that tries queries in a browser: one file, nothing from elsewhere, and every text shown as text."""

from __future__ import annotations

import secrets

from index_build.search import Searcher
from launch.pages import render_page


def search_page(searcher: Searcher, *, needs_token: bool, most: int) -> tuple[str, str]:
    """Return a nonce, without which the browser runs nothing, and the page.

    Args:
        searcher: what is said of the index is its.
        needs_token: whether the page asks for the token.
        most: passages that may be wanted.
    """
    made, nonce = searcher.index.manifest, secrets.token_urlsafe(16)
    text = render_page(
        "search.html",
        styles=("report.css", "search.css"),
        nonce=nonce,
        version=made.version,
        passages=f"{made.ntotal:,}",
        factory=made.factory,
        recall=f"{made.recall.value:.3f}",
        recall_k=made.recall.k,
        needs_token=needs_token,
        most=most,
    )
    return nonce, text


def page_headers(nonce: str) -> dict[str, str]:
    """Return the headers that keep anything else from running in the page, or the page from being framed."""
    own = f"connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
    policy = f"default-src 'none'; img-src data:; {own}"
    return {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
