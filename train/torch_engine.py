"""DDP and FSDP2: PyTorch's own optimiser, over parameters that are whole on every rank or sharded."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from train.collectives import rank, world_size
from train.ema import Ema
from train.engine import Precision, decay_groups, set_rate
from train.loss_scale import LossScale
from train.schedule import OptimizerConfig
from train.state_files import Piece, StateReader

_MOMENTS = ("exp_avg", "exp_avg_sq")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_Sync = Callable[[bool], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrapped:
    """A model as DDP or FSDP2 hands it back."""

    module: nn.Module
    sync: _Sync
    """Called with whether the pass is the last one of its step."""
    collective_passes: bool
    """Whether forward and backward passes are collectives."""
    autocast: bool
    """Whether lower precision is by autocast; else the wrapper sees to it."""


def wrap_ddp(accelerator: Accelerator, model: nn.Module) -> Wrapped:
    """Wrap for DDP; a single process stays bare."""
    with warnings.catch_warnings():
        # torch 2.13 renames broadcast_buffers; Accelerate has no field for the new name yet. Off it must be:
        # a broadcast in every forward pass would hang ranks whose chunks are fewer.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
        module = accelerator.prepare(model)

    def sync(last: bool) -> contextlib.AbstractContextManager[None]:
        # DDP arms its reduction in the forward pass, so that pass belongs inside no_sync too.
        return contextlib.nullcontext() if last else accelerator.no_sync(module)

    return Wrapped(module=module, sync=sync, collective_passes=False, autocast=True)


def wrap_fsdp2(device: torch.device, model: nn.Module, precision: Precision) -> Wrapped:
    """Shard every transformer layer, and the rest as one more; natively, since Accelerate's way needs a GPU.

    Every backward pass reduces its gradients: kept whole until the last one, they would be as large as the weights
    that were sharded to save memory.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy()
    if precision != "float32":
        policy = MixedPrecisionPolicy(
            param_dtype=_DTYPES[precision], reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return Wrapped(module=model, sync=lambda last: contextlib.nullcontext(), collective_passes=True, autocast=False)


class TorchEngine:
    """Steps with AdamW; holds the loss scale of float16 and averaged weights, where they are asked for."""

    def __init__(
        self,
        model: nn.Module,
        wrapped: Wrapped,
        optimizer: OptimizerConfig,
        precision: Precision,
        device: torch.device,
    ) -> None:
        """Make the optimiser over the wrapped parameters."""
        self.device = device
        self.equal_forwards = self.equal_backwards = wrapped.collective_passes
        self._model, self._wrapped = model, wrapped
        self._max_grad_norm = optimizer.max_grad_norm or math.inf
        self._autocast = _DTYPES.get(precision) if wrapped.autocast else None
        self._optimizer = torch.optim.AdamW(
            decay_groups(model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            fused=True,
        )
        self._scale = LossScale() if precision == "float16" else None
        self._ema = Ema(self._locals(), optimizer.ema_decay) if optimizer.ema_decay else None

    def forward(self, *inputs: Any) -> Any:
        """Call the model, under autocast where precision is lower."""
        if self._autocast is None:
            return self._wrapped.module(*inputs)
        with torch.autocast(self.device.type, dtype=self._autocast):
            return self._wrapped.module(*inputs)

    def sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Engine`."""
        return self._wrapped.sync(last)

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        (loss * self._scale.value if self._scale else loss).backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; see `Engine`."""
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        scaled, scale = float(norm), self._scale.value if self._scale else 1.0
        if self._scale:
            self._scale.saw(finite=math.isfinite(scaled))
        if math.isfinite(scaled):
            # One multiplication undoes the loss scale and clips.
            factor = min(1.0, self._max_grad_norm / (scaled / scale + 1e-6)) / scale
            if factor != 1.0:
                torch._foreach_mul_(gradients, factor)
            set_rate(self._optimizer, learning_rate)
            self._optimizer.step()
            if self._ema:
                self._ema.update(self._locals())
        self._optimizer.zero_grad()
        return scaled / scale

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """See `Engine`."""
        module = self._wrapped.module
        was_training = module.training
        module.eval()
        averaged = self._ema.in_place_of(self._locals()) if self._ema else contextlib.nullcontext()
        try:
            with torch.no_grad(), averaged:
                yield
        finally:
            module.train(was_training)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole model on rank 0."""
        whole = {}
        averaged = self._ema.in_place_of(self._locals()) if self._ema else contextlib.nullcontext()
        with torch.no_grad(), averaged:
            for name, value in self._model.state_dict().items():
                value = value.full_tensor() if isinstance(value, DTensor) else value.detach()
                if rank() == 0:
                    whole[name] = value.to("cpu", copy=self._ema is not None)
        return whole

    def pieces(self) -> Iterator[Piece]:
        """Yield this rank's share of weights and moments."""
        for name, parameter in self._named():
            state = self._optimizer.state.get(parameter, {})
            values = {"weight": parameter, **{moment: state[moment] for moment in _MOMENTS if moment in state}}
            if self._ema:
                values["ema"] = self._ema.values[name]
            for kind, value in values.items():
                start, flat = _share(parameter, value)
                if len(flat):
                    yield Piece(kind, name, start, flat)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full shapes."""
        return {name: tuple(parameter.shape) for name, parameter in self._named()}

    def extra(self) -> dict[str, Any]:
        """Return the steps that AdamW has made, and the loss scale."""
        steps = [int(state["step"]) for state in self._optimizer.state.values()]
        extra: dict[str, Any] = {"optimizer_steps": steps[0] if steps else 0}
        if self._scale:
            extra["loss_scale"] = self._scale.state()
        return extra

    def load(self, reader: StateReader, extra: dict[str, Any]) -> None:
        """Take what `pieces` and `extra` of any engine gave."""
        with torch.no_grad():
            for name, parameter in self._named():
                _take(parameter, reader, "weight", name)
                if extra["optimizer_steps"]:
                    step = torch.tensor(float(extra["optimizer_steps"]), device=self.device)
                    self._optimizer.state[parameter] = {"step": step}
                    for moment in _MOMENTS:
                        value = self._optimizer.state[parameter][moment] = torch.zeros_like(parameter)
                        _take(value, reader, moment, name)
                if self._ema:
                    kind = "ema" if "ema" in reader.kinds else "weight"
                    start, local = _place(parameter), self._ema.values[name]
                    local.copy_(reader.read(kind, name, start, start + local.numel()).view_as(local))
        if self._scale and "loss_scale" in extra:
            self._scale.load(extra["loss_scale"])

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self._named())

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self._model.named_parameters() if value.requires_grad)

    def _locals(self) -> dict[str, Tensor]:
        return {name: _local(parameter.detach()) for name, parameter in self._named()}


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the transformer layers, by the names that transformers gives to what must not be taken apart.

    What holds a tied weight is left to the root, which its other owner belongs to: a group shares with no other.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = [layer for layer in layers if all(owners[id(p)] == 1 for p in layer.parameters())]
    return [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _place(parameter: Tensor) -> int:
    """Return where this rank's part of a parameter begins, once flattened: shards are whole rows."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(offset[0]) * math.prod(parameter.shape[1:]) if parameter.ndim else 0


def _share(parameter: Tensor, value: Tensor) -> tuple[int, Tensor]:
    """Return the part of a value that this rank writes: its shard, or its share of what all ranks have."""
    if isinstance(parameter, DTensor):
        return _place(parameter), _local(value.detach()).flatten()
    flat = value.detach().flatten()
    begin, end = (len(flat) * turn // world_size() for turn in (rank(), rank() + 1))
    return begin, flat[begin:end]


def _take(value: Tensor, reader: StateReader, kind: str, name: str) -> None:
    local = _local(value)
    start = _place(value)
    local.copy_(reader.read(kind, name, start, start + local.numel()).view_as(local))
