"""The exceptions that cross room borders, and processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from data_shards.errors import ShardCorruptError, UserError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_corrupt_shard_keeps_its_place_when_sent_to_another_process(protocol: int) -> None:
    error = ShardCorruptError(Path("a/train-000001.tar"), 1536, "wanted a header, came zeroes")
    found = pickle.loads(pickle.dumps(error, protocol))
    assert type(found) is ShardCorruptError
    assert (found.path, found.offset, found.what) == (error.path, error.offset, error.what)
    assert str(found) == "a/train-000001.tar at byte 1536: wanted a header, came zeroes"


def test_a_corrupt_shard_is_something_that_a_person_can_mend() -> None:
    assert issubclass(ShardCorruptError, UserError)
    assert issubclass(UserError, ValueError)
