"""Steps that a text has use for, where a configuration leaves them open."""

from __future__ import annotations

import pytest
import torch

from core.config.plan import CPU_TOKENS, useful_passes, with_steps
from core.config.schema import build
from core.runs import EventReader
from tests.run_tools import evaluations, new_run, train_here, write_text


def test_passes_grow_with_dropout_and_shrink_with_the_text():
    plain, strong = build({}), build({"mixer_dropout": 0.3})
    assert useful_passes(plain, 1_000_000) == pytest.approx(8)
    assert useful_passes(strong, 1_000_000) == pytest.approx(25.1)
    assert 0.55 < useful_passes(strong, 10_000_000) / useful_passes(strong, 1_000_000) < 0.8
    assert useful_passes(plain, 1) == useful_passes(plain, 100_000)


def test_steps_follow_from_the_text_unless_they_are_given():
    config = build({"max_iters": 0, "batch_size": 4, "block_size": 100, "mixer_dropout": 0.3})
    planned = with_steps(config, 1_000_000, 250_000, cpu=False).training
    assert planned.max_iters == pytest.approx(25.1 * 250_000 / 400, rel=1e-3)
    assert planned.eval_interval <= planned.max_iters // 8
    on_cpu = with_steps(config, 100_000_000, 25_000_000, cpu=True).training
    assert on_cpu.max_iters == CPU_TOKENS // 400
    given = build({"max_iters": 7})
    assert with_steps(given, 1_000_000, 250_000, cpu=True) is given


def test_a_run_freezes_the_steps_that_its_text_gives(tmp_path):
    run = new_run(tmp_path, write_text(tmp_path / "text", files=1, words=60), max_iters=0)
    assert train_here(run) == 0
    steps = run.config().training.max_iters
    assert steps >= 8
    assert evaluations(run)[-1][0] == steps
    starts = [event for event in EventReader(run.events_path).poll() if event.kind == "run"]
    assert [event.max_iters for event in starts] == [0, steps]


def test_a_run_ends_within_its_time_budget_with_its_rate_down(tmp_path):
    text = write_text(tmp_path / "text", files=1, words=400)
    run = new_run(tmp_path, text, max_iters=1_000_000, time_budget=0.05, sample_tokens=0, schedule="constant")
    assert train_here(run) == 0
    events = EventReader(run.events_path).poll()
    plans = [event for event in events if event.kind == "plan"]
    ends = [event for event in events if event.kind == "schedule"]
    last = [event for event in events if event.kind == "step"][-1]
    assert plans[0].step == 0
    assert plans[0].tokens > 0
    assert plans[0].seconds_low <= plans[0].seconds
    assert ends
    assert last.step == ends[-1].last_step < 1_000_000
    assert last.learning_rate < 0.1 * run.config().training.learning_rate
    assert torch.load(run.checkpoints()[-1].path, weights_only=True)["progress"]["seconds"] <= 3.2
