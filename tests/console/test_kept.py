"""What a console remembers for the next one: tab, view, selected chart, and the visible part of a run."""

import json

import pytest

from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.panes.train.chart_window import WINDOWS_KEPT, Window
from mamba_tui.panes.train.pane import TrainPane
from mamba_tui.widgets.chart.line_chart import LineChart
from tests.console.console_support import (
    FakeTrainer,
    console,
    end_run,
    make_run,
    serving,
    step_event,
    until,
    until_shown,
    write_events,
)


def chart(app, name="loss"):
    return app.query_one(f"#{name}", LineChart)


async def quit_console(app, pilot):
    await pilot.press("ctrl+q")
    await until(pilot, lambda: app.return_code is not None or not app.is_running)


@pytest.mark.parametrize("tab", ["train", "checkpoints", "generate", "data", "configure"])
async def test_the_last_tab_is_opened_again(tmp_path, tab):
    end_run(make_run(tmp_path))
    path = tmp_path / "state.json"
    key = {"configure": "f2", "train": "f3", "checkpoints": "f4", "generate": "f5", "data": "f6"}[tab]
    async with console(tmp_path, state_path=path) as (app, pilot):
        await pilot.press(key)
        await until(pilot, lambda: app.tab == tab)
        await quit_console(app, pilot)
    async with console(tmp_path, state_path=path) as (app, pilot):
        await until(pilot, lambda: app.tab == tab and app.pane is not None and app.pane.id == tab)
        assert app.tab_bar.active == tab
    async with console(tmp_path, state_path=path, attach="run-001") as (app, pilot):
        await until(pilot, lambda: app.pane is not None and app.pane.id == "train")


async def test_a_zoom_comes_back_for_its_own_run_only(tmp_path):
    for name in ("alpha", "beta"):
        end_run(make_run(tmp_path, name))
    path = tmp_path / "state.json"
    async with console(tmp_path, attach="alpha", state_path=path) as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await until(pilot, lambda: app.run_client.caught_up)
        await pilot.press("plus", "plus", "left", "left", "n")
        await until(pilot, lambda: chart(app, "gradient").view == chart(app).view is not None)
        view = chart(app).view
        assert not chart(app).follow
        await quit_console(app, pilot)
    async with console(tmp_path, attach="beta", state_path=path) as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await until(pilot, lambda: app.run_client.caught_up)
        assert app.query_one(TrainPane).charts._returns_to is None
        assert chart(app).view is None
        await quit_console(app, pilot)
    async with console(tmp_path, attach="alpha", state_path=path) as (app, pilot):
        await until(pilot, lambda: chart(app).view == chart(app, "speed").view is not None)
        assert chart(app).view == pytest.approx(view)
        assert not chart(app).follow
        await until(pilot, lambda: chart(app, "gradient").has_focus)
        await pilot.press("0")
        await quit_console(app, pilot)
    assert json.loads(path.read_text())["windows"] == {}


async def test_a_window_that_followed_shows_what_is_newest_now(tmp_path):
    run = make_run(tmp_path)
    path = tmp_path / "state.json"
    async with (
        serving(FakeTrainer(run)),
        console(tmp_path, attach="run-001", state_path=path) as (app, pilot),
    ):
        await until_shown(pilot, "smoothed over")
        await until(pilot, lambda: app.run_client.caught_up)
        await pilot.press("plus", "plus")
        await until(pilot, lambda: chart(app).view is not None)
        low, high = chart(app).view
        await pilot.press("ctrl+q", "enter")
        await until(pilot, lambda: app.return_code is not None)
    assert high == 400
    # More events than are read at once: the window must wait for the last of them.
    write_events(run, [step_event(step) for step in range(405, 7405, 5)])
    end_run(run, step=7400)
    async with console(tmp_path, attach="run-001", state_path=path) as (app, pilot):
        await until(pilot, lambda: chart(app).view is not None)
        assert chart(app).view == pytest.approx((7400 - (high - low), 7400))
        assert chart(app).follow


async def test_the_view_and_the_chart_that_stands_alone_come_back(tmp_path):
    end_run(make_run(tmp_path))
    path = tmp_path / "state.json"
    async with console(tmp_path, attach="run-001", state_path=path) as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await pilot.press("n", "m", "v")
        await until_shown(pilot, "Once upon a time 400")
        await quit_console(app, pilot)
    async with console(tmp_path, state_path=path) as (app, pilot):
        await until_shown(pilot, "Once upon a time 400")
        assert app.query_one(TrainPane).view == "samples"
        await pilot.press("v", "v", "v")  # samples, log, details, charts
        await until(pilot, lambda: chart(app, "gradient").size.height > 12)
        assert not chart(app).is_on_screen


@pytest.mark.parametrize(
    "kept",
    [
        {"tab": "nowhere", "view": "none", "chart": "x", "selected": "#?", "windows": {"run-001": 5}},
        {"windows": {"run-001": {"axis": "number", "follow": False, "x_range": [5, "a"]}}},
        {"windows": {"run-001": {"axis": "number", "follow": False, "x_range": [9, 2]}}},
        {"windows": {"run-001": {"axis": "number", "follow": False, "x_range": [1, float("nan")]}}},
        {"windows": {"run-001": {"axis": "tokens", "follow": False, "x_range": [1, 2]}}},
        {"windows": [], "tab": 7, "selected": None},
    ],
)
async def test_what_makes_no_sense_is_passed_over(tmp_path, kept):
    end_run(make_run(tmp_path))
    path = tmp_path / "state.json"
    path.write_text(json.dumps(kept))
    async with console(tmp_path, state_path=path) as (app, pilot):
        await until(pilot, lambda: app.tab == "configure")
        await pilot.press("f3")
        await until_shown(pilot, "smoothed over")
        await until(
            pilot, lambda: app.run_client.caught_up and app.query_one(TrainPane).charts._returns_to is None
        )
        assert chart(app).view is None
        assert chart(app).follow
        await until(pilot, lambda: chart(app).has_focus)


def test_only_so_many_windows_are_kept():
    windows = ConsoleState().windows
    for number in range(2 * WINDOWS_KEPT):
        Window("number", False, (1.0, 2.0)).keep(windows, f"run-{number}")
    assert len(windows) == WINDOWS_KEPT
    assert Window.read(windows[f"run-{2 * WINDOWS_KEPT - 1}"]) == Window("number", False, (1.0, 2.0))
