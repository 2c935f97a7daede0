"""A page taken apart: its tags, attributes and texts, and that it needs nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Outline(HTMLParser):
    """Collects tags, attributes and text of a page, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.texts.append(" ".join(data.split()))


def assert_offline(page: str) -> None:
    """See that a page opens without a network: no script, nothing fetched, ids that are its own."""
    parsed = Outline(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    names = {name.lower() for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not {"src", "href", "srcset", "action"} & names
    references = [value for name, value in parsed.attributes if name == "xlink:href"]
    assert all(value.startswith("#") for value in references)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
