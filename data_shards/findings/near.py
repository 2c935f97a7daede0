"""Passages that are nearly the same, among a sample of the distinct ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.cleaning.config import CleaningConfig
from data_shards.findings.finding import EXAMPLES
from data_shards.findings.parts import NO_TEXT, Keys, Part
from data_shards.findings.seen import Seen, Spot, seen
from data_shards.findings.text_sample import BottomK
from data_shards.findings.texts import plural
from data_shards.npy import npy_bytes


class _Signed(NamedTuple):
    place: int
    key: int
    signature: NDArray[np.uint32]


class NearDuplicates:
    """Takes the texts of one part; keeps a signature of those in the sample."""

    def __init__(self, part: str, texts: int, seed: int) -> None:
        """Begin empty.

        Args:
            part: other parts are passed over.
            texts: how many distinct texts are compared at most.
            seed: of which.
        """
        self._part = part
        self._config = CleaningConfig(near_duplicates=True)
        self._sample: BottomK[_Signed] = BottomK(texts, seed)

    def look(self, part: Part) -> None:
        """Take a batch."""
        if part.name != self._part:
            return
        from data_shards.cleaning.near_duplicates import signatures

        wanted = [at for at, key in enumerate(part.text_keys.tolist()) if key != NO_TEXT and self._sample.wants(key)]
        if not wanted:
            return
        signed = signatures([part.texts[at] for at in wanted], self._config)
        for at, signature in zip(wanted, signed, strict=True):
            key = int(part.text_keys[at])
            self._sample.put(key, _Signed(int(part.ordinals[at]), key, signature.copy()))

    def findings(self) -> list[Seen]:
        """Return those that are nearly the same as an earlier one."""
        from data_shards.cleaning.near_duplicates import near_duplicate_rows

        rows = sorted(self._sample.items(), key=lambda row: (row.place, row.key))
        if len(rows) < 2:
            return []
        with tempfile.TemporaryDirectory(prefix="dipole-") as folder:
            path = Path(folder) / "signatures.npy"
            path.write_bytes(npy_bytes(np.stack([row.signature for row in rows])))
            again = np.flatnonzero(near_duplicate_rows([path], self._config)).tolist()
        found = seen(
            f"near_duplicate_{self._part}",
            "note",
            (len(again), len(rows), f"sampled {plural(self._part)}"),
            "false negatives of each other, and crowded results; import with cleaning.near_duplicates",
            self._keys_of,
            [Spot(rows[at].place, rows[at].key) for at in again[:EXAMPLES]],
        )
        return [found] if again else []

    def _keys_of(self, parts: list[Part]) -> tuple[Part, Keys]:
        part = next(part for part in parts if part.name == self._part)
        return part, part.text_keys
