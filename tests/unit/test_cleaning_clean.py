"""Texts before and after, and what is counted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import pytest

from data_shards.cleaning.clean import TextCleaner, tidy_whitespace
from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.html import is_html
from data_shards.cleaning.lengths import LengthLimits
from data_shards.errors import UserError

HTML = CleaningConfig(html=True)
NOTHING = CleaningConfig(unicode=False, whitespace=False)

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {color: red}</style></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<main><article><h1>Why the sky is blue</h1>
<p>Light is scattered by molecules of the air, and blue light more than red, as Rayleigh found in 1871.</p>
<p>At sunset its way through the air is longer, so that little of the blue arrives.</p></article></main>
<footer>Copyright, imprint, terms of use</footer><script>track()</script></body></html>"""


def clean(text: str, config: CleaningConfig) -> str:
    return TextCleaner(config).clean(text, Counter())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("schÃ¶n â€” cafÃ©", "schön — café"),
        ("cafe\u0301", "café"),
        ("ﬁne ｆｕｌｌ", "fine full"),
        ("don’t “quote”", 'don\'t "quote"'),
        ("\x1b[31mred\x1b[0m\x00", "red"),
        ("\ud83d\ude00 and \ud800", "😀 and \ufffd"),
        ("naïve – 日本語 हिन्दी ½", "naïve – 日本語 हिन्दी ½"),
        ("a &lt; b &amp; c", "a &lt; b &amp; c"),
    ],
)
def test_unicode_is_repaired_and_sound_text_is_not_touched(text, wanted):
    assert clean(text, CleaningConfig()) == wanted


def test_no_half_character_is_left_even_with_all_steps_off():
    assert clean("a\ud83d\ude00\udc00", NOTHING) == "a😀\ufffd"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  a \t b\u00a0\u3000c  ", "a b c"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("def f():\n\tif x:\n\t\treturn  1   \n", "def f():\n    if x:\n        return 1"),
        ("soft\u00adhyphen \ufeffmark a\u200bb", "softhyphen mark ab"),
        ("ไทย\u200bภาษา می\u200cخواهم 👩\u200d💻", "ไทย\u200bภาษา می\u200cخواهم 👩\u200d💻"),
    ],
)
def test_whitespace_is_tidied_and_indentation_stays(text, wanted):
    assert tidy_whitespace(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<p>Hello <b>wor</b>ld</p><p>Second &amp; third</p>", "Hello world\n\nSecond & third"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<p>One<p>Two", "One\n\nTwo"),
        ('see <a href="https://example.com/x">the page</a>', "see the page"),
        ("<pre>\nif a &lt; b:\n    pass\n</pre>", "if a < b:\n    pass"),
        ("<P CLASS=x>Upper</P>", "Upper"),
        ('<p>He said "<b>wow</b>"</p>', 'He said "wow"'),
        ("<script>alert(1)</script><p>x</p>", "x"),
        ("<p>a List<int> and a<b and c>d</p>", "a List<int> and a<b and c>d"),
        ("AT&amp;T&nbsp;&#169; ?a=1&copy=2", "AT&T © ?a=1&copy=2"),
    ],
)
def test_html_becomes_text(text, wanted):
    assert clean(text, HTML) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "if (a<b && c>d) { swap<i>(a, b); }",
        "List<int> x = new HashMap<String, List<A>>(); Ptr<p> a; Ptr<p> b;",
        "std::vector<std::pair<int, b>> v;",
        "def f() -> Dict[str, <class 'int'>]",
        "p<0.05, q>0.1, x <- y, y -> z, <y>, <bean id='x'/>",
        "put it in a `<div></div>`, with `&lt;` inside\n```html\n<p>text</p>\n```",
        "the <title> tag and the <p> tag",
        "send --html \"<h1>Hello</h1>\" ; parse '<a>{.}</a>*'",
        "&copy=2",
    ],
)
def test_what_is_no_html_keeps_its_brackets(text):
    assert not is_html(text)
    assert clean(text, HTML) == text


def test_only_the_main_content_of_a_page_is_kept_when_asked():
    whole = clean(PAGE, HTML)
    counts = Counter()
    main = TextCleaner(CleaningConfig(html=True, boilerplate=True)).clean(PAGE, counts)
    assert [word in whole for word in ("About us", "imprint", "track", "color")] == [True, True, False, False]
    assert main.startswith("Why the sky is blue\n\nLight is scattered")
    assert main.endswith("of the blue arrives.")
    assert counts == {"html": 1, "boilerplate": 1}


def test_a_fragment_has_no_boilerplate():
    text = "<nav>Menu</nav><p>Text</p>"
    assert clean(text, CleaningConfig(html=True, boilerplate=True)) == clean(text, HTML)


def test_steps_that_changed_a_text_are_counted_and_no_others():
    cleaner, counts = TextCleaner(CleaningConfig(html=True, pii=("email",))), Counter()
    assert cleaner.clean("<p>schÃ¶n  bob@example.com</p>", counts) == "schön <EMAIL>"
    assert cleaner.clean("plain", counts) == "plain"
    assert counts == {"html": 1, "unicode": 1, "pii": 1, "pii_email": 1}


def test_a_library_is_imported_only_when_its_step_is_on():
    code = (
        "import sys\nfrom data_shards.cleaning.clean import TextCleaner\n"
        "from data_shards.cleaning import chunking, decontamination, lengths, near_duplicates\n"
        "from data_shards.cleaning.config import CleaningConfig\n"
        "TextCleaner(CleaningConfig(unicode=False, pii=('email', 'ip')))\n"
        "libraries = 'ftfy phonenumbers regex re2 rensa resiliparse sentencex stdnum xxhash'.split()\n"
        "print([name for name in libraries if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "text",
    ["<a " * 30_000, '<a href="' * 20_000, "<p" + " x=1" * 30_000, "<p" + " " * 100_000, "```" * 30_000 + "<"]
    + [" " * 100_000 + "x", "x" + " \t" * 50_000 + "y", "&" * 100_000, "<div>" * 30_000],
)  # fmt: skip
def test_time_stays_bounded_on_hostile_text(text):
    start = time.process_time()
    clean(text, HTML)
    # Linear work takes a tenth of this; a quadratic pattern takes minutes.
    assert time.process_time() - start < 5


def limits(**settings: object) -> LengthLimits:
    return LengthLimits(CleaningConfig(**settings))


def test_texts_out_of_bounds_are_named_and_counted():
    bounds = limits(query_min_length=2, query_max_length=4, passage_min_length=3)
    counts = Counter()
    assert [bounds.keeps_query(text, counts) for text in ("one!", "one two", "a b c d", "a b c d e")] == [
        False, True, True, False,
    ]  # fmt: skip
    assert [bounds.keeps_passage(text, counts) for text in ("a b", "a b c", "a " * 1000)] == [False, True, True]
    assert counts == {"query_too_short": 1, "query_too_long": 1, "passage_too_short": 1}


def test_words_are_counted_in_any_script():
    bounds = limits(passage_min_length=4, passage_max_length=4)
    for text in ("the state-of-art", "日本語で", "हिन्दी में लिखा हुआ", "x, y; z. w"):
        assert bounds.keeps_passage(text, Counter()), text


def test_characters_and_tokens_can_be_counted_instead():
    assert not limits(length_unit="characters", query_max_length=3).keeps_query("four", Counter())
    config = CleaningConfig(length_unit="tokens", query_max_length=3)
    assert LengthLimits(config, lambda text: 3).keeps_query("a b c d e", Counter())
    with pytest.raises(UserError, match=r'length_unit is "tokens"; name a tokenizer folder in cleaning.tokenizer'):
        LengthLimits(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pii": ("emails",)}, "cleaning.pii holds 'emails'; there are: email, phone, card, ip, iban"),
        ({"pii_phone_regions": ("usa",)}, "pii_phone_regions holds 'usa'; wanted two capitals"),
        ({"boilerplate": True}, "set cleaning.html = true as well"),
        ({"query_min_length": 5, "query_max_length": 3}, "query_min_length 5 is above query_max_length 3"),
        ({"passage_max_length": -1}, "must be 0 or more, came 0 and -1"),
        ({"chunk_tokens": 5}, "chunk_tokens is 5; wanted 8 or more"),
        ({"chunk_tokens": 100, "chunk_overlap_tokens": 51}, "more than half of chunk_tokens 100; set it to 50"),
        ({"chunk_overlap_tokens": -1}, "chunk_overlap_tokens is -1"),
        ({"near_threshold": 1.5}, "near_threshold is 1.5, wanted 0.3 to 1"),
        ({"near_permutations": 4}, "near_permutations is 4, wanted 16 to 1024"),
        ({"near_shingle": 0}, "near_shingle is 0"),
        ({"decontaminate_words": 1}, "decontaminate_words is 1, wanted 2 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        CleaningConfig(**settings)


def test_equal_settings_have_equal_hashes():
    one = CleaningConfig(pii=("email",), near_threshold=0.8)
    assert one.settings_hash() == CleaningConfig(pii=("email",)).settings_hash()
    assert one.settings_hash() != CleaningConfig().settings_hash()
    assert len(one.settings_hash()) == 64
