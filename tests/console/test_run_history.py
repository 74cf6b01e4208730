"""What the console remembers of a run: bounded, with spikes and gaps intact, right after a resume."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from core.runs.event_file import parse
from core.runs.history import RunHistory
from core.runs.smoothing import Smoother
from core.runs.table import Table
from tests.console.console_support import eval_event, run_event, step_event, typed

row = SimpleNamespace


def fed(*events):
    history = RunHistory()
    history.feed(typed({"time": 1000.0 + index, **event} for index, event in enumerate(events)))
    return history


def test_a_million_events_stay_in_bounds_and_keep_every_spike():
    table = Table(("step", "time", "loss", "loss_min", "loss_max"), capacity=1024)
    for step in range(1, 200_001):
        value = 500.0 if step == 77_777 else 2.0
        table.add(row(step=step, time=step, loss=2.0, loss_min=1.0, loss_max=value))
    assert table.count <= 1024
    assert table._data.nbytes <= 1024 * 5 * 8
    assert table.column("loss_max").max() == 500.0
    at = table.column("step")[int(table.column("loss_max").argmax())]
    assert abs(at - 77_777) < 600
    steps = table.column("step")
    assert (np.diff(steps) > 0).all()
    assert steps[-1] == 200_000


def test_what_is_not_a_number_stays_a_gap_when_merged():
    table = Table(("step", "time", "loss", "loss_min", "loss_max"), capacity=512)
    for step in range(1, 2001):
        value = math.nan if 1000 <= step < 1100 else 2.0
        table.add(row(step=step, time=step, loss=value, loss_min=value, loss_max=value))
    steps, loss = table.column("step"), table.column("loss")
    assert np.isnan(loss[(steps > 1010) & (steps < 1090)]).all()
    assert np.isfinite(loss[(steps < 980) | (steps > 1120)]).all()


def test_a_resumed_trainer_replaces_what_was_lost():
    history = fed(
        run_event(), *(step_event(step) for step in range(10, 110, 10)), eval_event(100),
        run_event(50), step_event(60, 9.0), step_event(70, 9.0),
    )  # fmt: skip
    assert history.steps.column("step").tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert history.steps.column("loss")[-1] == 9.0
    assert history.evaluations.count == 0
    assert [mark.kind for mark in history.marks] == ["start"]


def test_pauses_checkpoints_and_ends_are_remembered():
    checkpoint = {"kind": "checkpoint", "step": 30, "best": True, "file": "f", "bytes": 1, "seconds": 0.1}
    state = {"kind": "state", "detail": "", "progress": None}
    history = fed(
        run_event(), step_event(20), {**state, "state": "paused", "step": 20},
        {**state, "state": "training", "step": 20}, checkpoint,
        {"kind": "end", "reason": "finished", "step": 30, "message": ""},
    )  # fmt: skip
    assert [mark.kind for mark in history.marks] == ["pause", "go", "best"]
    assert history.end is not None
    assert history.progress == pytest.approx(0.03)


def test_the_time_left_is_told_from_the_pace_of_this_start_only():
    events = [{"time": float(step), **step_event(step)} for step in range(10, 110, 10)]
    history = RunHistory()
    history.feed(typed([{"time": 0.0, **run_event()}, *events]))
    assert history.seconds_left == pytest.approx(900, rel=0.01)
    later = [{"time": 1e6 + 2.0 * step, **step_event(step)} for step in range(110, 150, 10)]
    history.feed(typed([{"time": 1e6, **run_event(100)}, *later]))
    assert history.seconds_left == pytest.approx((1000 - 140) * 2, rel=0.01)


def test_smoothing_in_pieces_equals_smoothing_at_once():
    whole, growing = Table(("step", "loss")), Table(("step", "loss"))
    pieces = Smoother(growing, "loss")
    for step in range(1, 500):
        event = row(step=step, loss=math.sin(step / 10) if step % 50 else math.nan)
        whole.add(event)
        growing.add(event)
        if step % 37 == 0:
            pieces.values(20.0)
    np.testing.assert_allclose(pieces.values(20.0), Smoother(whole, "loss").values(20.0))


def test_smoothing_begins_without_a_bias_and_keeps_gaps():
    table = Table(("step", "loss"))
    for step in range(1, 101):
        table.add(row(step=step, loss=math.nan if step == 50 else 3.0))
    smooth = Smoother(table, "loss").values(1000.0)
    assert np.nanmax(np.abs(smooth - 3.0)) < 1e-9
    assert math.isnan(smooth[49])
    assert np.isfinite(smooth[50:]).all()


def test_smoothing_follows_a_cut():
    table = Table(("step", "loss"))
    smoother = Smoother(table, "loss")
    for step in range(1, 101):
        table.add(row(step=step, loss=1.0))
    smoother.values(10.0)
    table.cut(50)
    for step in range(51, 80):
        table.add(row(step=step, loss=5.0))
    values = smoother.values(10.0)
    assert len(values) == 79
    assert values[-1] > 4


@pytest.mark.parametrize("event", [{}, {"kind": 5}, {"kind": "step"}, {"kind": "eval", "step": "x"},
                                   {"kind": "sample"}, {"kind": "run"}, {"kind": "state"}])  # fmt: skip
def test_ill_formed_events_are_survived(event):
    line = json.dumps({"time": 1.0, **event}).encode()
    assert parse([line]) == ([], 1)


def test_axes():
    history = fed(run_event(), step_event(10), step_event(20))
    assert history.x_values(history.steps, "number").tolist() == [10, 20]
    assert history.x_values(history.steps, "tokens").tolist() == [5120, 10240]
    assert history.x_values(history.steps, "duration").tolist() == [1, 2]
    assert history.x_values(history.steps, "clock").tolist() == [1001, 1002]
