"""Averaged weights: the definition, and that the trained ones come back."""

from __future__ import annotations

import pytest
import torch

from train.ema import Ema


def test_the_average_by_hand() -> None:
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor(4.0)}
    ema = Ema(weights, 0.75)
    weights["a"].copy_(torch.tensor([3.0, 2.0]))
    weights["b"].fill_(0.0)
    assert ema.values["a"].tolist() == [1.0, -2.0], "a copy of what it began with"
    ema.update(weights)
    assert ema.values["a"].tolist() == [1.5, -1.0]
    assert ema.values["b"].item() == 3.0
    ema.update(weights)
    assert ema.values["a"].tolist() == [1.875, -0.25]
    assert ema.values["b"].item() == 2.25


def test_a_decay_of_zero_is_the_last_weights() -> None:
    weights = {"a": torch.tensor([1.0])}
    ema = Ema(weights, 0.0)
    weights["a"].fill_(7.0)
    ema.update(weights)
    assert ema.values["a"].tolist() == [7.0]


def test_it_stands_in_for_the_weights_and_then_goes() -> None:
    weight = torch.tensor([1.0, 2.0])
    ema = Ema({"a": weight}, 0.5)
    with torch.no_grad():
        weight += 2
    ema.update({"a": weight})
    with ema.in_place_of({"a": weight}):
        assert weight.tolist() == [2.0, 3.0], "the same storage, so whoever holds it sees the average"
    assert weight.tolist() == [3.0, 4.0]
    assert ema.values["a"].tolist() == [2.0, 3.0]


def test_the_weights_come_back_after_an_error_too() -> None:
    weight = torch.tensor([1.0])
    ema = Ema({"a": torch.tensor([5.0])}, 0.5)
    with pytest.raises(ZeroDivisionError), ema.in_place_of({"a": weight}):
        weight /= 1 // 0
    assert weight.tolist() == [1.0]
