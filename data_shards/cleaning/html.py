"""HTML to plain text, and only HTML: code, mathematics and generics keep their angle brackets.

A text is HTML if it says so (doctype, `<html>`, `<body>`), if an element of HTML is opened and closed again, or if
one stands there that prose and code never write so: `<br>`, `<img src=…>`, `<a href=…>`. What is between backticks,
or in a string that begins with a tag, is talked about and does not count. In a text that is HTML, a `<` that begins
no tag of HTML is kept as a character.
"""

from __future__ import annotations

import html
import re
from collections import Counter

_NAMES = (
    "a|abbr|acronym|address|area|article|aside|audio|b|base|bdi|bdo|big|blockquote|body|br|button|canvas|"
    "caption|center|cite|code|col|colgroup|data|datalist|dd|del|details|dfn|dialog|dir|div|dl|dt|em|embed|"
    "fieldset|figcaption|figure|font|footer|form|frame|frameset|h1|h2|h3|h4|h5|h6|head|header|hgroup|hr|html|"
    "i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|menu|meta|meter|nav|noscript|object|ol|"
    "optgroup|option|output|p|param|picture|pre|progress|q|rp|rt|ruby|s|samp|script|search|section|select|"
    "slot|small|source|span|strike|strong|style|sub|summary|sup|svg|table|tbody|td|template|textarea|tfoot|th|"
    "thead|time|title|tr|track|tt|u|ul|var|video|wbr"
)
# Attributes without a value: only those that HTML has, or `a<b and c>d` would be a tag.
_VALUELESS = "async|autoplay|checked|controls|defer|disabled|hidden|loop|multiple|muted|nowrap|required|selected"
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s"'=<>`]+)"""
_ATTRIBUTE = rf"""\s+(?:[a-z_:@][\w:.-]*\s*=\s*{_VALUE}|(?:{_VALUELESS})\b)"""
_TAG = re.compile(rf"<(/?)({_NAMES})((?:{_ATTRIBUTE})*)\s*/?>", re.IGNORECASE)
_PAGE = re.compile(r"<!doctype\s+html|<html[\s>]|<body[\s>]", re.IGNORECASE)
_QUOTED_CODE = re.compile(r"""```.*?```|`[^`\n]*`|"<[^"\n]*"|'<[^'\n]*'""", re.DOTALL)
_LOOSE_BRACKET = re.compile(rf"<(?!/?(?:{_NAMES})(?:{_ATTRIBUTE})*\s*/?>|!--|!doctype)", re.IGNORECASE)
# With its semicolon: `?a=1&copy=2` is no copyright sign.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
_VOID = {"br", "hr", "img", "input", "wbr"}
_SELDOM_CLOSED = {"dd", "dt", "li", "option", "p", "td", "th", "tr"}


class HtmlRemover:
    """Turns HTML into text, whole pages on request into their main content."""

    def __init__(self, *, boilerplate: bool) -> None:
        """Load the parser.

        Args:
            boilerplate: of whole pages, leave out navigation, footers and the like.
        """
        from resiliparse.extract.html2text import extract_plain_text

        self._extract = extract_plain_text
        self._boilerplate = boilerplate

    def clean(self, text: str, counts: Counter[str]) -> str:
        """Return the text without markup; counts `boilerplate` where main content was taken from a page."""
        if "<" not in text:
            # `AT&amp;T` was taken out of a page; what shows entities as examples has them in backticks, or has a `<`.
            return text if "`" in text else _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
        if not is_html(text):
            return text
        page = _PAGE.search(text) is not None
        markup = _LOOSE_BRACKET.sub("&lt;", text)
        plain = self._plain(markup, main_content=False)
        if not (page and self._boilerplate):
            return plain
        content = self._plain(markup, main_content=True)
        if content != plain:
            counts["boilerplate"] += 1
        # A page that is all menu gives nothing; it is for the length limits to drop it.
        return content

    def _plain(self, markup: str, *, main_content: bool) -> str:
        plain: str = self._extract(
            markup, preserve_formatting=True, main_content=main_content, list_bullets=False, alt_texts=False,
            links=False, form_fields=False, noscript=False, comments=False,
        )  # fmt: skip
        return plain


def is_html(text: str) -> bool:
    """Tell whether a text is HTML, rather than one with angle brackets in it."""
    if _PAGE.search(text):
        return True
    prose = _QUOTED_CODE.sub("", text)
    opened: set[str] = set()
    loose: set[str] = set()  # opened where no identifier stands before, as it does in `Ptr<p>`
    for tag in _TAG.finditer(prose):
        closing, name, attributes = tag[1], tag[2].lower(), tag[3]
        if closing:
            if name in opened:
                return True
            continue
        if not prose[tag.start() - 1 : tag.start()].isalnum():
            loose.add(name)
        again = name in opened and name in _SELDOM_CLOSED and name in loose
        if again or name in _VOID or attributes.strip():
            return True
        opened.add(name)
    return False
