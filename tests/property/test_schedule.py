"""The learning rate of any schedule, warm-up and length."""

from __future__ import annotations

from hypothesis import given, strategies as st

from train.schedule import OptimizerConfig, learning_rate

CONFIGS = st.builds(
    OptimizerConfig,
    learning_rate=st.floats(1e-8, 10),
    warmup_share=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    final_share=st.floats(0, 1),
)


@given(config=CONFIGS, total=st.integers(1, 400))
def test_the_rate_rises_then_falls_within_its_bounds(config: OptimizerConfig, total: int) -> None:
    rates = [learning_rate(config, step, total) for step in range(total)]
    highest = config.learning_rate * (1 + 1e-12)
    assert all(0 < rate <= highest for rate in rates)
    assert rates[-1] >= min(rates[0], config.final_share * config.learning_rate) * (1 - 1e-12)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@given(share=st.floats(0, 1), total=st.integers(1, 400))
def test_a_constant_rate_is_the_highest_from_the_end_of_the_warm_up(share: float, total: int) -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_share=share, schedule="constant")
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert [rate for step, rate in enumerate(rates) if step >= share * total] == [0.5] * sum(
        step >= share * total for step in range(total)
    )
