"""Which folder of a model holds which part of which tower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_shards.atomic import read_json
from data_shards.errors import UserError

Side = Literal["query", "passage"]

ROUTES: dict[Side, str] = {"query": "query", "passage": "document"}
"""What sentence-transformers calls the sides."""
_CHAINS = tuple(
    ("Transformer", "Pooling", *dense, *normalize) for dense in ((), ("Dense",)) for normalize in ((), ("Normalize",))
)


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Where the parts of one side lie."""

    transformer: Path
    """Backbone, tokenizer and length."""
    pooling: Path | None = None
    """None in a plain transformers folder."""
    dense: Path | None = None
    """The projection."""
    normalize: bool = True
    """Whether vectors are scaled to length 1."""


def read_towers(path: Path) -> dict[Side, Tower]:
    """Find the parts of both sides; they are the same where there is one tower.

    Raises:
        UserError: the model has modules that Dipole does not read.
    """
    if not (path / "modules.json").exists():
        return dict.fromkeys(ROUTES, Tower(transformer=path))
    chains: dict[Side, list[tuple[str, Path]]] = {"query": [], "passage": []}
    for module in read_json(path / "modules.json"):
        kind, folder = module_kind(module["type"]), _inside(path, module["path"])
        for side, chain in chains.items():
            chain.extend(_route(folder, ROUTES[side]) if kind == "Router" else [(kind, folder)])
    return {side: make_tower(path, chain) for side, chain in chains.items()}


def _route(folder: Path, route: str) -> list[tuple[str, Path]]:
    router = read_json(folder / "router_config.json")
    if set(router["structure"]) != set(ROUTES.values()) or router.get("parameters", {}).get("route_mappings"):
        raise UserError(f"{folder} routes {', '.join(router['structure'])}; Dipole reads query and document alone")
    return [(module_kind(router["types"][name]), _inside(folder, name)) for name in router["structure"][route]]


def make_tower(path: Path, chain: list[tuple[str, Path]]) -> Tower:
    """Name the parts of one side.

    Raises:
        UserError: they are others than Dipole knows, or in another order.
    """
    names = tuple(name for name, _ in chain)
    if names not in _CHAINS:
        raise UserError(
            f"{path} has modules {', '.join(names)}; Dipole reads Transformer, Pooling, Dense and Normalize, "
            "in this order"
        )
    folders = dict(chain)
    return Tower(
        transformer=folders["Transformer"],
        pooling=folders["Pooling"],
        dense=folders.get("Dense"),
        normalize="Normalize" in names,
    )


def module_kind(name: str) -> str:
    """Return a class name without its modules, which move from release to release."""
    return name.rsplit(".", 1)[-1]


def _inside(path: Path, name: str) -> Path:
    if not (path / name).resolve().is_relative_to(path.resolve()):
        raise UserError(f"{path} names a part outside of itself: {name}")
    return path / name
