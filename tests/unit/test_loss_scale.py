"""The loss scale of float16, number by number."""

from __future__ import annotations

from train.loss_scale import _GROW_AFTER_STEPS, LossScale


def see(scale: LossScale, *steps: bool) -> float:
    for finite in steps:
        scale.saw(finite=finite)
    return scale.value


def test_it_halves_at_each_overflow_and_never_falls_below_one() -> None:
    scale = LossScale()
    assert see(scale, False) == 2**15
    assert see(scale, True, True, False) == 2**14
    assert see(scale, *[False] * 20) == 1.0


def test_it_doubles_after_many_steps_in_a_row_without_one() -> None:
    scale = LossScale()
    assert see(scale, *[True] * (_GROW_AFTER_STEPS - 1)) == 2**16
    assert see(scale, True) == 2**17
    assert see(scale, *[True] * (_GROW_AFTER_STEPS - 1)) == 2**17, "the count begins anew"
    assert see(scale, False) == 2**16
    assert see(scale, *[True] * (_GROW_AFTER_STEPS - 1)) == 2**16
    assert see(scale, True) == 2**17


def test_its_state_goes_on_where_it_was() -> None:
    scale, resumed = LossScale(), LossScale()
    see(scale, False, *[True] * (_GROW_AFTER_STEPS - 1))
    resumed.load(scale.state())
    assert see(resumed, True) == see(scale, True) == 2**16
    assert resumed.state() == scale.state()


def test_another_engine_s_state_leaves_it_at_its_beginning() -> None:
    scale = LossScale()
    scale.load({"cur_scale": 4, "cur_iter": 9})
    assert scale.state() == LossScale().state()
