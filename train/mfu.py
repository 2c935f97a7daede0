"""What a step costs: floating-point operations against what the GPU could do, and memory."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterable

import torch
from torch import nn

from data_shards.collate import Chunk
from encoder.model import Encoder

_PEAK_TFLOPS = {
    r"B200\b": 2250.0,
    r"H200\b": 989.4,
    r"H100 PCIe": 756.0,
    r"H100 NVL": 835.0,
    r"H100\b": 989.4,
    r"A100\b": 312.0,
    r"A10G\b": 70.0,
    r"L40S\b": 362.05,
    r"L4\b": 121.0,
    r"V100-PCIE": 112.0,
    r"V100\b": 125.0,
}
"""Dense tensor-core peaks in bfloat16 and float16; the first that matches the device's name counts.

Source: NVIDIA's data sheets, whose larger figures are with sparsity; where a sheet gives only those, half of it.
"""
_NO_BFLOAT16 = r"V100"


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Return the operations a second that a GPU could do at most, or None where its figure is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        dtype: of the matrix products; only bfloat16 and float16 are known.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    if dtype == torch.bfloat16 and re.search(_NO_BFLOAT16, device_name):
        return None
    return next((1e12 * peak for name, peak in _PEAK_TFLOPS.items() if re.search(rf"\b{name}", device_name)), None)


def mfu(flops: float, seconds: float, *, device_name: str, dtype: torch.dtype, world: int) -> float | None:
    """Return the model FLOPs utilisation of a step: useful operations over what all GPUs could have done meanwhile.

    Args:
        flops: of the global batch, see `step_flops`.
        seconds: that the step took.
        device_name: of each rank's GPU.
        dtype: of the matrix products.
        world: ranks.

    Source: Chowdhery et al., "PaLM" (2022), appendix B.
    """
    peak = peak_flops(device_name, dtype)
    return None if peak is None else flops / (seconds * peak * world)


def flops_per_token(model: nn.Module) -> int:
    """Return the operations that a token costs in matrix products with weights, forward and backward.

    2 a weight forward and 4 backward; 2 backward for a frozen weight, whose own gradient nobody wants. Embedding
    tables are looked up and cost nothing. Sharded weights count whole.
    """
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    weights = [p for p in model.parameters() if id(p) not in tables]
    # ZeRO-3 leaves an empty tensor in place of a parameter, and its size beside it.
    return sum((6 if p.requires_grad else 4) * int(getattr(p, "ds_numel", p.numel())) for p in weights)


class Utilisation:
    """The MFU of a run's steps."""

    def __init__(self, encoder: Encoder, device: torch.device, precision: str, world: int) -> None:
        """Count the encoder's weights; sharded ones count whole."""
        self._name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._dtype = getattr(torch, precision)
        self._world = world
        # A text goes through one tower alone.
        self._per_token = flops_per_token(encoder) / len(encoder.backbones)
        config = encoder.backbone.config
        self._layers, self._width = int(config.num_hidden_layers), int(config.hidden_size)

    def of_step(self, *, tokens: float, squares: float, seconds: float) -> dict[str, float]:
        """Return the share of the devices' peak that useful work took; nothing where the peak is not known."""
        flops = step_flops(
            per_token=self._per_token, layers=self._layers, width=self._width, tokens=tokens, squares=squares
        )
        share = mfu(flops, seconds, device_name=self._name, dtype=self._dtype, world=self._world)
        return {} if share is None else {"mfu": share}


def squared_lengths(chunks: Iterable[Chunk]) -> int:
    """Return the sum over texts of the square of their length in tokens, padding left out."""
    return int(sum((chunk.attention_mask.sum(1) ** 2).sum() for chunk in chunks))


def step_flops(*, per_token: float, layers: int, width: int, tokens: float, squares: float) -> float:
    """Return the useful operations of a step: of each distinct text once forward and once backward.

    Attention adds, per layer and text of length L, two products of L × L × width forward and four backward: 12 L²
    width. Padding is not counted as useful, nor is the gradient cache's second forward pass: cached, the hardware
    does 4/3 of this. Causal attention is counted whole, as in the source.

    Args:
        per_token: see `flops_per_token`.
        layers: of the backbone.
        width: of its attention heads together.
        tokens: of all texts.
        squares: see `squared_lengths`.

    Source: Chowdhery et al., "PaLM" (2022), appendix B: 6 N + 12 layers × width × length a token.
    """
    return per_token * tokens + 12.0 * layers * width * squares


def peak_memory_gib() -> float:
    """Return the most memory that this rank has held: of the GPU by tensors, without one of the process by all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
