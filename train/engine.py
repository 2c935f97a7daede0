"""Accelerate sets the engine up; this file checks what it got, and holds what engines do differently.

Two engines so far: DDP (also for a single process), and DeepSpeed ZeRO-1 and 2. Both average gradients over
ranks, so `train.loss` needs to know of neither.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_shards.collate import Chunk
from data_shards.errors import UserError
from encoder.model import Encoder
from train.schedule import OptimizerConfig

EngineKind = Literal["ddp", "zero1", "zero2"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What drives the parameters over ranks."""

    kind: EngineKind = "ddp"
    """`zero1` shards the optimiser's state with DeepSpeed, `zero2` the gradients as well."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products. `auto` is bfloat16 where the device computes in it, else float32."""
    timeout_s: int = 1800
    """A collective that waits longer than this ends the run."""

    def __post_init__(self) -> None:
        """Check the timeout."""
        if self.timeout_s < 1:
            raise UserError(f"engine.timeout_s must be at least 1, came {self.timeout_s}")


class Engine(Protocol):
    """What the loop needs. `encode` and `backward` are used through `train.grad_cache.Backend`."""

    device: torch.device
    equal_backwards: bool

    def encode(self, chunk: Chunk) -> Tensor:
        """Return the chunk's vectors [B, D]."""

    def chunk(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surround one chunk's encode and backward; gradients are averaged over ranks in the last one."""

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients. Returns the norm before clipping."""

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Read them back; the folder's checksums were verified."""


def bfloat16_pays(device: torch.device) -> bool:
    """Whether the device computes bfloat16 matrix products in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "avx512_bf16" in _cpu_flags()


def resolve_precision(config: EngineConfig, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Turn `auto` into what this device does best."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if bfloat16_pays(device) else "float32"


def start_engine(encoder: Encoder, config: EngineConfig, optimizer: OptimizerConfig) -> Engine:
    """Join the process group and wrap the encoder.

    Raises:
        UserError: the engine is not installed, or Accelerate gave something else than was asked.
    """
    accelerator = start_process_group(config, max_grad_norm=optimizer.max_grad_norm)
    if accelerator.device.type == "cpu":
        # PyTorch's fused attention multiplies head by head there: in bfloat16 a step took 1.5 times as long.
        encoder.backbone.set_attn_implementation("eager")
    adamw = torch.optim.AdamW(_decay_groups(encoder, optimizer.weight_decay), lr=optimizer.learning_rate, fused=True)
    if config.kind == "ddp":
        return _DdpEngine(accelerator, encoder, adamw, optimizer.max_grad_norm)
    return _ZeroEngine(accelerator, encoder, adamw)


def start_process_group(config: EngineConfig, *, max_grad_norm: float = 0.0) -> Accelerator:
    """Set Accelerate up and make sure that it made what was asked: it drops what it cannot do in silence."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = {"float32": "no", "bfloat16": "bf16"}[resolve_precision(config, device)]
    backend = "nccl" if device.type == "cuda" else "gloo"
    process_group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=config.timeout_s))
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if config.kind == "ddp":
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        handlers = [ddp, process_group] if asked > 1 else [ddp]  # one rank with a backend: Accelerate fails
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=handlers)
    else:
        accelerator = Accelerator(
            deepspeed_plugin=_deepspeed_plugin(config, precision, max_grad_norm),
            mixed_precision=precision,
            kwargs_handlers=[process_group],
        )
    several = {"ddp": (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)}.get(
        config.kind, (DistributedType.DEEPSPEED,)
    )
    got = accelerator.distributed_type
    if accelerator.num_processes != asked or (got not in several and (asked > 1 or config.kind != "ddp")):
        raise UserError(
            f"engine {config.kind} on {asked} ranks was asked, Accelerate set up {got.value} on "
            f"{accelerator.num_processes}; start with `dipole train` or torchrun, and unset ACCELERATE_* variables"
        )
    return accelerator


class _DdpEngine:
    """DDP, or one bare process."""

    equal_backwards = False

    def __init__(
        self, accelerator: Accelerator, encoder: Encoder, adamw: torch.optim.AdamW, max_grad_norm: float
    ) -> None:
        self._accelerator, self._max_grad_norm, self._encoder = accelerator, max_grad_norm, encoder
        self.device = accelerator.device
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; Accelerate has no field for the new name yet. Off it must be:
            # a broadcast in every forward pass would hang ranks whose chunks are fewer.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
            self._model, self._optimizer = accelerator.prepare(encoder, adamw)

    def encode(self, chunk: Chunk) -> Tensor:
        vector_BD: Tensor = self._model(chunk.input_ids, chunk.attention_mask)
        return vector_BD

    def chunk(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        # DDP arms its reduction in the forward pass, so that pass belongs inside no_sync too.
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self._model)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def step(self, learning_rate: float) -> float:
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), self._max_grad_norm or float("inf"))
        _set_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def save(self, folder: Path) -> None:
        if self._accelerator.is_main_process:
            state = {name: value.contiguous() for name, value in self._encoder.state_dict().items()}
            save_file(state, folder / "encoder.safetensors")
            torch.save(self._optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        self._encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        self._optimizer.load_state_dict(state)


class _ZeroEngine:
    """DeepSpeed ZeRO-1 and 2."""

    equal_backwards = True

    def __init__(self, accelerator: Accelerator, encoder: Encoder, adamw: torch.optim.AdamW) -> None:
        self.device = accelerator.device
        self._engine, self._optimizer = accelerator.prepare(encoder, adamw)

    def encode(self, chunk: Chunk) -> Tensor:
        vector_BD: Tensor = self._engine(chunk.input_ids, chunk.attention_mask)
        return vector_BD

    def chunk(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        # ZeRO-2 refuses no_sync: the boundary tells it which backward pass completes the step.
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        _set_rate(self._optimizer, learning_rate)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder / "deepspeed"), tag="state", save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder / "deepspeed"), tag="state")
        if path is None:
            raise UserError(f"{folder} holds no DeepSpeed state; resume with the engine that wrote it")


def _set_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _decay_groups(encoder: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters: matrices decay, vectors (biases, layer norms) do not."""
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _deepspeed_plugin(config: EngineConfig, precision: str, max_grad_norm: float) -> Any:
    try:
        import deepspeed
        from accelerate.utils import DeepSpeedPlugin
    except ImportError as error:
        raise UserError(f"engine {config.kind} needs DeepSpeed: pip install 'dipole[deepspeed]'") from error
    if not torch.cuda.is_available():
        # Otherwise its first start compiles a shared-memory collective for minutes; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "zero_optimization": {"stage": int(config.kind[-1]), "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": precision == "bf16"},
            "steps_per_print": 1 << 30,
        }
    )


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
