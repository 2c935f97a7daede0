"""Engines in one process: what is refused before a rank starts, what is made of a config, and one step by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from data_shards.errors import UserError
from encoder.model import Encoder
from tests.unit.tiny_backbones import padded, tiny_kind
from train.engine import (
    EngineConfig,
    _prepare,
    bfloat16_pays,
    check_engine,
    decay_groups,
    resolve_precision,
    start_engine,
    start_process_group,
)
from train.schedule import OptimizerConfig
from train.state_files import StateReader, write_part, write_state

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, r"^engine\.timeout_s must be at least 1, came 0$"),
        ({"offload": True}, r"^engine\.offload is DeepSpeed's, engine\.kind is ddp; set kind to zero2 or zero3$"),
        ({"offload": True, "kind": "fsdp2"}, r"engine\.kind is fsdp2; set kind to zero2 or zero3$"),
        ({"compile": True, "kind": "zero1"}, r"^engine\.compile does not go with zero1; set kind to ddp or fsdp2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineConfig(**options)


def test_averaged_weights_under_deepspeed_are_refused() -> None:
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    averaging = OptimizerConfig(ema_decay=0.9)
    for kind in ("ddp", "fsdp2"):
        check_engine(EngineConfig(kind=kind), averaging, ranks=4)  # type: ignore[arg-type]
    check_engine(EngineConfig(kind="zero3"), OptimizerConfig(), ranks=4)
    message = r"^optimizer\.ema_decay does not go with engine zero3; set kind to ddp or fsdp2$"
    with pytest.raises(UserError, match=message):
        check_engine(EngineConfig(kind="zero3"), averaging, ranks=4)


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    check_engine(EngineConfig(), OptimizerConfig(), ranks=1)
    with pytest.raises(UserError, match=r"^engine zero2 needs DeepSpeed: pip install 'dipole\[deepspeed\]'$"):
        check_engine(EngineConfig(kind="zero2"), OptimizerConfig(), ranks=1)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_engine(EngineConfig(), OptimizerConfig(), ranks=1)
    message = "^engine.compile needs a C.. compiler and there is no no-such-compiler; install it, or leave it out$"
    with pytest.raises(UserError, match=message):
        check_engine(EngineConfig(compile=True), OptimizerConfig(), ranks=1)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_engine(EngineConfig(), OptimizerConfig(), ranks=2)
    with pytest.raises(
        UserError, match=r"^3 ranks on a machine with 2 GPUs; set run\.ranks to 2, or use more nodes$"
    ):
        check_engine(EngineConfig(), OptimizerConfig(), ranks=3)


@pytest.mark.deepspeed
@pytest.mark.parametrize("computes", [True, False])
def test_float16_under_deepspeed_is_refused_where_the_processor_lacks_it(
    monkeypatch: pytest.MonkeyPatch, computes: bool
) -> None:
    """Which processor this is cannot be chosen here, so the answer of the probe is."""
    pytest.importorskip("deepspeed", reason="needs the deepspeed extra")
    monkeypatch.setattr("train.engine.float16_computes", lambda device: computes)
    config = EngineConfig(kind="zero2", precision="float16")
    if computes:
        check_engine(config, OptimizerConfig(), ranks=1)
        return
    with pytest.raises(UserError, match=r"^engine zero2 in float16 needs a processor that computes in it.*; set eng"):
        check_engine(config, OptimizerConfig(), ranks=1)


def test_auto_precision_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision(EngineConfig(precision="float16"), CPU) == "float16"
    for flags, wanted in (("avx512f avx512_bf16", "bfloat16"), ("avx512f", "float32")):
        monkeypatch.setattr("train.engine._cpu_flags", lambda flags=flags: flags)
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            assert resolve_precision(EngineConfig(), CPU) == wanted
            assert bfloat16_pays(CPU) == (wanted == "bfloat16")


def test_accelerate_that_made_fewer_processes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is of the process, so whoever started it first decides; training would go on, each rank alone."""
    Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = (
        "^engine ddp on 2 ranks was asked, Accelerate set up NO on 1; start with `dipole train` or torchrun, and"
    )
    with pytest.raises(UserError, match=message):
        start_process_group(EngineConfig())


def test_the_environment_does_not_choose_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = start_process_group(EngineConfig(precision="float32"))
    assert (accelerator.mixed_precision, accelerator.distributed_type) == ("no", DistributedType.NO)


def test_matrices_decay_and_vectors_do_not(encoder: Encoder) -> None:
    encoder.backbone.embeddings.requires_grad_(False)
    decaying, others = decay_groups(encoder, 0.3)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {value.ndim for value in decaying["params"]} == {2}
    assert {value.ndim for value in others["params"]} == {1}
    trained = [value for value in encoder.parameters() if value.requires_grad]
    assert len(decaying["params"]) + len(others["params"]) == len(trained) < len(list(encoder.parameters()))


def checkpointing(encoder: Encoder) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules())


def test_a_config_reaches_the_backbone(encoder: Encoder) -> None:
    start_engine(encoder, EngineConfig(gradient_checkpointing=True), OptimizerConfig())
    assert checkpointing(encoder)
    assert encoder.backbone.config._attn_implementation == "eager", "on a CPU the fused kernel is slower"
    start_engine(encoder, EngineConfig(attention="sdpa"), OptimizerConfig())
    assert encoder.backbone.config._attn_implementation == "sdpa"
    assert not checkpointing(encoder)


def test_auto_attention_on_a_gpu_takes_what_the_backbone_has(tmp_path: Path) -> None:
    """What the model names is not what the person asked for: MPNet was refused with "use auto", which it was."""
    encoder = tiny_kind(tmp_path, "mpnet")
    _prepare(encoder, EngineConfig(), torch.device("cuda"))
    assert encoder.backbone.config._attn_implementation == "eager"


class Slope(nn.Module):
    """A loss whose gradient is what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1.0, -2.0]]))
        self.vector = nn.Parameter(torch.tensor([0.5]))

    def forward(self, slope: Tensor) -> Tensor:
        return (self.matrix * slope).sum() + 4.0 * self.vector.sum()


def by_hand(start: float, gradients: list[float], *, rate: float, decay: float) -> float:
    """AdamW, as in Loshchilov and Hutter 2019, with the default betas."""
    value, first, second = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        value -= rate * decay * value
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return value


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0, 100.0])
def test_steps_by_hand(max_grad_norm: float) -> None:
    """Gradients of 3, 0 and 4 have norm 5; a rate of its own for each step; the matrix decays."""
    model = Slope()
    config = OptimizerConfig(max_grad_norm=max_grad_norm, weight_decay=0.1)
    engine = start_engine(model, EngineConfig(precision="float32"), config)
    for _ in range(2):
        engine.backward(engine.forward(torch.tensor([[3.0, 0.0]])))
        assert engine.step(0.01) == pytest.approx(5.0)
        assert all(value.grad is None for value in model.parameters())
    clip = 5.0 if max_grad_norm == 1.0 else 1.0
    wanted = by_hand(1.0, [3.0 / clip] * 2, rate=0.01, decay=0.1)
    assert model.matrix[0, 0].item() == pytest.approx(wanted, abs=1e-6)
    assert model.matrix[0, 1].item() == pytest.approx(-2.0 * (1 - 0.001) ** 2, abs=1e-6)
    assert model.vector.item() == pytest.approx(by_hand(0.5, [4.0 / clip] * 2, rate=0.01, decay=0.0), abs=1e-6)
    assert engine.extra() == {"optimizer_steps": 2}


@pytest.mark.parametrize("slope", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(slope: float) -> None:
    model = Slope()
    engine = start_engine(model, EngineConfig(precision="float32"), OptimizerConfig())
    engine.backward(engine.forward(torch.tensor([[slope, 1.0]])))
    assert not torch.tensor(engine.step(0.01)).isfinite()
    assert model.matrix.tolist() == [[1.0, -2.0]]
    assert all(value.grad is None for value in model.parameters())
    assert engine.extra() == {"optimizer_steps": 0}


def test_float16_scales_the_loss_and_takes_it_back() -> None:
    """The same steps as in float32; an overflow halves the scale."""
    steps = []
    for precision in ("float32", "float16"):
        model = Slope()
        engine = start_engine(model, EngineConfig(precision=precision), OptimizerConfig())  # type: ignore[arg-type]
        engine.backward(engine.forward(torch.tensor([[3.0, 0.0]])))
        scale = 2.0**16 if precision == "float16" else 1.0
        assert model.matrix.grad is not None
        assert model.matrix.grad.tolist() == [[3.0 * scale, 0.0]]
        assert engine.step(0.01) == pytest.approx(5.0)
        steps.append(model.matrix.tolist())
    assert steps[0] == steps[1]
    engine.backward(engine.forward(torch.tensor([[float("inf"), 0.0]])))
    engine.step(0.01)
    assert engine.extra() == {"optimizer_steps": 1, "loss_scale": {"value": 2.0**15, "steady": 0}}
    assert model.matrix.tolist() == steps[1]


def test_what_is_frozen_is_in_the_snapshot_and_in_no_checkpoint(encoder: Encoder, tmp_path: Path) -> None:
    encoder.backbone.embeddings.requires_grad_(False)
    frozen = {name for name, value in encoder.named_parameters() if not value.requires_grad}
    engine = start_engine(encoder, EngineConfig(precision="float32"), OptimizerConfig())
    engine.forward(*padded(encoder, ["open a file"])).sum().backward()
    engine.step(0.01)
    assert frozen
    assert frozen.isdisjoint(engine.shapes())
    assert {piece.name for piece in engine.pieces()} == set(engine.shapes())
    assert engine.weights().keys() == encoder.state_dict().keys()
    write_part(tmp_path, list(engine.pieces()), rank=0, world_size=1)
    head = {"state": {}, "shapes": engine.shapes(), "extra": {"engine": engine.extra()}}
    write_state(tmp_path, head, world_size=1)
    reader = StateReader(tmp_path)
    before = {name: value.clone() for name, value in engine.weights().items()}
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            value += 0 if name in frozen else 1
    engine.load(reader, reader.extra["engine"])
    assert all(torch.equal(value, before[name]) for name, value in engine.weights().items())
