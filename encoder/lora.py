"""Low-rank adapters through peft: trained beside frozen weights, and added into them when a snapshot is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from data_shards.errors import UserError

if TYPE_CHECKING:
    from encoder.model import Encoder

_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of the backbone's linear layers; the projection is always trained whole."""

    rank: int = 0
    """Of each adapter; 0 trains the weights themselves."""
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.0
    """On the adapters' inputs."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the linear layers to adapt, like `query`; empty takes all."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rank < 0:
            raise UserError(f"lora.rank must be at least 0, came {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha must be above 0, came {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be at least 0 and below 1, came {self.dropout}")

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return self.alpha / self.rank


def add_lora(encoder: Encoder, config: LoraConfig, *, seed: int = 0) -> None:
    """Freeze the backbones and put adapters beside their linear layers; they change nothing until they are trained.

    Args:
        encoder: changed in place, every tower of it.
        config: rank 0 leaves the encoder as it is.
        seed: of the adapters' random half.

    Raises:
        UserError: peft is not installed, or the targets fit no linear layer.
    """
    if not config.rank:
        return
    if encoder.lora is not None:
        raise ValueError("this encoder has adapters already")
    try:
        from peft import LoraConfig as PeftConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError('lora.rank needs peft: pip install "dipole[lora]"') from error
    for backbone in encoder.backbones:
        peft = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only ever divides it
            lora_dropout=config.dropout,
            target_modules=_targets(backbone, config.targets),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(peft, backbone, adapter_name=_ADAPTER)
    encoder.lora = config


def _targets(backbone: nn.Module, wanted: tuple[str, ...]) -> list[str]:
    """Return the names of the layers to adapt; refuse what is no linear layer, since the merge knows no other."""
    modules = dict(backbone.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError("lora.rank is set and this backbone has no linear layer to adapt; set it to 0")
    found = [] if wanted else linear
    for target in wanted:
        matching = [name for name in modules if f".{name}".endswith(f".{target}")]
        if not matching or not set(matching) <= set(linear):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise UserError(f"lora.targets {target!r} is no linear layer of this backbone; it has {known}")
        found += matching
    return found


def merged(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return plain weights: each adapter added into its layer, in float32 at least, under the layer's own name.

    Args:
        weights: of an adapted encoder or backbone, as its `state_dict` names them. No module is needed, so weights
            that an engine gathered can be merged.
        config: that the adapters were made with.
    """
    plain = {}
    for name, value in weights.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer = name.removesuffix("base_layer.weight")
        if layer != name:
            wide = torch.promote_types(value.dtype, torch.float32)
            down, up = (weights[f"{layer}lora_{half}.{_ADAPTER}.weight"].to(value.device, wide) for half in "AB")
            value = (value.to(wide) + config.scale * (up @ down)).to(value.dtype)
        plain[name.replace(".base_layer.", ".")] = value
    return plain
