"""The `[cleaning]` section of an import: every step by its name, off or on."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from data_shards.cleaning.patterns import compile_patterns
from data_shards.errors import UserError

PiiKind = Literal["email", "phone", "card", "ip", "iban"]
LengthUnit = Literal["characters", "words", "tokens"]
ShingleUnit = Literal["words", "characters"]
OnEvaluationPositive = Literal["ignore", "report", "drop"]


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Which steps run, and how. What only repairs is on; what takes text away has to be asked for."""

    unicode: bool = True
    """Repair mojibake, broken surrogates and control characters, and compose characters (NFC)."""
    html: bool = False
    """Turn HTML into plain text. Texts that are none, source code among them, stay as they are."""
    boilerplate: bool = False
    """Of whole HTML pages, keep the main content only: no menus, footers, cookie notices. Needs `html`."""
    whitespace: bool = True
    """One kind of space and line end, no runs of blanks; indentation and paragraphs stay."""

    pii: tuple[PiiKind, ...] = ()
    """Kinds of personal data that are replaced by `<EMAIL>`, `<PHONE>`, `<CARD>`, `<IP>`, `<IBAN>`."""
    pii_phone_regions: tuple[str, ...] = ()
    """Countries (such as `US`, `DE`) whose national numbers are known too; else only numbers that begin with +."""
    pii_patterns: tuple[str, ...] = ()
    """Own kinds, each `NAME=REGULAR EXPRESSION` in RE2 syntax; a match is replaced by `<NAME>`."""

    length_unit: LengthUnit = "words"
    """What the four limits below count."""
    query_min_length: int = 0
    """Pairs with a shorter query are dropped; 0 sets no limit, here and below."""
    query_max_length: int = 0
    """Pairs with a longer query are dropped."""
    passage_min_length: int = 0
    """Shorter passages, title included, are dropped."""
    passage_max_length: int = 0
    """Longer passages are dropped; where `chunk_tokens` is set they are cut instead, and this holds for documents."""

    chunk_tokens: int = 0
    """Cut documents into passages of at most so many tokens, title included; 0 leaves them whole."""
    chunk_overlap_tokens: int = 32
    """Neighbouring passages of a document share whole sentences of at least so many tokens."""
    chunk_language: str = "en"
    """Whose abbreviations are known when sentences are found; punctuation of all scripts always is."""
    tokenizer: str = ""
    """Snapshot or tokenizer folder that counts tokens for chunks and limits; without one, words are counted."""

    near_duplicates: bool = False
    """Of passages that are nearly the same, keep the first."""
    near_threshold: float = 0.8
    """Jaccard similarity of two passages' sets of shingles from which on they count as the same."""
    near_permutations: int = 128
    """Length of a MinHash signature: the estimate's standard error at the threshold is sqrt(t(1-t)/n), here 0.035."""
    near_shingle: int = 3
    """Words, or characters, in a row that make a shingle."""
    near_shingle_unit: ShingleUnit = "words"
    """`characters` finds more in languages that put no blank between words; take 9 or more of them."""

    decontaminate: tuple[str, ...] = ()
    """Evaluation data: BEIR folders as `FOLDER:SPLIT`, .txt and .jsonl files of queries. None of these may train."""
    decontaminate_words: int = 13
    """So many words in a row, shared with an evaluation text, count as the same text; shorter texts must be equal."""
    decontaminate_positives: OnEvaluationPositive = "report"
    """What becomes of a pair whose positive is also that of an evaluation query (BEIR folders only)."""

    def __post_init__(self) -> None:
        """Check each step's settings."""
        _check_pii(self)
        _check_lengths(self)
        _check_chunks(self)
        _check_near_duplicates(self)
        if self.decontaminate_words < 2:
            raise UserError(f"cleaning.decontaminate_words is {self.decontaminate_words}, wanted 2 or more")
        if self.boilerplate and not self.html:
            raise UserError("cleaning.boilerplate works on HTML pages; set cleaning.html = true as well")

    def settings_hash(self) -> str:
        """Return the hex SHA-256 of all settings: equal settings, equal hash, on every machine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _check_pii(config: CleaningConfig) -> None:
    unknown = set(config.pii) - set(get_args(PiiKind))
    if unknown:
        kinds = ", ".join(get_args(PiiKind))
        raise UserError(f"cleaning.pii holds {sorted(unknown)[0]!r}; there are: {kinds}; for others see pii_patterns")
    for region in config.pii_phone_regions:
        if not re.fullmatch(r"[A-Z]{2}", region):
            raise UserError(f"cleaning.pii_phone_regions holds {region!r}; wanted two capitals, such as US")
    compile_patterns(config.pii_patterns)


def _check_lengths(config: CleaningConfig) -> None:
    limits = {
        "query": (config.query_min_length, config.query_max_length),
        "passage": (config.passage_min_length, config.passage_max_length),
    }
    for name, (low, high) in limits.items():
        if min(low, high) < 0:
            raise UserError(
                f"cleaning.{name}_min_length and {name}_max_length must be 0 or more, came {low} and {high}"
            )
        if high and low > high:
            raise UserError(
                f"cleaning.{name}_min_length {low} is above {name}_max_length {high}; nothing would be left"
            )


def _check_chunks(config: CleaningConfig) -> None:
    if config.chunk_tokens and config.chunk_tokens < 8:
        raise UserError(f"cleaning.chunk_tokens is {config.chunk_tokens}; wanted 8 or more, or 0 for whole documents")
    if config.chunk_overlap_tokens < 0:
        raise UserError(f"cleaning.chunk_overlap_tokens is {config.chunk_overlap_tokens}, wanted 0 or more")
    if config.chunk_tokens and 2 * config.chunk_overlap_tokens > config.chunk_tokens:
        raise UserError(
            f"cleaning.chunk_overlap_tokens {config.chunk_overlap_tokens} is more than half of chunk_tokens "
            f"{config.chunk_tokens}; set it to {config.chunk_tokens // 2} or less"
        )


def _check_near_duplicates(config: CleaningConfig) -> None:
    if not 0.3 <= config.near_threshold <= 1:
        raise UserError(f"cleaning.near_threshold is {config.near_threshold}, wanted 0.3 to 1; 0.8 is usual")
    if not 16 <= config.near_permutations <= 1024:
        raise UserError(f"cleaning.near_permutations is {config.near_permutations}, wanted 16 to 1024; 128 is usual")
    if config.near_shingle < 1:
        raise UserError(f"cleaning.near_shingle is {config.near_shingle}, wanted 1 or more")
