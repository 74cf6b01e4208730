"""A part of a long run in full resolution: read again from the file, whatever happened to its trainers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.runs import table as table_module
from core.runs.event_index import EventIndex
from core.runs.events import StepEvent
from core.runs.history import STEP_COLUMNS, RunHistory
from core.runs.table import Table
from mamba_tui.backend.history_zoom import Zoom, part_of_file, read, spliced, wanted
from mamba_tui.backend.run_client import RunClient
from mamba_tui.launch_options import LaunchOptions
from mamba_tui.widgets.chart.line_chart import LineChart
from tests.console.console_support import (
    FakeTrainer,
    console,
    end_run,
    make_run,
    run_event,
    serving,
    step_event,
    typed,
    until,
    until_shown,
    write_events,
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """A few hundred rows must do for what is told."""
    monkeypatch.setattr(table_module, "ROWS_KEPT", 128)


def followed(run):
    client = RunClient(LaunchOptions(checkpoints=run.path.parent))
    client.follow(run)
    while client.poll(lambda: None) or not client.caught_up:
        pass
    return client


def spiky(step):
    return 50.0 if step % 1000 == 500 else 2.0 + math.sin(step)


def test_a_window_has_the_rows_of_the_file(tmp_path):
    run = make_run(tmp_path, steps=0)
    write_events(run, [step_event(step, spiky(step)) for step in range(1, 20_001)])
    client = followed(run)
    history = client.history
    assert history.steps.stride >= 128
    assert wanted(history, client.zoom, None, "number") is None
    assert wanted(history, client.zoom, (0, 20_000), "number") is not None, "128 rows are few"
    zoom = wanted(history, client.zoom, (7_000.0, 7_200.0), "number")
    assert not zoom.to_end
    start, stop = part_of_file(history, zoom, client.reader.offset)
    assert 0 < start < stop < client.reader.offset / 2
    zoom.arrive(read(run.events_path, start, stop))
    client.zoom = zoom
    assert wanted(history, client.zoom, (7_000.0, 7_200.0), "number") is zoom
    assert wanted(history, client.zoom, (7_900.0, 9_200.0), "number") is not zoom
    whole = spliced(history, zoom)
    steps = whole.steps.column("step")
    assert (np.diff(steps) > 0).all()
    assert (steps[0], steps[-1]) == (history.steps.column("step")[0], 20_000)
    inside = (steps >= 7_000) & (steps <= 7_200)
    assert steps[inside].tolist() == list(range(7_000, 7_201))
    assert whole.steps.column("loss")[inside] == pytest.approx([spiky(step) for step in range(7_000, 7_201)])
    assert len(whole.loss.values(10.0)) == len(steps)


def test_the_end_of_a_run_goes_on_growing(tmp_path):
    run = make_run(tmp_path, steps=0)
    write_events(run, [step_event(step) for step in range(1, 5_001)])
    client = followed(run)
    history = client.history
    zoom = wanted(history, client.zoom, (4_900.0, 5_000.0), "number")
    assert zoom.to_end
    client.zoom = zoom
    part = part_of_file(history, zoom, client.reader.offset)
    # Two come while the others are read, one of them is read as well, and two come later.
    zoom.feed(typed({"time": 9e9, **step_event(step)} for step in (5_000, 5_001, 5_002)))
    zoom.arrive(read(run.events_path, *part))
    zoom.feed(typed({"time": 9e9, **step_event(step)} for step in (5_003, 5_004)))
    assert zoom.table.column("step")[-10:].tolist() == list(range(4_995, 5_005))
    write_events(run, [run_event(5_001)])
    client.poll(lambda: None)
    assert client.zoom is None, "a trainer that began took steps back"


@settings(max_examples=60, deadline=None)
@given(
    lives=st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=6),
    low=st.floats(0, 1), width=st.floats(0, 1),
)  # fmt: skip
def test_what_lost_trainers_told_is_not_shown(tmp_path_factory, lives, low, width):
    path = tmp_path_factory.mktemp("lives") / "events.jsonl"
    history, offset, step, loss = RunHistory(), 0, 0, 0.0
    history.index = EventIndex(grain=300, most=64)
    with open(path, "wb") as file:
        for life, (count, back) in enumerate(lives):
            step = int(step * back)
            events = [run_event(step, started=float(life))]
            for _ in range(count):
                step += 1
                loss += 1.0
                events.append(step_event(step, loss))
            for event in events:
                event = {"time": loss, **event}
                line = json.dumps(event).encode() + b"\n"
                history.index.note(offset, history.reached)
                history.feed(typed([event]))
                file.write(line)
                offset += len(line)
    truth = Table(("step", "loss"), 1 << 15)
    for line in path.read_bytes().splitlines():
        (event,) = typed([json.loads(line)])
        if event.kind == "run":
            truth.cut(event.resumed_from)
        else:
            truth.add(event)
    first = low * step
    zoom = Zoom(first, first + width * (step - first), to_end=width > 0.9)
    table = read(path, *part_of_file(history, zoom, offset))
    steps, expected = table.column("step"), truth.column("step")
    last = math.inf if zoom.to_end else zoom.high
    mine, right = (steps > first) & (steps <= last), (expected > first) & (expected <= last)
    assert steps[mine].tolist() == expected[right].tolist()
    assert table.column("loss")[mine].tolist() == truth.column("loss")[right].tolist()
    assert len(history.index.offsets) <= 65


def test_what_is_too_much_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("mamba_tui.backend.history_zoom.MOST_BYTES", 1000)
    history = RunHistory()
    assert part_of_file(history, Zoom(0, 10, to_end=True), 2000) is None
    zoom = Zoom(0, 10, to_end=True)
    zoom.give_up()
    zoom.feed(typed([{"time": 1.0, **step_event(5)}]))
    zoom.arrive(Table(STEP_COLUMNS, 16))
    assert zoom.table.count == 0


async def test_zooming_by_keyboard_shows_every_step(tmp_path):
    run = make_run(tmp_path, steps=0)
    write_events(run, [step_event(step, spiky(step)) for step in range(1, 6_001)])
    async with serving(FakeTrainer(run)) as trainer, console(tmp_path, attach="run-001") as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await until(pilot, lambda: app.run_client.caught_up)
        history, chart = app.run_client.history, app.query_one("#loss", LineChart)
        # What was read last is drawn a moment later, and zooming starts from what is drawn.
        await until(pilot, lambda: chart._lines[-1].x[-1] > 5_900)
        assert len(chart._lines[-1].x) <= 128

        def shown():
            x = np.asarray(chart._lines[-1].x)
            return x[(x > chart.view[0]) & (x <= chart.view[1])]

        await pilot.press(*["plus"] * 6)
        await until(pilot, lambda: chart.view is not None and len(shown()) > 300)
        assert (np.diff(shown()) == 1).all()
        trainer.writer.write(StepEvent(
            step=6001, steps=1, loss=1.25, loss_min=1.0, loss_max=1.5, learning_rate=1e-3, gradient_norm=1.0,
            tokens_per_second=100.0, tokens=5, data_wait=0.0, device_memory=None, epoch=1.0,
        ))  # fmt: skip
        await until(pilot, lambda: shown()[-1] == 6001)
        assert (np.diff(shown()) == 1).all()
        await pilot.press(*["left"] * 40)
        await until(pilot, lambda: chart.view[1] < 5_500 and len(shown()) > 300)
        assert (np.diff(shown()) == 1).all()
        await pilot.press("0")
        await until(pilot, lambda: chart.view is None and len(chart._lines[-1].x) <= 128)
        assert history.steps.count <= 128


async def test_a_file_that_is_gone_leaves_the_coarse_rows(tmp_path):
    run = make_run(tmp_path, steps=0)
    write_events(run, [step_event(step) for step in range(1, 3_001)])
    end_run(run)
    async with console(tmp_path, attach="run-001") as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await until(pilot, lambda: app.run_client.caught_up)
        run.events_path.unlink()
        await pilot.press("plus", "plus", "plus")
        await until(pilot, lambda: app.run_client.zoom and app.run_client.zoom.given_up)
        await until_shown(pilot, "smoothed over")
