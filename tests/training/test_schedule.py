"""The learning rate: warm-up, constant or cosine, a cool-down that may begin at any time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import TrainingConfig
from core.training.schedule import CONSTANT, COOL_DOWN, COSINE, WARM_UP, Schedule

COSINE_RUN = TrainingConfig(
    schedule="cosine", warmup_iters=10, max_iters=110, learning_rate=1e-2, min_learning_rate=1e-3
)
CONSTANT_RUN = TrainingConfig(schedule="constant", warmup_iters=10, max_iters=100, learning_rate=1e-2)


def test_warm_up_then_cosine():
    rate = Schedule(COSINE_RUN).rate
    assert rate(1) == pytest.approx(1e-3)
    assert rate(5) == pytest.approx(5e-3)
    assert rate(10) == pytest.approx(1e-2)
    assert rate(60) == pytest.approx((1e-2 + 1e-3) / 2)
    assert rate(110) == pytest.approx(1e-3)
    assert rate(500) == pytest.approx(1e-3)
    rates = [rate(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert math.isfinite(Schedule(TrainingConfig(schedule="cosine", warmup_iters=0, max_iters=1)).rate(1))


def test_warm_up_constant_cool_down():
    schedule = Schedule(CONSTANT_RUN)
    assert [schedule.phase(step) for step in (1, 10, 75, 76, 100)] == [
        WARM_UP, CONSTANT, CONSTANT, COOL_DOWN, COOL_DOWN,
    ]  # fmt: skip
    assert [schedule.rate(step) for step in (5, 10, 75, 100)] == pytest.approx([5e-3, 1e-2, 1e-2, 0.0])
    assert schedule.rate(88) == pytest.approx(1e-2 * 12 / 25)
    assert schedule.last_step == 100


@pytest.mark.parametrize("training", [COSINE_RUN, CONSTANT_RUN], ids=["cosine", "constant"])
@given(step=st.integers(1, 99))
def test_finish_cools_down_from_any_step_without_a_jump(training, step):
    schedule = Schedule(training)
    before = schedule.rate(step)
    cool_down = schedule.finish(step)
    assert schedule.rate(step) == pytest.approx(before)
    assert step < schedule.last_step <= training.max_iters
    assert schedule.last_step == cool_down.end
    assert schedule.rate(cool_down.end) == pytest.approx(min(training.min_learning_rate, before))
    rates = [schedule.rate(s) for s in range(step, cool_down.end + 1)]
    assert rates == sorted(rates, reverse=True)
    assert schedule.finish(min(step + 1, cool_down.end)) == cool_down  # asking again changes nothing


def test_an_early_cool_down_is_part_of_a_checkpoint():
    schedule, resumed = Schedule(COSINE_RUN), Schedule(COSINE_RUN)
    assert resumed.phase(30) == COSINE
    schedule.finish(20)
    resumed.load_state_dict(schedule.state_dict())
    assert [resumed.rate(step) for step in range(1, 71)] == [schedule.rate(step) for step in range(1, 71)]
    assert resumed.last_step == schedule.last_step == 70


def test_more_steps_after_a_cool_down_warm_up_again():
    done = Schedule(CONSTANT_RUN)
    longer = Schedule(TrainingConfig(schedule="constant", warmup_iters=10, max_iters=400, learning_rate=1e-2))
    sentence = longer.go_on(100, done.rate(100))
    assert "warms up again to 0.01 within 10 steps" in sentence
    assert [longer.rate(step) for step in (101, 105, 110, 300)] == pytest.approx([1e-3, 5e-3, 1e-2, 1e-2])
    again = Schedule(longer.training)
    again.load_state_dict(longer.state_dict())
    assert again.rate(104) == longer.rate(104)


def test_more_steps_in_the_middle_of_a_run_need_no_word():
    running = Schedule(CONSTANT_RUN)
    longer = Schedule(TrainingConfig(schedule="constant", warmup_iters=10, max_iters=400, learning_rate=1e-2))
    assert longer.go_on(50, running.rate(50)) == ""
    assert longer.rate(51) == 1e-2


def test_a_cool_down_that_has_too_little_time_left_goes_on_faster_from_where_it_is():
    schedule = Schedule(TrainingConfig(max_iters=1000, learning_rate=1.0, warmup_iters=0))
    schedule.finish(400, at_most=60)
    assert schedule.last_step == 460
    rate = schedule.rate(430)
    schedule.finish(430, at_most=10)
    assert schedule.last_step == 440
    assert schedule.rate(430) == pytest.approx(rate)
    assert schedule.rate(440) == pytest.approx(0.0)
    other = Schedule(schedule.training)
    other.load_state_dict(schedule.state_dict())
    assert other.rate(435) == schedule.rate(435)
