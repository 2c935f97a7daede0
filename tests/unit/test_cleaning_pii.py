"""What is personal data and what only looks so. Numbers are published test numbers or made up."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.pii import PiiRedactor
from data_shards.errors import UserError

ALL = CleaningConfig(pii=("email", "phone", "card", "ip", "iban"), pii_phone_regions=("US", "DE", "GB", "FR", "IN"))

FOUND = [
    ("write to bob@example.com.", "write to <EMAIL>."),
    ("Bob <bob.o'neil+news@mail.example.co.uk>, Ann <a_n@example.io>", "Bob <bob.o'<EMAIL>>, Ann <<EMAIL>>"),
    ("mailto:info@müller.de?subject=x", "mailto:<EMAIL>?subject=x"),
    ("联系我bob@example.com谢谢", "联系我<EMAIL>谢谢"),
    ("(bob@example.museum)", "(<EMAIL>)"),
    ("call +1 650-253-0000 now", "call <PHONE> now"),
    ("tel. (650) 253-0000", "tel. <PHONE>"),
    ("Tel: +49 30 901820, Fax: 030 901821", "Tel: <PHONE>, Fax: <PHONE>"),
    ("+33 1 42 68 53 00", "<PHONE>"),
    ("ring 020 7946 0018 or +442079460018", "ring <PHONE> or <PHONE>"),
    ("card 4111 1111 1111 1111 exp 12/27", "card <CARD> exp 12/27"),
    ("card 4111 1111 1111 1111 2031", "card <CARD> 2031"),
    ("card 4111 1111 1111 1111 24 hours", "card <CARD> 24 hours"),
    ("5555555555554444, 3782 822463 10005; 6011-1111-1111-1117.", "<CARD>, <CARD>; <CARD>."),
    ('{"card":"4012888888881881"}', '{"card":"<CARD>"}'),
    ("30569309025904", "<CARD>"),
    ("from 203.0.113.77 to 10.20.30.40/24", "from <IP> to <IP>/24"),
    ("http://192.168.0.17:8080/x and root@172.16.254.1:", "http://<IP>:8080/x and root@<IP>:"),
    ("ip=198.51.100.23,", "ip=<IP>,"),
    ("The host is 198.51.100.23.", "The host is <IP>."),
    ("from 2001:db8:85a3::8a2e:370:7334 and [fe80::1ff:fe23:4567:890a]", "from <IP> and [<IP>]"),
    ("2001:0db8:0000:0000:0000:ff00:0042:8329", "<IP>"),
    ("DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX", "<IBAN> BIC COBADEFFXXX"),
    ("AT61 1904 3002 3457 3201 VIA WEB", "<IBAN> VIA WEB"),
    ("IBAN: GB82WEST12345698765432.", "IBAN: <IBAN>."),
    ("FR14 2004 1010 0505 0001 3M02 606", "<IBAN>"),
]  # fmt: skip

KEPT = [
    # versions, sections, dates, times
    "version 1.2.3.4, v10.20.30.40, pkg==10.20.30.40, pkg-10.20.30.40.tar.gz, Chrome/91.0.4472.124, build 10.0.19.41",
    "see section 1.2.3.14 and 10.4.2.1.5, EC 1.14.16.2, network 10.20.0.0/16, a cutoff of 0.408730",
    "Python 3.11.7 on 2024-01-15 10:30:00, 15.01.2024, 01/15/2024, 20240115T103000Z, 1705314600, 1705314600123456",
    "2024-01-15T10:30:00.123456+00:00",
    "12:34:56:78 and 1:2:3",
    # networks that are no one's
    "127.0.0.1 localhost, 0.0.0.0:80, 255.255.255.0, 8.8.8.8, 1.1.1.1, 224.0.0.251, ::1, 999.1.1.10",
    # hashes, identifiers, book numbers
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "md5 d41d8cd98f00b204e9800998ecf8427e commit 4111111111111111aa",
    "550e8400-e29b-41d4-a716-446655440000",
    "ISBN 978-3-16-148410-0, ISBN-10 0-306-40615-2, 9783161484100, ISSN 2049-3630, doi 10.1038/s41586-020-2649-2",
    "1234567812345670, 4222222222222 and 9111111111111111110 pass Luhn, and no one issues them",
    "EAN 4006381333931, order 4111111111111112, 1234 5678 9012 3456, item 1234567890123",
    "arXiv:2006.11239, PMID 12345678, RFC 2119, CVE-2021-44228, bugzilla 1234567",
    "population 1 402 112 000, 3.141592653589793, 6.02214076e23, 10 000 000 000, 12,345,678,901",
    "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]",
    "pages 1234-1245, 2019-2020, 100-200-300",
    # code
    "@app.route('/x') def f(): return a@b.T + x@w.mean(axis=0)",
    "std::vector<int>::iterator, abc::def, dead::beef, Foo::Bar::baz, a::b::c",
    "logo@2x.png, lodash@4.17.21, react@latest, user@host, @someone, git@github.example:team/repo.git",
    "x = 0xDEADBEEF12345678; y = 1234567890123456789; MAC 00:1B:44:11:3A:B7",
    "aa:bb:cc:dd:ee:ff:00:11:22:33 fingerprint 2a:01:4f:8c:00:00:11:22",
    "AB12 CDEF GHIJ KLMN, DE89 3704 0044 0532 0130 01",
    "SELECT * FROM t WHERE id IN (6502530000, 2079460018)",
]  # fmt: skip


def redact(text: str, config: CleaningConfig = ALL) -> str:
    return PiiRedactor(config).clean(text, Counter())


@pytest.mark.parametrize(("text", "wanted"), FOUND)
def test_personal_data_are_replaced(text, wanted):
    assert redact(text) == wanted


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_personal_stays(text):
    assert redact(text) == text


def test_finds_are_counted_by_kind():
    counts = Counter()
    PiiRedactor(ALL).clean("bob@example.com, ann@example.com and 198.51.100.23", counts)
    assert counts == {"pii_email": 2, "pii_ip": 1}


def test_only_the_kinds_asked_for_are_looked_for():
    config = CleaningConfig(pii=("email",))
    assert redact("bob@example.com 198.51.100.23", config) == "<EMAIL> 198.51.100.23"


def test_national_numbers_need_their_country():
    text = "tel. (650) 253-0000, +49 30 901820"
    assert redact(text, CleaningConfig(pii=("phone",))) == "tel. (650) 253-0000, <PHONE>"
    assert redact(text, CleaningConfig(pii=("phone",), pii_phone_regions=("US",))) == "tel. <PHONE>, <PHONE>"


def test_own_patterns_come_first_and_are_counted():
    config = CleaningConfig(pii=("email",), pii_patterns=(r"STAFF=\bE\d{5}\b", r"LOGIN=\w+@corp\.example"))
    counts = Counter()
    assert (
        PiiRedactor(config).clean("é E12345 ann@corp.example bob@example.com", counts) == "é <STAFF> <LOGIN> <EMAIL>"
    )
    assert counts == {"pii_staff": 1, "pii_login": 1, "pii_email": 1}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no equals sign", r"cannot read 'no equals sign' in cleaning.pii_patterns; wanted NAME=REGEX"),
        ("lower=x", r"cannot read 'lower=x'"),
        ("BAD=(unclosed", r"pattern BAD in cleaning.pii_patterns is not accepted \(missing \).*\)"),
        (r"BACK=(a)\1", r"pattern BACK .* RE2 syntax knows neither look-around nor back references"),
        ("LOOK=(?<=x)y", r"pattern LOOK .* neither look-around"),
        ("EMPTY=a*", r"pattern EMPTY in cleaning.pii_patterns matches empty text"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_before_any_text_is_read(pattern, message, capfd):
    with pytest.raises(UserError, match=message):
        CleaningConfig(pii_patterns=(pattern,))
    assert capfd.readouterr().err == "", "the library wrote its own message"


def test_two_patterns_of_one_name_are_refused():
    with pytest.raises(UserError, match="names STAFF twice"):
        CleaningConfig(pii_patterns=("STAFF=a", "STAFF=b"))


HOSTILE = {
    "nested repeats": "a" * 50_000,
    "at signs": "a@" * 50_000,
    "dots": "a." * 50_000 + "@",
    "digits": "1" * 50_000,
    "spaced digits": "4 " * 25_000,
    "capitals": "DE89 " * 20_000,
    "colons": "2001:" * 8_000,
    "plus signs": "+1 650 " * 5_000,
    "addresses": "10.20.30." * 4_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_stays_bounded_on_hostile_text(name):
    config = CleaningConfig(pii=ALL.pii, pii_phone_regions=("US",), pii_patterns=("NESTED=(a+)+b",))
    start = time.process_time()
    redact(HOSTILE[name], config)
    # Linear work takes a tenth of this; a quadratic pattern takes minutes.
    assert time.process_time() - start < 5
