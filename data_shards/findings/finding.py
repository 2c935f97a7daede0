"""One finding about a dataset, with examples that lead back to shard and row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.manifest import Manifest

EXAMPLES = 5
"""So many are kept of each finding: the first ones of the dataset."""
TEXT_CHARS = 200
"""An example's text is cut to this."""

Severity = Literal["fatal", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Like:
    """What an example repeats."""

    id: str
    shard: str
    row: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One place where a finding is seen."""

    id: str
    """Of the query or passage."""
    shard: str
    """File name."""
    row: int
    """Within the shard, from 0."""
    text: str
    """Cut to `TEXT_CHARS`."""
    like: Like | None = None
    """The first one that it is the same as, where the finding is of repetitions."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `like` is told only where there is one."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, how often, and what to do about it."""

    name: str
    """Stable: `checks.allow` takes it, and scripts may read it."""
    severity: Severity
    """`fatal` ruins training or search, `warning` costs quality, `note` is good to know."""
    count: int
    """How many."""
    of: int
    """Out of how many."""
    unit: str
    """Of what: `queries`, `positives`…"""
    advice: str
    """One line on what to do."""
    examples: tuple[Example, ...] = ()
    """The first few."""
    allowed: bool = False
    """A fatal one that the user allowed by name."""

    @property
    def share(self) -> float:
        """Count over of what there is."""
        return self.count / self.of if self.of else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `allowed` is told only where it is true."""
        row = {**asdict(self), "share": round(self.share, 6)}
        row["examples"] = [example.to_dict() for example in self.examples]
        return row if self.allowed else {key: value for key, value in row.items() if key != "allowed"}


class Places:
    """From a sample's number in its dataset to shard and row."""

    def __init__(self, manifest: Manifest) -> None:
        """Count through the shards."""
        self._names = [shard.path for shard in manifest.shards]
        self.ends: NDArray[np.int64] = np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)

    def example(self, ordinal: int, name: str, text: str) -> Example:
        """Return the example of a text of sample `ordinal`; `name` is its id."""
        shard = int(np.searchsorted(self.ends, ordinal, side="right"))
        begin = int(self.ends[shard - 1]) if shard else 0
        return Example(id=shown(name), shard=self._names[shard], row=ordinal - begin, text=shown(text))


def shown(text: str) -> str:
    """Cut a text for showing."""
    return text if len(text) <= TEXT_CHARS else text[: TEXT_CHARS - 1] + "…"
