"""What is wrong with a text taken by itself: blank, a placeholder, broken encoding, nothing to read."""

from __future__ import annotations

import re
from typing import NamedTuple

from data_shards.findings.finding import EXAMPLES, Example, Finding, Places, Severity
from data_shards.findings.parts import Part

PLACEHOLDERS = frozenset(
    [
        "n/a",
        "na",
        "#n/a",
        "n.a.",
        "none",
        "null",
        "(null)",
        "<null>",
        "nil",
        "nan",
        "undefined",
        "unknown",
        "todo",
        "to do",
        "tbd",
        "tba",
        "fixme",
        "placeholder",
        "dummy",
        "xxx",
        "asdf",
        "[deleted]",
        "[removed]",
        "[empty]",
        "not available",
        "not applicable",
        "no text",
        "no content",
        "no description",
        "no title",
        "no answer",
        "no data",
        "content unavailable",
        "lorem ipsum",
        "-",
        "--",
        "---",
        "–",
        "—",
        "_",
        ".",
        "..",
        "...",
        "…",
        "?",
        "??",
        "???",
    ]
)
"""What people and exports write where there is no text; compared with the whole text, without case."""

_LONGEST_PLACEHOLDER = max(map(len, PLACEHOLDERS))
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKUP = re.compile(r"<[^<>]*>|&(?:#?\w{1,31});")
_INVISIBLE = re.compile(r"[\s\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe0f\ufeff]+")


class Symptom(NamedTuple):
    """Something that a text may suffer from."""

    severity: Severity
    advice: str
    is_empty: bool = False
    """It leaves nothing to learn from, so that too much of it is fatal."""


SYMPTOMS = {
    "blank": Symptom("warning", "drop these rows, or map the right column", is_empty=True),
    "placeholder": Symptom("warning", "drop these rows: the text only says that there is none", is_empty=True),
    "empty_after_cleaning": Symptom(
        "warning", "drop these rows: only markup or invisible characters are there", is_empty=True
    ),
    "missing_text": Symptom("note", "only the title is there; map the column of the text if there is one"),
    "replacement_character": Symptom("warning", "characters were lost before (U+FFFD); decode the source rightly"),
    "mojibake": Symptom("warning", "decoded with a wrong charset; import again with cleaning.unicode"),
    "control_character": Symptom("warning", "not part of a text; import again with cleaning.unicode"),
}


def symptoms(text: str, body: str) -> list[str]:
    """Return the names of what a text suffers from, see `SYMPTOMS`.

    Args:
        text: as the encoder reads it.
        body: without its title.
    """
    stripped = body.strip()
    if not stripped:
        return ["missing_text"] if text.strip() else ["blank"]
    found = []
    if (len(stripped) <= _LONGEST_PLACEHOLDER and stripped.casefold() in PLACEHOLDERS) or stripped[
        :11
    ].casefold() == "lorem ipsum":
        found.append("placeholder")
    elif not stripped[0].isalnum() and not _INVISIBLE.sub("", _MARKUP.sub("", stripped)):
        found.append("empty_after_cleaning" if text == body else "missing_text")
    if _CONTROL.search(text):
        found.append("control_character")
    return found if text.isascii() else found + _encoding_symptoms(text)


def _encoding_symptoms(text: str) -> list[str]:
    from ftfy.badness import is_bad

    if "\ufffd" in text:
        return ["replacement_character"]
    return ["mojibake"] if is_bad(text) else []  # it would take U+FFFD for mojibake, too


class TextChecks:
    """Looks at all texts of one part; keeps counts and the first examples, different ones."""

    def __init__(self, part: str, places: Places) -> None:
        """Begin for queries, positives, negatives or passages."""
        self._part = part
        self._places = places
        self._texts = 0
        self._counts = dict.fromkeys(SYMPTOMS, 0)
        self._examples: dict[str, list[Example]] = {name: [] for name in SYMPTOMS}

    def look(self, part: Part) -> None:
        """Take the texts of a batch."""
        self._texts += len(part.texts)
        for at, (text, body) in enumerate(zip(part.texts, part.bodies, strict=True)):
            for name in symptoms(text, body):
                self._counts[name] += 1
                examples = self._examples[name]
                if len(examples) < EXAMPLES:
                    example = self._places.example(int(part.ordinals[at]), part.ids[at], text)
                    if all(example.text != other.text for other in examples):
                        examples.append(example)

    def findings(self, max_empty_share: float) -> list[Finding]:
        """Return what was seen at all; a greater share of texts with nothing to read is fatal."""
        found = []
        for name, symptom in SYMPTOMS.items():
            if not (count := self._counts[name]):
                continue
            ruined = symptom.is_empty and count > max_empty_share * self._texts
            limit = f" (fatal above checks.max_empty_share = {max_empty_share:g})" if ruined else ""
            found.append(
                Finding(
                    name=f"{name}_{self._part}",
                    severity="fatal" if ruined else symptom.severity,
                    count=count,
                    of=self._texts,
                    unit=plural(self._part),
                    advice=symptom.advice + limit,
                    examples=tuple(self._examples[name]),
                )
            )
        return found


def plural(part: str) -> str:
    """Return a part's name for many."""
    return {"query": "queries"}.get(part, f"{part}s")
