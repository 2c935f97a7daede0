"""The endless, shuffled stream of one dataset's samples, laid so that its shards are read one after another.

An epoch strings all shards together in a new order, each with its rows shuffled, and begins anywhere: the *line*. The
line is cut into a fixed number of equal *lanes*, and the stream takes from the lanes in turn. Whoever consumes a
contiguous range of lanes therefore reads a contiguous range of the line, a few shards at a time.

Lanes with an odd number run backwards: the shard that a border between two lanes cuts is then used by both at the
same time, not at both ends of the epoch.

The number of lanes never depends on the ranks, and every position is computed from its number alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_shards.permutation import UInts, keys_of, permute, round_keys

_EPOCHS_KEPT = 3

Int64s = NDArray[np.int64]


class Lanes:
    """Positions of the stream to ordinals of the dataset; epoch e is positions [e * samples, (e + 1) * samples)."""

    def __init__(self, *, dataset_id: str, shard_samples: Sequence[int], lanes: int, seed: int) -> None:
        """Keep what the order is a function of.

        Args:
            dataset_id: of the manifest: other content, other order.
            shard_samples: how many samples each shard holds.
            lanes: into how many the line is cut.
            seed: of the run.
        """
        self.lanes = lanes
        self._identity = f"{dataset_id}\n{seed}"
        self._shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self._shard_begins = np.cumsum(self._shard_samples) - self._shard_samples
        self.samples = int(self._shard_samples.sum())
        self._epochs: dict[int, _Epoch] = {}

    def lane(self, positions: Int64s) -> Int64s:
        """Return the lane that each position of the stream takes from."""
        return positions % self.lanes

    def ordinals(self, positions: Int64s) -> Int64s:
        """Return the ordinal at each position of the stream."""
        epochs = positions // self.samples
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = self._within(self._epoch(epoch), positions[here])
        return found

    def _within(self, epoch: _Epoch, positions: Int64s) -> Int64s:
        lane = self.lane(positions)
        index = positions // self.lanes - epoch.lane_begins[lane]
        index = np.where(lane % 2 == 1, epoch.lane_sizes[lane] - 1 - index, index)
        line = (epoch.lane_places[lane] + index + epoch.rotation) % self.samples
        place = np.searchsorted(epoch.line_ends, line, side="right")
        shard = epoch.shard_order[place]
        row = line - (epoch.line_ends[place] - self._shard_samples[shard])
        shuffled = permute(row, self._shard_samples[shard], epoch.shard_keys[:, shard])
        ordinals: Int64s = self._shard_begins[shard] + shuffled
        return ordinals

    def _epoch(self, number: int) -> _Epoch:
        found = self._epochs.get(number)
        if found is None:
            found = _Epoch(f"{self._identity}\n{number}", number, self._shard_samples, self.lanes)
            # Another thread may do the same; what each puts here is equal.
            self._epochs = {**dict(list(self._epochs.items())[-_EPOCHS_KEPT + 1 :]), number: found}
        return found


class _Epoch:
    """The line of one epoch and its cut into lanes."""

    def __init__(self, identity: str, number: int, shard_samples: Int64s, lanes: int) -> None:
        samples = int(shard_samples.sum())
        self.keys: UInts = round_keys(identity)
        self.shard_keys: UInts = keys_of(self.keys, np.arange(len(shard_samples)))
        self.shard_order = permute(np.arange(len(shard_samples)), len(shard_samples), self.keys)
        self.line_ends = np.cumsum(shard_samples[self.shard_order])
        self.rotation = int(self.keys[0, 0]) % samples
        # Lane l holds the stream's positions that leave the remainder l; here they are counted in turns.
        numbers = np.arange(lanes, dtype=np.int64)
        self.lane_begins = -((numbers - number * samples) // lanes)
        self.lane_sizes = -((numbers - (number + 1) * samples) // lanes) - self.lane_begins
        self.lane_places = np.cumsum(self.lane_sizes) - self.lane_sizes
