"""Personal data out of texts, with as little else as can be.

Each kind has a pattern that finds candidates and a check that throws out look-alikes: Luhn and issuer ranges for
cards, the check digits and lengths of each country for IBANs, national numbering plans for phones, `ipaddress` for
addresses. A corpus of documentation is full of version numbers, hashes, ISBNs, dates and timestamps; none of them may
be eaten.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from data_shards.cleaning.config import CleaningConfig, PiiKind
from data_shards.cleaning.patterns import compile_patterns

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

# ASCII, or the Chinese words before an address that stands without a blank would be part of it.
_LETTER = r"A-Za-z\u00c0-\u024f"  # domains may have accents
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}(?<!\.)@"  # RFC 5321 allows 64; the bound keeps the search linear as well
    rf"(?:[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?\.){{1,8}}([{_LETTER}]{{2,24}})"
    rf"(?![\w{_LETTER}@(]|\.\w|:[\w/~])",
    re.ASCII,
)
# `icon@2x.png`, `styles@1.css`: files, no mailboxes. `name@host.example(`, excluded above, is matrix code,
# and `git@host.example:path` a place to clone from.
_FILE_ENDING = re.compile(
    r"png|jpe?g|gif|svg|webp|ico|css|js|ts|json|html|xml|ya?ml|py|t?gz|zip|md|txt", re.IGNORECASE
)
_PHONE_LOOK = re.compile(r"\d(?:[^\w\n]{0,3}\d){6}")
_CARD = re.compile(r"(?<![\w.,/@-])\d(?:[ -]?\d){12,18}(?![\w@]|[.,:-]\d)", re.ASCII)
_CARD_GROUPS = re.compile(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5}|\d+")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IPV4 = re.compile(r"(?<![\w.+-])(?<![=~<>]=)(?<![^/]/)\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)", re.ASCII)
# EC numbers name enzymes.
_NUMBER_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release|build|section|chapter|clause|EC)|§)\.?:?\s*$", re.IGNORECASE
)
# Global, unique local and link-local addresses; what begins otherwise, such as `abc::def`, is a name in some code.
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe[89ab][0-9a-f]):[0-9a-f:]{2,35}(?:\d+(?:\.\d+){3})?(?![\w:])",
    re.IGNORECASE | re.ASCII,
)


class PiiRedactor:
    """Replaces what is found by the name of its kind, such as `<EMAIL>`."""

    def __init__(self, config: CleaningConfig) -> None:
        """Make ready the kinds asked for: the user's own first, then in the order of this file."""
        finders: dict[PiiKind, Callable[[], Finder]] = {
            "email": lambda: _emails,
            "iban": _iban_finder,
            "card": _card_finder,
            "ip": lambda: _addresses,
            "phone": lambda: _phone_finder(config.pii_phone_regions),
        }
        own = compile_patterns(config.pii_patterns)
        self._finders: list[tuple[str, Finder]] = [(name, _matches_of(pattern)) for name, pattern in own.items()]
        self._finders += [(kind.upper(), make()) for kind, make in finders.items() if kind in config.pii]

    def clean(self, text: str, counts: Counter[str]) -> str:
        """Return the text redacted; each find counts under `pii_` and its kind."""
        for name, find in self._finders:
            pieces, end = [], 0
            for begin, stop in find(text):
                pieces += [text[end:begin], f"<{name}>"]
                end = stop
            if pieces:
                counts[f"pii_{name.lower()}"] += len(pieces) // 2
                text = "".join(pieces) + text[end:]
        return text


def _matches_of(pattern: Any) -> Finder:
    return lambda text: (match.span() for match in pattern.finditer(text) if match.end() > match.start())


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if not _FILE_ENDING.fullmatch(match[1]):
            yield match.span()


def _addresses(text: str) -> Iterator[Span]:
    found = [match.span() for match in _IPV4.finditer(text) if _is_ipv4(match, text)]
    if "::" in text or text.count(":") >= 7:
        found += [match.span() for match in _IPV6.finditer(text) if _is_ipv6(match[0])]
    yield from sorted(found)


def _is_ipv4(match: re.Match[str], text: str) -> bool:
    """Tell an address from a version; what points to no machine (0.0.0.0, 127.0.0.1, netmasks) is none either."""
    parts = match[0].split(".")
    # 1.2.3.4 is a version or a section far more often than an address, and 8.8.8.8 and 1.1.1.1 are no person's.
    if all(len(part) == 1 for part in parts) or any(len(part) > 1 and part[0] == "0" for part in parts):
        return False
    if _NUMBER_BEFORE.search(text, max(0, match.start() - 12), match.start()):
        return False
    if parts[3] == "0" and text[match.end() : match.end() + 1] == "/":  # a network, not a machine
        return False
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_multicast or parts[0] in ("0", "255"))


def _is_ipv6(candidate: str) -> bool:
    try:
        ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    return True


def _card_finder() -> Finder:
    from stdnum import luhn

    def is_card(candidate: str) -> bool:
        number = candidate.replace(" ", "").replace("-", "")
        return bool(_CARD_GROUPS.fullmatch(candidate)) and _is_issued(number) and luhn.is_valid(number)

    return lambda text: _longest_valid(text, _CARD, is_card)


def _is_issued(number: str) -> bool:
    """Tell whether an issuer has numbers of this beginning and length; one number in ten passes Luhn by chance."""
    four, length = int(number[:4]), len(number)
    if number[0] == "4":  # Visa; its old 13 digits are those of German EANs
        return length in (16, 19)
    if 5100 <= four <= 5599 or 2221 <= four <= 2720:  # Mastercard
        return length == 16
    if number[:2] in ("34", "37"):  # American Express
        return length == 15
    if number[:2] in ("36", "38", "39") or 3000 <= four <= 3059:  # Diners Club
        return length == 14
    # Discover, JCB, UnionPay
    return length in (16, 19) and (four == 6011 or 3528 <= four <= 3589 or number[:2] in ("62", "64", "65"))


def _iban_finder() -> Finder:
    from stdnum import iban

    return lambda text: _longest_valid(text, _IBAN, iban.is_valid)


def _longest_valid(text: str, pattern: re.Pattern[str], is_valid: Callable[[str], bool]) -> Iterator[Span]:
    """Yield what is valid of each match, whole or cut at a blank: `BIC` or `2031` may have come along."""
    for match in pattern.finditer(text):
        stop = match.end()
        while stop > match.start():
            if is_valid(text[match.start() : stop]):
                yield match.start(), stop
                break
            stop = text.rfind(" ", match.start(), stop)


def _phone_finder(regions: tuple[str, ...]) -> Finder:
    from phonenumbers import Leniency, PhoneNumberMatcher

    def find(text: str) -> Iterator[Span]:
        if not _PHONE_LOOK.search(text) or (not regions and "+" not in text):  # finding candidates proper is slow
            return
        found: set[Span] = set()
        for region in regions or (None,):
            for match in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
                if "+" in match.raw_string or _is_grouped(match.raw_string):
                    found.add((match.start, match.end))
        yield from _without_overlaps(found)

    return find


def _is_grouped(number: str) -> bool:
    """Tell a phone number from digits in a row, an identifier or a timestamp as often as not, and from a decimal."""
    return len(re.findall(r"\d+", number)) > 1 and not re.fullmatch(r"\d+[.,]\d+", number)


def _without_overlaps(spans: set[Span]) -> Iterator[Span]:
    """Yield spans in order; of overlapping ones the first, and of those the longest."""
    end = 0
    for begin, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if begin >= end:
            yield begin, stop
            end = stop
