"""A cross-encoder: one model that reads query and passage together and gives one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from data_shards.atomic import read_json
from data_shards.errors import UserError

_ENDING = "ForSequenceClassification"
_MOST_TOKENS = 512


class CrossEncoder:
    """Scores pairs of texts; a sentence-transformers `CrossEncoder` folder with one label."""

    def __init__(self, path: Path) -> None:
        """Load it, from safetensors alone; nothing is fetched, nothing is unpickled and no remote code runs.

        Raises:
            UserError: it is no such model.
        """
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            if config.num_labels != 1:
                raise UserError(f"{path} has {config.num_labels} labels; wanted a cross-encoder with one")
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, local_files_only=True, use_safetensors=True
            ).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} cannot be read as a cross-encoder: {str(error).splitlines()[0]}") from error
        positions = getattr(config, "max_position_embeddings", _MOST_TOKENS) or _MOST_TOKENS
        self._max_tokens = min(int(positions), int(self._tokenizer.model_max_length), _MOST_TOKENS)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device)

    def score(
        self, queries: Sequence[str], passages: Sequence[str], *, tokens_per_batch: int, autocast: bool = False
    ) -> NDArray[np.float32]:
        """Return the model's bare output for each pair, before any activation: float32 [n].

        Args:
            queries: [n].
            passages: [n]; the longer of a pair is cut first.
            tokens_per_batch: most tokens in a forward pass, padding counted.
            autocast: compute in bfloat16.
        """
        scores = np.empty(len(queries), dtype=np.float32)
        if not len(queries):
            return scores
        rows = self._tokenizer(list(queries), list(passages), truncation=True, max_length=self._max_tokens)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=autocast):
            for places in _batches([len(row) for row in rows["input_ids"]], tokens_per_batch):
                features = {name: [values[at] for at in places] for name, values in rows.items()}
                batch = self._tokenizer.pad(features, return_tensors="pt").to(self._device)
                scores[places] = self._model(**batch).logits[:, 0].float().cpu().numpy()
        return scores


def is_cross_encoder(path: Path) -> bool:
    """Tell by its config whether a folder holds one; anything else is taken for a bi-encoder.

    Raises:
        UserError: it holds no model at all.
    """
    if not (path / "config.json").is_file():
        if (path / "modules.json").is_file():
            return False
        raise UserError(f"mining.teacher {path} is no model: it holds no config.json; give the folder of a model")
    return any(str(name).endswith(_ENDING) for name in read_json(path / "config.json").get("architectures") or ())


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield places of rows of similar length, so many that they fit when they are padded."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and lengths[place] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
