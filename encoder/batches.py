"""Tokenised texts in, vectors out: batches of similar length under a token budget that fits the memory.

While one window of texts is computed, a thread tokenises the next. Where memory is short the budget is halved, and
stays so. What else goes wrong is asked of a `Care`, which may narrow it down to a single text.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.collate import Chunk, pad_rows
from data_shards.packing import chunks_by_tokens
from encoder.model import Encoder, Side

Precision = Literal["float32", "bfloat16"]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Int64s = NDArray[np.int64]
TokenIds = list[list[int]]

WINDOW_TEXTS = 8_192
"""Texts that are tokenised and sorted together: enough for little padding, bounded for any corpus."""
_CHUNK_COST = 256  # tokens; in a large window few texts stand beside longer ones anyway

_log = logging.getLogger(__name__)


class Care(Protocol):
    """Decides what becomes of a batch that fails, and hears of each before it is computed."""

    def begin(self, rows: Int64s) -> None:
        """Hear that these texts come next."""
        ...

    def failed(self, rows: Int64s, error: Exception) -> list[Int64s]:
        """Return the smaller batches to try in its place; none where its only text is given up.

        Raises:
            Exception: the error, where it is no matter of single texts.
        """
        ...

    def apart(self, rows: Int64s) -> list[Int64s]:
        """Return those of some texts that want batches of their own, in these batches."""
        ...


class Plain:
    """No care: what fails, fails."""

    def begin(self, rows: Int64s) -> None:
        """Do nothing."""

    def failed(self, rows: Int64s, error: Exception) -> list[Int64s]:
        """Raise the error."""
        raise error

    def apart(self, rows: Int64s) -> list[Int64s]:
        """Return none."""
        return []


class Window(NamedTuple):
    """Texts that are sorted together."""

    start: int
    """Number of the first."""
    token_ids: TokenIds


class Batches:
    """Encodes windows of texts; counts what was computed."""

    def __init__(
        self, encoder: Encoder, side: Side, *, dim: int | None, tokens_per_batch: int, care: Care | None = None
    ) -> None:
        """Take what all batches have in common."""
        self._encoder, self._side, self._dim = encoder, side, dim
        self._care: Care = care or Plain()
        self._device = next(encoder.parameters()).device
        self._pad_id = encoder.tokenizer.pad_token_id or 0
        self.tokens_per_batch = tokens_per_batch
        """What is left of the budget."""
        self.tokens = 0
        """Computed, without padding."""
        self.slots = 0
        """Computed, padding counted."""

    def run(self, window: Window) -> Iterator[tuple[Int64s, FloatArray]]:
        """Yield (numbers of texts, their vectors), the longest texts first; those without tokens are left out."""
        lengths = np.array([len(ids) for ids in window.token_ids], dtype=np.int64)
        numbers = window.start + np.flatnonzero(lengths)
        apart = self._care.apart(numbers)
        together = np.setdiff1d(numbers, np.concatenate(apart)) if apart else numbers
        waiting = [*apart, *reversed(self._cut(window, together))]
        while waiting:
            rows = waiting.pop()
            chunk = self._padded(window, rows)
            if len(rows) > 1 and chunk.input_ids.numel() > self.tokens_per_batch:  # cut before the budget was halved
                waiting += reversed(self._cut(window, rows))
                continue
            self._care.begin(rows)
            try:
                vectors = self._encode(chunk)
            except Exception as error:
                fits_in_pieces = is_out_of_memory(error) and len(rows) > 1
                smaller = self._smaller(window, rows, chunk) if fits_in_pieces else self._care.failed(rows, error)
                waiting += reversed(smaller)
                continue
            self.tokens += int(lengths[rows - window.start].sum())
            self.slots += chunk.input_ids.numel()
            yield rows, vectors

    def _encode(self, chunk: Chunk) -> FloatArray:
        on_device = chunk.to(self._device)
        vector_BD = self._encoder(on_device.input_ids, on_device.attention_mask, self._side).float()
        found: FloatArray = _cut(vector_BD, self._dim, self._encoder.settings.normalize).cpu().numpy()
        return found

    def _cut(self, window: Window, rows: Int64s) -> list[Int64s]:
        lengths = [len(window.token_ids[row]) for row in (rows - window.start).tolist()]
        return [rows[places] for places in chunks_by_tokens(lengths, self.tokens_per_batch, _CHUNK_COST)]

    def _padded(self, window: Window, rows: Int64s) -> Chunk:
        return pad_rows([window.token_ids[row] for row in (rows - window.start).tolist()], self._pad_id)

    def _smaller(self, window: Window, rows: Int64s, chunk: Chunk) -> list[Int64s]:
        """Halve the budget after a batch that did not fit, and cut it anew."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.tokens_per_batch = max(1, chunk.input_ids.numel() // 2)
        _log.warning("out of memory at %d tokens; going on with %d", chunk.input_ids.numel(), self.tokens_per_batch)
        return self._cut(window, rows)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory from other failures; on a CPU torch has no error of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextlib.contextmanager
def inference(encoder: Encoder, precision: Precision) -> Iterator[None]:
    """Compute without gradients or dropout; the encoder's mode is left as it was."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode(), _autocast(device, precision):
            yield
    finally:
        encoder.train(was_training)


def windows(texts: Sequence[str], tokenise: Callable[[Sequence[str], int], TokenIds]) -> Iterator[Window]:
    """Yield windows of tokenised texts; the next one is made while one is worked on.

    Args:
        texts: any number.
        tokenise: called in a thread with texts and the number of the first; an empty list is a text to leave out.
    """
    starts = list(range(0, len(texts), WINDOW_TEXTS))
    if len(starts) < 2:  # a thread would have nothing to be ahead of
        for start in starts:
            yield Window(start, tokenise(texts, start))
        return
    with ThreadPoolExecutor(1, "tokenise") as thread:
        ahead = thread.submit(tokenise, texts[:WINDOW_TEXTS], 0)
        for start in starts:
            token_ids = ahead.result()
            if (after := start + WINDOW_TEXTS) < len(texts):
                ahead = thread.submit(tokenise, texts[after : after + WINDOW_TEXTS], after)
            yield Window(start, token_ids)


def _cut(vector_BD: torch.Tensor, dim: int | None, normalize: bool) -> torch.Tensor:
    if dim is None:
        return vector_BD
    return torch.nn.functional.normalize(vector_BD[:, :dim], dim=-1) if normalize else vector_BD[:, :dim]


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
