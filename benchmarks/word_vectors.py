"""Word vectors to start from: a pretrained encoder's embeddings, with none of its layers.

    python -m benchmarks.word_vectors --model NAME_OR_PATH --data BEIR_DIR --out DIR

What is left averages its token vectors: it knows words from the start, and trains in minutes where the layers would
take hours. Of the vocabulary stays what the passages and the training queries of the data are made of, and all single
characters: the optimiser goes over every row at every step, used or not, and most of a step's time goes there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from encoder.model import Encoder, with_settings
from encoder.snapshot import load_encoder, save_snapshot

_TEXTS_AT_ONCE = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    keep_words(encoder, BeirFolder(options.data))
    encoder = without_layers(encoder)
    name = save_snapshot(encoder, options.out)
    print(f"{options.out}: {len(encoder.tokenizer)} tokens of {encoder.dim} dimensions, {name}")


def without_layers(encoder: Encoder) -> Encoder:
    """Take the layers off a BERT-like encoder; token vectors are averaged."""
    for backbone in encoder.backbones:
        if not isinstance(getattr(getattr(backbone, "encoder", None), "layer", None), nn.ModuleList):
            raise UserError(f"{type(backbone).__name__} keeps its layers elsewhere; take a BERT-like encoder")
        backbone.encoder.layer = nn.ModuleList()
        backbone.config.num_hidden_layers = 0
    return with_settings(encoder, dataclasses.replace(encoder.settings, pooling="mean"))


def keep_words(encoder: Encoder, data: BeirFolder) -> None:
    """Leave out of a WordPiece encoder's vocabulary what these texts have no use for; theirs are cut up as before."""
    state = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "WordPiece":
        raise UserError(f"the tokenizer is {state['model']['type']}; wanted WordPiece, such as BERT's")
    vocabulary: dict[str, int] = state["model"]["vocab"]
    asked = data.qrels("train")
    queries = (text for number, text in data.queries().items() if number in asked)
    texts = itertools.chain((passage.content for passage in data.corpus()), queries)
    used: set[int] = set(encoder.tokenizer.all_special_ids)
    while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        used.update(*encoder.tokenizer(batch)["input_ids"])
    kept = sorted(
        number for token, number in vocabulary.items() if number in used or len(token.removeprefix("##")) == 1
    )
    new = {old: place for place, old in enumerate(kept)}
    state["model"]["vocab"] = {token: new[old] for token, old in vocabulary.items() if old in new}
    _renumber(state, new)
    encoder.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=encoder.tokenizer.model_max_length,
        **encoder.tokenizer.special_tokens_map,
    )
    for backbone in encoder.backbones:
        _keep_rows(backbone, kept)


def _renumber(state: dict[str, Any], new: dict[int, int]) -> None:
    """Write the new numbers of special tokens into a tokenizer's own JSON."""
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in state["post_processor"].get("special_tokens", {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if name in state["post_processor"]:
            text, number = state["post_processor"][name]
            state["post_processor"][name] = [text, new[number]]


def _keep_rows(backbone: PreTrainedModel, kept: list[int]) -> None:
    old = backbone.get_input_embeddings()
    words = nn.Embedding(len(kept), old.embedding_dim, padding_idx=0)
    with torch.no_grad():
        words.weight.copy_(old.weight[kept])
    backbone.set_input_embeddings(words)
    backbone.config.vocab_size = len(kept)


if __name__ == "__main__":
    main()
