"""Embedding with care: what cannot be encoded is found and left out, whatever it fails by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards.errors import UserError
from encoder.care import BrokenDeviceError, embed_with_care
from encoder.embed import embed_texts
from encoder.model import Encoder
from encoder.suspicion import Suspicion, suspects_in
from tests.unit.processes import start_python
from tests.unit.tiny import TEXTS

MANY = [f"{text} {number % 3}" for number in range(30) for text in TEXTS]
POISON = "socket socket socket"


def failing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, fail: Callable[[torch.Tensor], Any]) -> list[int]:
    """Let `fail` see each batch's tokens first; return the list to which the batches' slots are added."""
    forward, slots = encoder.forward, []

    def watched(input_ids: torch.Tensor, attention_mask: torch.Tensor, side: Any = "query") -> torch.Tensor:
        fail(input_ids)
        slots.append(input_ids.numel())
        return forward(input_ids, attention_mask, side)

    monkeypatch.setattr(encoder, "forward", watched)
    return slots


def poison_rows(encoder: Encoder, input_ids: torch.Tensor) -> torch.Tensor:
    """Return which rows are the poison."""
    ids = torch.tensor(encoder.tokenize([POISON], "passage")[0])
    if input_ids.shape[1] < len(ids):
        return torch.zeros(len(input_ids), dtype=torch.bool)
    return (input_ids[:, : len(ids)] == ids).all(dim=1)


def test_without_failures_it_is_what_embed_texts_gives(encoder: Encoder) -> None:
    found = embed_with_care(encoder, MANY, side="passage", tokens_per_batch=128, dim=6)
    assert not found.given_up
    np.testing.assert_array_equal(
        found.vectors, embed_texts(encoder, MANY, side="passage", tokens_per_batch=128, dim=6)
    )
    assert found.tokens == sum(map(len, encoder.tokenize(MANY, "passage")))
    assert found.slots >= found.tokens


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_text_that_fails_alone_is_left_out(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    texts = [*MANY[:70], POISON, *MANY[70:]]
    plain = embed_texts(encoder, texts, side="passage")
    forward = encoder.forward

    def watched(input_ids: torch.Tensor, attention_mask: torch.Tensor, side: Any = "query") -> torch.Tensor:
        poisoned = poison_rows(encoder, input_ids)
        if kind == "raises" and poisoned.any():
            raise IndexError("index out of range in self")
        vectors = forward(input_ids, attention_mask, side)
        vectors[poisoned] = torch.nan
        return vectors

    monkeypatch.setattr(encoder, "forward", watched)
    found = embed_with_care(encoder, texts, side="passage")
    reason = {"raises": "IndexError: index out of range in self", "nan": "its vector is not finite"}[kind]
    assert found.given_up == {70: reason}
    others = np.delete(np.arange(len(texts)), 70)
    assert np.abs(found.vectors[others] - plain[others]).max() < 1e-6


def test_when_many_fail_it_is_the_encoder(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("the weights are of another shape")

    failing(encoder, monkeypatch, fail)
    with pytest.raises(RuntimeError, match="the weights are of another shape"):
        embed_with_care(encoder, MANY, side="passage")


def test_when_many_vectors_are_not_finite_it_is_the_snapshot(encoder: Encoder) -> None:
    with torch.no_grad():
        encoder.backbone.embeddings.word_embeddings.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"10 passages and more have no vector .*take an earlier one"):
        embed_with_care(encoder, MANY, side="passage")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_budget(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    plain = embed_texts(encoder, MANY, side="passage")

    def fail(input_ids: torch.Tensor) -> None:
        if input_ids.numel() > 100:
            raise error

    slots = failing(encoder, monkeypatch, fail)
    found = embed_with_care(encoder, MANY, side="passage", tokens_per_batch=1024)
    assert not found.given_up
    assert np.abs(found.vectors - plain).max() < 1e-6
    assert 16 <= found.tokens_per_batch <= 100
    assert max(slots) <= 100
    np.testing.assert_allclose(embed_texts(encoder, MANY, side="passage"), plain, atol=1e-6)


def test_a_text_that_memory_never_suffices_for_is_left_out(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(input_ids: torch.Tensor) -> None:
        if poison_rows(encoder, input_ids).any():
            raise MemoryError

    failing(encoder, monkeypatch, fail)
    found = embed_with_care(encoder, [*TEXTS, POISON], side="passage")
    assert found.given_up == {len(TEXTS): "out of memory, alone"}


def test_what_the_tokenizer_cannot_take_is_left_out(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize = encoder.tokenize

    def watched(texts: Any, side: Any) -> list[list[int]]:
        if POISON in texts:
            raise TypeError("no text\nand more")
        return [[] if text == "nothing" else ids for text, ids in zip(texts, tokenize(texts, side), strict=True)]

    monkeypatch.setattr(encoder, "tokenize", watched)
    found = embed_with_care(encoder, [*TEXTS, POISON, "nothing"], side="passage")
    assert found.given_up == {6: "TypeError: no text", 7: "the tokenizer makes nothing of it"}


def test_a_broken_device_is_nobodys_fault_but_its_own(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    failing(encoder, monkeypatch, fail)
    with pytest.raises(BrokenDeviceError, match="device-side assert"):
        embed_with_care(encoder, TEXTS, side="passage")


KILLED = """
import os, signal, sys
from pathlib import Path
from encoder.care import embed_with_care
from encoder.snapshot import load_encoder
from encoder.suspicion import Suspicion
from tests.unit.test_care import MANY, POISON, poison_rows

encoder = load_encoder(Path(sys.argv[1]))
forward = encoder.forward
def deadly(input_ids, attention_mask, side="query"):
    if poison_rows(encoder, input_ids).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(input_ids, attention_mask, side)
encoder.forward = deadly
suspicion = Suspicion(Path(sys.argv[2]), "work")
texts = [*MANY[:70], POISON, *MANY[70:]]
found = embed_with_care(encoder, texts, side="passage", tokens_per_batch=48, suspicion=suspicion)
print(found.given_up)
suspicion.clear()
"""


def test_a_text_that_kills_its_process_is_found_by_those_that_come_after(snapshot: Path, tmp_path: Path) -> None:
    """Real processes, really killed: each leaves word of what it was computing."""
    note = tmp_path / "note.json"
    suspects = []
    for _ in range(20):
        process = start_python(KILLED, snapshot, note)
        out, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -9, errors
        suspects.append(suspects_in(note))
    assert out == "{70: 'it ended 2 worker processes, alone'}\n"
    assert suspects == sorted(suspects, reverse=True)
    assert suspects[-2:] == [1, 1]
    assert not note.exists()


def test_a_note_on_other_work_or_a_damaged_one_says_nothing(tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    Suspicion(note, "one").begin(np.array([3, 4, 5]))
    assert suspects_in(note) == 3
    assert [half.tolist() for half in Suspicion(note, "one").halves(np.arange(10))] == [[3, 4], [5]]
    assert Suspicion(note, "other").halves(np.arange(10)) == []
    note.write_text("{half")
    assert suspects_in(note) == 0
    assert Suspicion(note, "one").halves(np.arange(10)) == []


def test_one_that_survives_is_cleared(tmp_path: Path) -> None:
    """A process may die of something else while a text stands alone; the text is tried again, and passes."""
    note = tmp_path / "note.json"
    Suspicion(note).begin(np.array([3]))
    again = Suspicion(note)
    assert not again.given_up
    again.begin(np.array([3]))
    again.begin(np.array([7, 8]))
    assert not Suspicion(note).given_up
