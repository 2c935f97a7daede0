"""Operations of a step by hand, and against what PyTorch counts; peaks of GPUs by the names that drivers give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data_shards.collate import pad_chunks
from tests.unit.tiny import tiny_encoder
from train.mfu import flops_per_token, mfu, peak_flops, peak_memory_gib, squared_lengths, step_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device(name: str, tera: float | None) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert peak_flops(name, dtype) == (None if tera is None else pytest.approx(tera * 1e12))
    assert peak_flops(name, torch.float32) is None


def test_a_v100_has_no_bfloat16() -> None:
    assert peak_flops("Tesla V100-SXM2-16GB", torch.float16) == 125e12
    assert peak_flops("Tesla V100-PCIE-32GB", torch.float16) == 112e12
    assert peak_flops("Tesla V100-SXM2-16GB", torch.bfloat16) is None


def test_mfu_by_hand() -> None:
    """Two A100 could do 624 tera in a second; 312 tera in two seconds are a quarter of that."""
    found = mfu(312e12, 2.0, device_name="NVIDIA A100-SXM4-80GB", dtype=torch.bfloat16, world=2)
    assert found == pytest.approx(0.25)
    assert mfu(1.0, 1.0, device_name="cpu", dtype=torch.bfloat16, world=2) is None


def test_operations_a_token_by_hand() -> None:
    """Embeddings cost nothing, a frozen weight no gradient of its own."""
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))
    assert flops_per_token(model) == 6 * (32 + 8)
    model[1].weight.requires_grad_(False)
    assert flops_per_token(model) == 4 * 32 + 6 * 8


def test_a_parameter_that_zero_3_has_taken_away_counts_whole() -> None:
    model = nn.Linear(8, 4, bias=False)
    model.weight.data = torch.empty(0)
    model.weight.ds_numel = 32  # type: ignore[assignment]
    assert flops_per_token(model) == 6 * 32


def test_squared_lengths_leave_padding_out() -> None:
    lengths = [3, 1, 9, 9, 4]
    chunks = pad_chunks([[1] * length for length in lengths], pad_id=0, tokens_per_chunk=18)
    assert len(chunks) > 1
    assert squared_lengths(chunks) == sum(length**2 for length in lengths)
    assert squared_lengths([]) == 0


def test_a_step_costs_what_pytorch_counts() -> None:
    """Without padding, and but for what is no matrix product: biases and norms, which count as weights here."""
    encoder = tiny_encoder(width=64)
    texts, length, layers, width = 6, 16, 2, 64
    ids = torch.randint(5, 100, (texts, length))
    encoder.backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        encoder(ids, torch.ones_like(ids)).sum().backward()
    found = step_flops(
        per_token=flops_per_token(encoder),
        layers=layers,
        width=width,
        tokens=texts * length,
        squares=float(np.square([length] * texts).sum()),
    )
    assert found == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_peak_of_memory_grows_with_what_is_held() -> None:
    before = peak_memory_gib()
    held = torch.ones(64 << 20, dtype=torch.uint8)
    grown = peak_memory_gib()
    del held
    assert 0 < before <= grown
    assert grown < 64
    assert peak_memory_gib() >= grown, "a peak does not go down"
