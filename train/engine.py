"""What drives the parameters over ranks: one section of the config, three engines, and a check of what was got.

Every engine averages parameter gradients over ranks, so the objective needs to know of none of them. They differ in
which passes are collectives, and so must be equally many on all ranks, and in which piece of each tensor a rank has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from data_shards.errors import UserError
from encoder.attention import Attention
from encoder.model import Encoder
from train.schedule import OptimizerConfig
from train.state_files import Piece, StateReader

EngineKind = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What drives the parameters over ranks."""

    kind: EngineKind = "ddp"
    """`ddp` keeps all on every rank. DeepSpeed's `zero1` shards the optimiser's state, `zero2` the gradients as well,
    `zero3` the weights as well; `fsdp2` is PyTorch's own way of sharding all three."""
    offload: bool = False
    """Keep the optimiser's state, and with `zero3` the weights, in host memory; DeepSpeed only."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of matrix products. `auto` is bfloat16 where the device computes in it, else float32."""
    tf32: bool = True
    """Let float32 matrix products of NVIDIA GPUs round their inputs to TF32."""
    attention: Attention = "auto"
    """`packed` leaves padding out altogether; it needs a GPU to be fast. `auto` is `sdpa`, on a CPU `eager`."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    compile: bool = False
    """Compile the backbone; the first steps take minutes. On a CPU it needs a C++ compiler."""
    timeout_s: int = 1800
    """A collective that waits longer than this ends the run."""

    def __post_init__(self) -> None:
        """Check what does not go together."""
        if self.timeout_s < 1:
            raise UserError(f"engine.timeout_s must be at least 1, came {self.timeout_s}")
        if self.offload and not self.kind.startswith("zero"):
            raise UserError(f"engine.offload is DeepSpeed's, engine.kind is {self.kind}; set kind to zero2 or zero3")
        if self.compile and self.kind.startswith("zero"):
            raise UserError(f"engine.compile does not go with {self.kind}; set kind to ddp or fsdp2, or leave it out")


class Engine(Protocol):
    """What the loop needs of it."""

    device: torch.device
    equal_forwards: bool
    """Whether every forward pass is a collective, so that all ranks must make equally many."""
    equal_backwards: bool
    """The same of backward passes."""

    def forward(self, *inputs: Any) -> Any:
        """Call the model."""

    def sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surround the passes of one backward pass; gradients are averaged by the last one at the latest."""

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients.

        Returns:
            The gradient's norm before clipping. Where it is not finite, nothing was updated.
        """

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """No dropout, no gradients, and averaged weights where they are kept."""

    def weights(self) -> dict[str, Tensor]:
        """Return the whole model on rank 0, and nothing elsewhere; every rank calls it."""

    def pieces(self) -> Iterator[Piece]:
        """Yield this rank's share of weights and optimiser state; all ranks' pieces together hold each value once."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full shape of every tensor that `pieces` names."""

    def extra(self) -> dict[str, Any]:
        """Return what belongs to a checkpoint and is no tensor, equal on all ranks."""

    def load(self, reader: StateReader, extra: dict[str, Any]) -> None:
        """Take this rank's share out of a checkpoint, whichever engine and however many ranks wrote it."""


def bfloat16_pays(device: torch.device) -> bool:
    """Whether the device computes bfloat16 matrix products in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "avx512_bf16" in _cpu_flags()


def float16_computes(device: torch.device) -> bool:
    """Whether the device has float16 matrix products, without which DeepSpeed does not start in it."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def resolve_precision(config: EngineConfig, device: torch.device) -> Precision:
    """Turn `auto` into what this device does best."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if bfloat16_pays(device) else "float32"


def check_engine(config: EngineConfig, optimizer: OptimizerConfig, *, ranks: int) -> None:
    """Refuse, before any process starts, what this machine cannot run.

    Raises:
        UserError: DeepSpeed or a compiler is not installed, or a setting is not for this engine or device.
    """
    if config.kind.startswith("zero"):
        try:
            import deepspeed  # noqa: F401
        except ImportError:
            raise UserError(f"engine {config.kind} needs DeepSpeed: pip install 'dipole[deepspeed]'") from None
        if config.precision == "float16" and not float16_computes(_device()):
            raise UserError(
                f"engine {config.kind} in float16 needs a processor that computes in it, and this one does not; set "
                "engine.precision to bfloat16 or float32"
            )
        if optimizer.ema_decay:
            raise UserError(f"optimizer.ema_decay does not go with engine {config.kind}; set kind to ddp or fsdp2")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and _device().type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"engine.compile needs a C++ compiler and there is no {compiler}; install it, or leave it out"
        )
    gpus = torch.cuda.device_count()
    if gpus and ranks > gpus:
        raise UserError(f"{ranks} ranks on a machine with {gpus} GPUs; set run.ranks to {gpus}, or use more nodes")


def check_encoder(encoder: Encoder, config: EngineConfig) -> None:
    """Refuse, before any process starts, what this encoder cannot do; it is left as it was loaded.

    Raises:
        UserError: the backbone has no such attention, or no gradient checkpointing.
    """
    encoder.set_attention(config.attention, _device())
    encoder.set_gradient_checkpointing(config.gradient_checkpointing)
    encoder.set_attention("auto")
    encoder.set_gradient_checkpointing(False)


def start_engine(model: nn.Module, config: EngineConfig, optimizer: OptimizerConfig) -> Engine:
    """Join the process group and wrap the model.

    Raises:
        UserError: the engine is not installed, or Accelerate gave something else than was asked.
    """
    accelerator = start_process_group(config, max_grad_norm=optimizer.max_grad_norm)
    _prepare(model, config, accelerator.device)
    precision = resolve_precision(config, accelerator.device)
    if config.kind.startswith("zero"):
        from train.zero_engine import ZeroEngine

        return ZeroEngine(accelerator, model, optimizer)
    from train.torch_engine import TorchEngine, wrap_ddp, wrap_fsdp2

    wrap = wrap_ddp(accelerator, model) if config.kind == "ddp" else wrap_fsdp2(accelerator.device, model, precision)
    return TorchEngine(model, wrap, optimizer, precision, accelerator.device)


def start_process_group(config: EngineConfig, *, max_grad_norm: float = 0.0) -> Accelerator:
    """Set Accelerate up and make sure that it made what was asked: it drops what it cannot do in silence."""
    device = _device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    process_group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=config.timeout_s))
    if config.kind.startswith("zero"):
        from train.zero_engine import deepspeed_plugin

        plugin = deepspeed_plugin(config, resolve_precision(config, device), max_grad_norm)
        accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision="no", kwargs_handlers=[process_group])
        fits = accelerator.distributed_type == DistributedType.DEEPSPEED
    else:
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        handlers = [ddp, process_group] if asked > 1 else [ddp]  # one rank with a backend: Accelerate fails
        # Precision is seen to by the engine; unless told, Accelerate takes it from the environment.
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
        fits = asked == 1 or accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.num_processes != asked or not fits:
        raise UserError(
            f"engine {config.kind} on {asked} ranks was asked, Accelerate set up "
            f"{accelerator.distributed_type.value} on {accelerator.num_processes}; start with "
            "`dipole train` or torchrun, and unset ACCELERATE_* variables"
        )
    return accelerator


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters: matrices decay, vectors (biases, layer norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def set_rate(optimizer: Any, learning_rate: float) -> None:
    """Give every parameter group the step's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _prepare(model: nn.Module, config: EngineConfig, device: torch.device) -> None:
    """Set what has to be set before the model is wrapped, on the encoder that it is or holds."""
    encoder = next((module for module in model.modules() if isinstance(module, Encoder)), None)
    if encoder is not None:
        encoder.set_attention(config.attention, device)
        encoder.set_gradient_checkpointing(config.gradient_checkpointing)
        if config.compile:
            for backbone in encoder.backbones:
                backbone.compile(dynamic=True)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
