"""Whether the graphs of a batch fit: bytes that are counted by hand, and budgets on either side of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoder.model import Encoder
from tests.unit.tiny import pair as made_pair, tiny_encoder, write_pairs
from train import memory
from train.batches import BatchConfig, BatchLoader, StepBatch
from train.memory import graphs_fit

GIB = 2**30


class Bare:
    """A backend without an engine; it notes what is done to it."""

    device = torch.device("cpu")
    equal_forwards = equal_backwards = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.lasts: list[bool] = []
        self.losses: list[float] = []

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    @contextlib.contextmanager
    def sync(self, *, last: bool) -> Iterator[None]:
        self.lasts.append(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.losses.append(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]


class Chain(nn.Module):
    """Two layers, of which one can say what a graph of them keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 32, bias=False), nn.Linear(32, 4, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, side: str) -> Tensor:
        out: Tensor = self.two(torch.relu(self.one(torch.ones(len(input_ids), 8))))
        return out


@pytest.fixture
def batch(tmp_path: Path, encoder: Encoder) -> StepBatch:
    dataset = write_pairs(tmp_path / "pairs", (made_pair(number) for number in range(6)))
    loader = BatchLoader(
        dataset=dataset,
        order=dataset.order(batch_size=6, seed=0),
        encoder=encoder,
        config=BatchConfig(batch_size=6, tokens_per_chunk=16),
        rank=0,
        world=1,
    )
    return loader.load(0, None)


def test_saved_bytes_by_hand() -> None:
    """The input of each layer, and the output of the ReLU once, although two keep it; no weight."""
    ids = torch.zeros(5, 3, dtype=torch.int64)
    saved = memory._saved_bytes(Bare(Chain()), ids, torch.ones_like(ids), "passage")
    assert saved == 4 * (5 * 8 + 5 * 32)


def needed_gib(encoder: Encoder, batch: StepBatch) -> float:
    """Find the border between too little and enough."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if graphs_fit(Bare(encoder), [batch], budget_gib=middle):
            high = middle
        else:
            low = middle
    return high


def test_the_need_of_an_encoder_is_of_the_right_size(
    batch: StepBatch, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Against a count by hand of what two BERT layers keep for each token, with some of it left to the kernels."""
    width, layers, heads = 16, 2, 2
    chunk = batch.passages.chunks[0]
    length = chunk.input_ids.shape[1]
    # Queries, keys, values, attention's output, its projection, two norms: about ten of width D; the feed-forward
    # layer twice four; the attention weights.
    values_a_token = layers * (10 * width + 2 * 4 * width + 2 * heads * length) + 4 * width
    by_hand = 1.3 * 4 * values_a_token * batch.padded_tokens
    found = needed_gib(encoder.train(), batch) * GIB
    assert 0.5 * by_hand < found < 2 * by_hand


def test_it_grows_with_the_batch_and_not_with_the_chunk(batch: StepBatch, encoder: Encoder) -> None:
    """The border moves with the padded tokens; of several parts the largest counts, since one is held at a time."""
    border = needed_gib(encoder, batch)
    twice = StepBatch(
        **{name: getattr(batch, name) for name in ("step", "queries", "passages", "labels", "skipped", "tokens")},
        padded_tokens=2 * batch.padded_tokens,
    )
    assert graphs_fit(Bare(encoder), [batch, batch], budget_gib=1.01 * border)
    assert not graphs_fit(Bare(encoder), [batch, twice], budget_gib=1.99 * border)
    assert graphs_fit(Bare(encoder), [batch, twice], budget_gib=2.01 * border)


@pytest.mark.parametrize(("budget_gib", "fits", "said"), [(100.0, True, "off"), (1e-9, False, "on")])
def test_a_budget_decides_and_the_log_says_so(
    batch: StepBatch, encoder: Encoder, caplog: pytest.LogCaptureFixture, budget_gib: float, fits: bool, said: str
) -> None:
    with caplog.at_level(logging.INFO, logger="train.memory"):
        assert graphs_fit(Bare(encoder), [batch], budget_gib=budget_gib) is fits
    assert f"{budget_gib:.2f} GiB are there: the gradient cache is {said}" in caplog.text


def test_without_a_budget_it_is_what_is_free(
    batch: StepBatch, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert graphs_fit(Bare(encoder), [batch], budget_gib=0), "a tiny model fits into any machine"
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 1000.0)
    assert not graphs_fit(Bare(encoder), [batch], budget_gib=0)


def test_a_container_s_limit_and_the_other_ranks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = memory._free_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory._free_bytes(torch.device("cpu")) == 1_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory._free_bytes(torch.device("cpu")) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_bytes(torch.device("cpu")) == pytest.approx(whole / 4, rel=0.5)


def test_measuring_leaves_no_gradient(batch: StepBatch, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where a backward pass has to follow each forward pass; and no pass is the step's last."""
    backend = Bare(encoder)
    graphs_fit(backend, [batch], budget_gib=1)
    assert all(value.grad is None for value in encoder.parameters())
    monkeypatch.setattr(Bare, "equal_backwards", True)
    graphs_fit(backend, [batch], budget_gib=1)
    assert all(value.grad is None or not value.grad.any() for value in encoder.parameters())
    assert (backend.lasts, backend.losses) == ([False, False], [0.0])


def test_gradient_checkpointing_needs_less(batch: StepBatch) -> None:
    plain, checkpointed = (needed_gib(encoder, batch) for encoder in _both())
    assert checkpointed < 0.5 * plain


def _both() -> Iterator[Encoder]:
    for on in (False, True):
        encoder = tiny_encoder().train()
        encoder.set_gradient_checkpointing(on)
        yield encoder
