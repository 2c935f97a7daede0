"""A worker that some words kill, as a fault in a library would: with no exception, in the middle of a batch."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from encoder.model import Encoder
from index_build.ray_worker import EmbedWorker, Snapshot

WORDS = "word7 word7 word7 word7 word7"


def deadly_worker() -> type[EmbedWorker]:
    """Return an `EmbedWorker` whose encoder ends the process at a batch with the words in it.

    Made in a function, so that Ray sends the class itself: workers need not find this folder.
    """

    class DeadlyWorker(EmbedWorker):
        def _encoder(self, snapshot: Snapshot) -> Encoder:
            encoder = super()._encoder(snapshot)
            word = torch.tensor(encoder.tokenizer(WORDS, add_special_tokens=False)["input_ids"])
            forward = type(encoder).forward

            def deadly(input_ids: torch.Tensor, attention_mask: torch.Tensor, side: Any = "query") -> torch.Tensor:
                if input_ids.shape[1] >= len(word):
                    windows = input_ids.unfold(1, len(word), 1)
                    if (windows == word).all(dim=2).any():
                        os.kill(os.getpid(), signal.SIGKILL)
                return forward(encoder, input_ids, attention_mask, side)

            encoder.forward = deadly
            return encoder

    return DeadlyWorker
