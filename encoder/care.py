"""Embedding with care: a text that no batch can take is found by halving, and left out with its reason.

Three kinds are found: those that make the tokenizer or the encoder fail, alone; those whose vector is not finite;
and, through `suspicion`, those that end the whole process. When more than a few fail, it is the encoder or the
machine that is broken, and its error is raised as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.errors import UserError
from encoder.batches import Batches, FloatArray, Precision, TokenIds, inference, is_out_of_memory, windows
from encoder.embed import check_dim
from encoder.model import Encoder, Side
from encoder.suspicion import Suspicion

Int64s = NDArray[np.int64]

_MOST_GIVEN_UP = 8
_MOST_SHARE = 0.05  # of a unit's texts, where that is more


class BrokenDeviceError(Exception):
    """The device answers nothing any more: the process has to end, and another to take over."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What came of some texts."""

    vectors: FloatArray
    """[texts, dim]; rows of texts that were given up mean nothing."""
    given_up: dict[int, str]
    """Reason by text."""
    tokens: int
    """Computed, without padding."""
    slots: int
    """Computed, padding counted."""
    tokens_per_batch: int
    """What is left of the budget."""


def embed_with_care(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    side: Side,
    precision: Precision = "float32",
    tokens_per_batch: int = 4096,
    dim: int | None = None,
    suspicion: Suspicion | None = None,
) -> Embedded:
    """Encode texts as `embed_texts` does, and leave out what cannot be encoded.

    Args:
        encoder: see `embed_texts`.
        texts: of one unit of work, the same ones in the same order at each try.
        side: see `embed_texts`.
        precision: see `embed_texts`.
        tokens_per_batch: see `embed_texts`.
        dim: see `embed_texts`.
        suspicion: where there is some; its note stays: whoever has put the work away clears it.

    Raises:
        UserError: the encoder has fewer dimensions than `dim`, or more vectors than can be chance are not finite.
        BrokenDeviceError: an accelerator failed in a way that outlives the batch.
        Exception: what the encoder raises for more texts than can be chance.
    """
    check_dim(encoder, dim)
    care = _Halving(len(texts), suspicion or Suspicion())
    vectors = np.zeros((len(texts), dim or encoder.dim), dtype=np.float32)
    batches = Batches(encoder, side, dim=dim, tokens_per_batch=tokens_per_batch, care=care)

    def tokenise(some: Sequence[str], first: int) -> TokenIds:
        return care.tokenise(encoder, side, some, first)

    with inference(encoder, precision):
        for window in windows(texts, tokenise):
            for rows, found in batches.run(window):
                vectors[rows] = found
                care.look(rows, found)
    return Embedded(
        vectors=vectors,
        given_up=dict(sorted(care.given_up.items())),
        tokens=batches.tokens,
        slots=batches.slots,
        tokens_per_batch=batches.tokens_per_batch,
    )


class _Halving:
    """The `Care` that looks for single texts."""

    def __init__(self, texts: int, suspicion: Suspicion) -> None:
        self._most = max(_MOST_GIVEN_UP, int(_MOST_SHARE * texts))
        self._suspicion = suspicion
        self.given_up: dict[int, str] = suspicion.given_up
        self.cause: Exception | None = None
        """The first error."""

    def tokenise(self, encoder: Encoder, side: Side, texts: Sequence[str], first: int) -> TokenIds:
        """Return token ids; an empty list for a text that is given up. Called ahead, in a thread."""
        try:
            found = encoder.tokenize(texts, side)
        except Exception:
            found = [self._tokens(encoder, side, text, first + at) for at, text in enumerate(texts)]
        for at, ids in enumerate(found):
            if first + at in self.given_up:
                found[at] = []
            elif not ids:
                self._give_up(first + at, "the tokenizer makes nothing of it", None)
        return found

    def apart(self, rows: Int64s) -> list[Int64s]:
        """See `Care`."""
        return self._suspicion.halves(rows)

    def begin(self, rows: Int64s) -> None:
        """See `Care`."""
        self._suspicion.begin(rows)

    def failed(self, rows: Int64s, error: Exception) -> list[Int64s]:
        """See `Care`."""
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            raise BrokenDeviceError(str(error)) from error
        if len(rows) > 1:
            return list(np.array_split(rows, 2))
        reason = "out of memory, alone" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        self._give_up(int(rows[0]), reason.splitlines()[0], error)
        return []

    def look(self, rows: Int64s, vectors: FloatArray) -> None:
        """Give up what has no finite vector."""
        for row in rows[~np.isfinite(vectors).all(axis=1)].tolist():
            self._give_up(row, "its vector is not finite", None)

    def _tokens(self, encoder: Encoder, side: Side, text: str, row: int) -> list[int]:
        try:
            return encoder.tokenize([text], side)[0]
        except Exception as error:
            self._give_up(row, f"{type(error).__name__}: {error}".splitlines()[0], error)
            return []

    def _give_up(self, row: int, reason: str, error: Exception | None) -> None:
        self.cause = self.cause or error
        self.given_up.setdefault(row, reason)
        if len(self.given_up) > self._most:
            raise self.cause or UserError(
                f"{len(self.given_up)} passages and more have no vector ({reason}): that is no matter of single "
                "passages; look at the snapshot, or take an earlier one"
            )
