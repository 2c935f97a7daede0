"""Trains a WordPiece tokenizer on a corpus, for encoders that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORD_BORDER = Regex("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")
"""Where a new word begins inside an identifier: readData, HTTPServer, read_data."""


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer that takes identifiers apart.

    `readRawData` and `read_raw_data` both become the words "read raw data", so that code and the prose about it
    share tokens.

    Args:
        texts: the corpus.
        vocab_size: most tokens in the vocabulary, the five special ones counted.
        max_tokens: stored as the length at which the tokenizer truncates.

    Returns:
        A tokenizer that puts [CLS] before and [SEP] behind each text.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(_WORD_BORDER, " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    begin, end = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", begin), ("[SEP]", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
