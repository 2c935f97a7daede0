"""DeepSpeed's ZeRO-1, 2 and 3, with or without offloading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.integrations import unset_hf_deepspeed_config

from data_shards.errors import UserError
from train.collectives import rank
from train.engine import EngineConfig, Precision, decay_groups, set_rate
from train.schedule import OptimizerConfig
from train.state_files import Piece, StateReader

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SCALER_STATE = ("cur_scale", "cur_iter", "cur_hysteresis", "last_overflow_iter")


class ZeroEngine:
    """What DeepSpeed shards; the full-precision weights are in its optimiser."""

    equal_backwards = True

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: OptimizerConfig) -> None:
        """Hand the model over to DeepSpeed."""
        self.device = accelerator.device
        self._model = model
        adamw = torch.optim.AdamW(
            decay_groups(model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            fused=True,
        )
        # DeepSpeed narrows what it is given and gives it new storage; these are what was there.
        whole = model.state_dict()
        self._engine, self._optimizer = accelerator.prepare(model, adamw)
        unset_hf_deepspeed_config()  # else transformers loads every later model, such as the base model, in shards
        self._zero = self._engine.optimizer
        self._stage = self._engine.zero_optimization_stage()
        self.equal_forwards = self._stage == 3
        self._shapes = {
            name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in self._named()
        }
        self._frozen = {name: value for name, value in whole.items() if name not in self._shapes and rank() == 0}
        for name, parameter in self._named():
            start, flat = self._local(parameter, "weight")
            flat.copy_(whole[name].flatten()[start : start + len(flat)])  # else training begins with rounded weights

    def forward(self, *inputs: Any) -> Any:
        """Call the model."""
        return self._engine(*inputs)

    @contextlib.contextmanager
    def sync(self, *, last: bool) -> Iterator[None]:
        """See `Engine`."""
        # ZeRO-2 refuses no_sync: the boundary tells it which backward pass completes the step.
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; see `Engine`."""
        set_rate(self._optimizer, learning_rate)
        self._engine.step()
        if getattr(self._zero, "overflow", False):
            return float("inf")
        return float(self._engine.get_global_grad_norm() or 0.0)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """See `Engine`."""
        was_training = self._model.training  # DeepSpeed's own flag never changes
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train(was_training)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole model on rank 0."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = {}
        for name, parameter in self._named():
            value = safe_get_full_fp32_param(parameter)  # a collective: every rank takes part, one keeps it
            if rank() == 0:
                whole[name] = value.reshape(self._shapes[name]).cpu()
        return whole | self._frozen

    def pieces(self) -> Iterator[Piece]:
        """Yield this rank's share of weights and moments."""
        kinds = ("weight", *(_MOMENTS if self._moments_exist() else ()))
        for name, parameter in self._named():
            for kind in kinds:
                start, flat = self._local(parameter, kind)
                if len(flat):
                    yield Piece(kind, name, start, flat)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full shapes."""
        return self._shapes

    def extra(self) -> dict[str, Any]:
        """Return the steps that AdamW has made, and the loss scale."""
        states = [state for state in self._adamw.state.values() if "step" in state]
        extra: dict[str, Any] = {"optimizer_steps": int(states[0]["step"]) if states else 0}
        if (scaler := self._scaler()) is not None:
            extra["loss_scale"] = {name: getattr(scaler, name) for name in _SCALER_STATE}
        return extra

    def load(self, reader: StateReader, extra: dict[str, Any]) -> None:
        """Take what `pieces` and `extra` of any engine gave."""
        if extra["optimizer_steps"]:
            self._make_moments(extra["optimizer_steps"])
        kinds = ("weight", *(_MOMENTS if extra["optimizer_steps"] else ()))
        for name, parameter in self._named():
            for kind in kinds:
                start, flat = self._local(parameter, kind)
                flat.copy_(reader.read(kind, name, start, start + len(flat)))
            self._refresh(name, parameter, reader)
        if (scaler := self._scaler()) is not None:
            for name, value in extra.get("loss_scale", {}).items():
                setattr(scaler, name, value)

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        adamw: torch.optim.Optimizer = self._zero.optimizer
        return adamw

    def _named(self) -> Iterator[tuple[str, Any]]:
        # DeepSpeed hangs attributes on parameters that no type knows of.
        return ((name, value) for name, value in self._model.named_parameters() if value.requires_grad)

    def _partitions(self) -> list[Tensor]:
        """Return the flat full-precision tensors that the optimiser updates."""
        name = "fp32_partitioned_groups_flat" if self._stage == 3 else "single_partition_of_fp32_groups"
        return list(getattr(self._zero, name))

    def _moments_exist(self) -> bool:
        return any("exp_avg" in state for state in self._adamw.state.values())

    def _make_moments(self, steps: int) -> None:
        """Make what the optimiser would make in its first step."""
        for flat in self._partitions():
            state = self._adamw.state[flat]
            state["step"] = torch.tensor(float(steps), device=flat.device)
            state |= {moment: torch.zeros_like(flat) for moment in _MOMENTS}

    def _local(self, parameter: Any, kind: str) -> tuple[int, Tensor]:
        """Return where this rank's part begins in the flattened parameter, and a view of it."""
        key = None if kind == "weight" else kind
        if self._stage == 3:
            group, offset, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            flat = self._zero.fp32_partitioned_groups_flat[group]
            whole = flat if key is None else self._adamw.state[flat][key]
            start = rank() * length
            real = max(0, min(length, parameter.ds_numel - start))  # the last part is padded
            return min(start, parameter.ds_numel), whole.detach().narrow(0, offset, real)
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, parameter.detach().flatten()[:0]
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        whole = flat if key is None else self._adamw.state[flat][key]
        place = mapping.hp_fragment_address
        return mapping.lp_fragment_address.start, whole.detach().narrow(0, place.start, place.numel)

    def _refresh(self, name: str, parameter: Any, reader: StateReader) -> None:
        """Bring the weights that the forward pass reads to what the optimiser's copy of them is now."""
        if self._stage < 3:
            parameter.data.copy_(reader.full("weight", name))
            return
        _, flat = self._local(parameter, "weight")
        parameter.ds_tensor.data[: len(flat)].copy_(flat)

    def _scaler(self) -> Any:
        scaler = getattr(self._zero, "loss_scaler", None)
        return scaler if getattr(scaler, "dynamic", False) else None


def deepspeed_plugin(config: EngineConfig, precision: Precision, max_grad_norm: float) -> DeepSpeedPlugin:
    """Return DeepSpeed's settings; the batch sizes in them are not used, since the loop feeds chunks."""
    try:
        import deepspeed
        from accelerate.utils import DeepSpeedPlugin
    except ImportError as error:
        raise UserError(f"engine {config.kind} needs DeepSpeed: pip install 'dipole[deepspeed]'") from error
    if not torch.cuda.is_available():
        # Otherwise its first start compiles a shared-memory collective for minutes; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stage = int(config.kind[-1])
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": torch.cuda.is_available()}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            # Its own CPU optimiser is compiled for minutes at first use; PyTorch's fused one is as exact.
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": precision == "bfloat16"},
            "fp16": {"enabled": precision == "float16"},
            "steps_per_print": 1 << 30,
        }
    )
