"""One text in, the same text clean out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.html import HtmlRemover
from data_shards.cleaning.pii import PiiRedactor

Step = Callable[[str, Counter[str]], str]

# What ftfy would change in ASCII text: control characters, terminal escapes and line ends.
_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n?|[\u2028\u2029\x85]")
_BLANK = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INVISIBLE = re.compile("[\u00ad\u2060\ufeff]")  # soft hyphen, word joiner, byte order mark
_ZERO_WIDTH = re.compile("([^\u200b]?)\u200b+(?=(.?))", re.DOTALL)
_BLANKS_INSIDE = re.compile(r"(?<=\S) {2,}")
_EMPTY_LINES = re.compile(r"\n{3,}")


class TextCleaner:
    """The steps of a config, one after the other: HTML, Unicode, whitespace, PII.

    HTML comes first, since entities become characters there; PII last, since its patterns want plain blanks.
    """

    def __init__(self, config: CleaningConfig) -> None:
        """Load what the steps need; a library whose step is off is not imported."""
        self._steps: list[tuple[str, Step]] = []
        if config.html:
            self._steps.append(("html", HtmlRemover(boilerplate=config.boilerplate).clean))
        if config.unicode:
            self._steps.append(("unicode", _unicode_step()))
        if config.whitespace:
            self._steps.append(("whitespace", lambda text, _: tidy_whitespace(text)))
        if config.pii or config.pii_patterns:
            self._steps.append(("pii", PiiRedactor(config).clean))

    def clean(self, text: str, counts: Counter[str]) -> str:
        """Return the text after all steps; whatever they are, it can be written as UTF-8.

        Args:
            text: a query, a title or a passage's text.
            counts: a step that changes the text adds one under its name; PII also adds its findings, `pii_email` …
        """
        if not text.isascii() and _SURROGATE.search(text):
            text = _whole_characters(text)
            counts["surrogates"] += 1
        for name, step in self._steps:
            before, text = text, step(text, counts)
            if text != before:
                counts[name] += 1
        return text


def _whole_characters(text: str) -> str:
    """Join surrogate pairs to characters, and mark lone halves, which no shard could hold, as unknown."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tidy_whitespace(text: str) -> str:
    """Reduce blanks, line ends and invisible characters to what carries meaning.

    Every blank becomes a space, a run of them inside a line one space, more than one empty line one. Indentation
    stays: source code needs it.
    """
    if not text.isascii():
        text = _BLANK.sub(" ", _INVISIBLE.sub("", _LINE_END.sub("\n", text)))
        text = _ZERO_WIDTH.sub(_meaningful, text)
    elif "\r" in text:
        text = _LINE_END.sub("\n", text)
    if "\t" in text:
        text = "\n".join(_expand_tabs(line) for line in text.split("\n"))
    if "  " in text:
        text = _BLANKS_INSIDE.sub(" ", text)
    if " \n" in text:
        text = "\n".join(line.rstrip(" ") for line in text.split("\n"))
    return _EMPTY_LINES.sub("\n\n", text).strip()


def _meaningful(spaces: re.Match[str]) -> str:
    """Keep a zero-width space between letters of Thai, Khmer and the like, where it parts words; else it is junk."""
    before, after = spaces[1], spaces[2]
    return before if before.isascii() or after.isascii() else f"{before}\u200b"


def _expand_tabs(line: str) -> str:
    """Write tabs as four spaces where they indent, else as one."""
    body = line.lstrip("\t ")
    return line[: len(line) - len(body)].replace("\t", "    ") + body.replace("\t", " ")


def _unicode_step() -> Step:
    import ftfy

    # Entities belong to the HTML step: a text that teaches HTML needs its `&lt;`.
    settings = ftfy.TextFixerConfig(unescape_html=False, explain=False)

    def repair(text: str, _: Counter[str]) -> str:
        if text.isascii() and not _ASCII_CONTROL.search(text):
            return text
        return ftfy.fix_text(text, settings)

    return repair
