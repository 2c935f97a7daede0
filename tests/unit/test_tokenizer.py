"""The WordPiece tokenizer for encoders from nothing: identifiers become words."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from encoder.tokenizer import train_wordpiece

CORPUS = ["read raw data", "HTTP server", "sort the list of words", "utf 8 codec", "a b c d e f g h i"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_wordpiece(CORPUS, vocab_size=200, max_tokens=8)


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("readRawData", "read raw data"),
        ("read_raw_data", "read raw data"),
        ("__read__raw_data__", "read raw data"),
        ("ReadRawData", "read raw data"),
        ("HTTPServer", "http server"),
        ("utf8Codec", "utf8 codec"),
        ("sort.theList(words)", "sort . the list ( words )"),
        ("ｒｅａｄ", "read"),
    ],
)
def test_identifiers_are_taken_apart(tokenizer: PreTrainedTokenizerFast, identifier: str, words: str) -> None:
    assert tokenizer.tokenize(identifier) == tokenizer.tokenize(words)
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize("readRawData")) == "read raw data"


def test_words_of_the_corpus_are_whole_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("readRawData") == ["read", "raw", "data"]


def test_each_text_stands_between_cls_and_sep(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("sort")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "sort", "[SEP]"]
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) <= 200


def test_a_cut_text_keeps_its_sep(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("sort the list of words " * 9, truncation=True)["input_ids"]
    assert len(ids) == 8
    assert ids[-1] == tokenizer.sep_token_id


def test_an_unknown_letter_is_unk(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("☃") == ["[UNK]"]
