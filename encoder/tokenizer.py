"""Trains a WordPiece tokenizer on a corpus, for encoders that start from nothing; counts with any tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_shards.errors import UserError
from encoder.towers import read_towers

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORD_BORDER = Regex("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")
"""Where a new word begins inside an identifier: readData, HTTPServer, read_data."""
_NO_LENGTH = 1_000_000


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


def append_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer close each text with its end token, if it has one and closes texts with nothing yet.

    For pooling of the last token: the end token has seen the whole text and stands for nothing else. The step is
    kept in `tokenizer.json`, where whoever loads the tokenizer finds it; truncation leaves room for it.
    """
    end = tokenizer.eos_token_id
    if end is None or tokenizer("a")["input_ids"][-1] in (end, tokenizer.sep_token_id):
        return
    # Not through transformers' `add_eos_token`: that builds the whole template anew, and loses the begin token.
    backend, token = tokenizer.backend_tokenizer, str(tokenizer.eos_token)
    closing = processors.TemplateProcessing(
        single=f"$A {token}", pair=f"$A $B:1 {token}:1", special_tokens=[(token, end)]
    )
    before = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = processors.Sequence([*before, closing])


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer lower-case its texts first, as some old models ask of sentence-transformers."""
    backend = tokenizer.backend_tokenizer
    before = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Let a tokenizer that has no padding token, like most decoders', pad with its end token: padding is masked.

    Raises:
        UserError: it has no end token either.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {name} has neither a padding nor an end token; set pad_token in it")
    tokenizer.pad_token = tokenizer.eos_token


def load_counter(path: Path) -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """Load a tokenizer to count with.

    Args:
        path: a snapshot, or any folder with a tokenizer that transformers can read.

    Returns:
        What gives the number of tokens of each text, special ones counted and none cut off; and the length at which
        the tokenizer cuts, 0 where it does not say.

    Raises:
        UserError: there is no tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(read_towers(path)["query"].transformer), trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is no tokenizer that can be loaded here: {first_line}") from None
    longest = int(tokenizer.model_max_length)
    # transformers says 10^30 where it does not know.
    return lambda texts: _count(tokenizer, texts), longest if longest < _NO_LENGTH else 0


def _count(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[int]:
    ids = tokenizer(list(texts), truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [len(row) for row in ids]
