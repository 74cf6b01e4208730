"""Train, by keyboard: what is shown of a run, controlling it, charts, samples, log, the list of runs."""

import math

import pytest

from core.runs.events import ScheduleEvent, StepEvent
from mamba_tui.panes.runs.runs_screen import RunRows, RunsScreen
from mamba_tui.panes.train.pane import TrainPane
from mamba_tui.widgets.chart.line_chart import LineChart
from mamba_tui.widgets.dialogs import Prompt, Question
from tests.console.console_support import (
    LARGE,
    SMALL,
    FakeTrainer,
    console,
    end_run,
    eval_event,
    make_run,
    run_event,
    screen,
    serving,
    step_event,
    until,
    until_shown,
    write_events,
)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_run_is_shown_as_it_trains(tmp_path, size):
    run = make_run(tmp_path)
    async with (
        serving(FakeTrainer(run)) as trainer,
        console(tmp_path, size, attach="run-001") as (_, pilot),
    ):
        await until_shown(pilot, "step 400/1,000")
        # The status line is drawn before the charts and their marks.
        for text in ("validation", "bits/byte", "Gradient norm", "Tokens/s", "★", "sample at step 400"):
            await until_shown(pilot, text)
        trainer.writer.write(StepEvent(
            step=405, steps=5, loss=1.25, loss_min=1.0, loss_max=1.5, learning_rate=1e-3, gradient_norm=1.0,
            tokens_per_second=100.0, tokens=5, data_wait=0.0, device_memory=None, epoch=1.0,
        ))  # fmt: skip
        await until_shown(pilot, "step 405/1,000")
        await until_shown(pilot, "1.2500")


async def test_every_state_is_told_in_words(tmp_path):
    run = make_run(tmp_path)
    async with serving(FakeTrainer(run)) as trainer, console(tmp_path, attach="run-001") as (_, pilot):
        for state, detail, progress, words in (
            ("preparing", "tokenising", 0.43, "tokenising 43%"),
            ("compiling", "", None, "compiling the step"),
            ("saving", "", None, "saving a checkpoint"),
            ("evaluating", "", 0.5, "evaluating 50%"),
            ("paused", "", None, "‖ run-001  paused"),
        ):
            trainer.writer.state(state, 400, detail, progress)
            await until_shown(pilot, words)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_commands_reach_the_trainer(tmp_path, size):
    async with serving(FakeTrainer(make_run(tmp_path))) as trainer:
        async with console(tmp_path, size, attach="run-001") as (app, pilot):
            await until_shown(pilot, "step 400/1,000")
            for key, name in (("p", "pause"), ("p", "resume"), ("c", "save"), ("e", "evaluate")):
                await pilot.press(key)
                await until(pilot, lambda name=name: trainer.commands and trainer.commands[-1][0] == name)
                await until_shown(pilot, f"{name} done")
                if name == "pause":
                    await until_shown(pilot, "‖ run-001  paused")
                else:
                    await until_shown(pilot, "● run-001  still improving")
            await pilot.press("g")
            await until(pilot, lambda: isinstance(app.screen, Prompt))
            await pilot.press(*"She", "enter")
            await until(pilot, lambda: trainer.commands[-1] == ("sample", {"prompt": "She"}))
            await pilot.press("x")
            await until(pilot, lambda: isinstance(app.screen, Question))
            await pilot.press("enter")
            await until(pilot, lambda: trainer.commands[-1][0] == "stop")
            await until_shown(pilot, "■ run-001  stopped")


async def test_a_run_is_finished_after_a_question(tmp_path):
    run = make_run(tmp_path)
    async with serving(FakeTrainer(run)) as trainer, console(tmp_path, attach="run-001") as (app, pilot):
        await until_shown(pilot, "step 400/1,000")
        await pilot.press("F")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Question))
        await pilot.press("c")  # commands are taken in order: none was sent before this one
        await until(pilot, lambda: trainer.commands)
        assert [name for name, _ in trainer.commands] == ["save"]
        await until_shown(pilot, "save done")
        await pilot.press("F")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")
        await until(pilot, lambda: trainer.commands[1:] == [("finish", {})])
        await until_shown(pilot, "finish done")
        trainer.writer.write(ScheduleEvent(step=400, phase="cool-down", last_step=450))
        await until_shown(pilot, "cooling down: 0 of 50 steps")
        await until(pilot, lambda: not app.query_one(TrainPane).steering.can("finish"))


async def test_a_refused_command_says_why(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, attach="run-001") as (app, pilot):
        await until_shown(pilot, "■ run-001  stopped")
        assert "Evaluate" not in screen(app), "keys that cannot do anything are not offered"
        app.query_one(TrainPane).action_command("evaluate")
        await until_shown(pilot, "is not running")


async def test_an_ended_run_is_resumed(tmp_path, monkeypatch):
    end_run(make_run(tmp_path))
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run.name) or 1)
    async with console(tmp_path, attach="run-001") as (_, pilot):
        await until_shown(pilot, "R resumes from its last checkpoint")
        await pilot.press("R")
        await until(pilot, lambda: started == ["run-001"])


async def test_a_finished_run_is_given_more_steps(tmp_path, monkeypatch):
    run = make_run(tmp_path, max_iters=400)
    write_events(run, [run_event(400, max_iters=400)])
    end_run(run, "finished")
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run.config()) or 1)
    async with console(tmp_path, attach="run-001") as (app, pilot):
        await until_shown(pilot, "✔ run-001")
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        app.screen.query_one("Input").value = "300"
        await pilot.press("enter")
        await until_shown(pilot, "use a whole number above 400")
        await pilot.press("R")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        await pilot.press("enter")
        await until(pilot, lambda: started)
        assert started[0].training.max_iters == 800


async def test_a_dead_run_is_told_from_a_living_one(tmp_path):
    run = make_run(tmp_path)
    trainer = FakeTrainer(run)
    async with serving(trainer), console(tmp_path, attach="run-001") as (_, pilot):
        await until_shown(pilot, "● run-001  still improving")
        trainer.__exit__()
        await until_shown(pilot, "✘ run-001  died")


def charts(app):
    return {chart.id: chart for chart in app.query(LineChart)}


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_charts_zoom_together_smooth_change_axis_and_stand_alone(tmp_path, size):
    end_run(make_run(tmp_path))
    async with console(tmp_path, size, attach="run-001") as (app, pilot):
        await until_shown(pilot, "smoothed over")
        pane, all_charts = app.query_one(TrainPane), charts(app)
        await pilot.press("plus", "plus")
        await until(pilot, lambda: all_charts["gradient"].view == all_charts["loss"].view is not None)
        await pilot.press("space", "left")
        await until(
            pilot, lambda: all_charts["gradient"].crosshair == all_charts["loss"].crosshair is not None
        )
        newest = all_charts["loss"].view
        await pilot.press("shift+left")
        await until(pilot, lambda: all_charts["gradient"].view == all_charts["loss"].view)
        earlier = all_charts["loss"].view
        assert earlier[0] < newest[0]
        assert earlier[1] - earlier[0] == pytest.approx(newest[1] - newest[0])
        await pilot.press("shift+right")
        assert all_charts["loss"].view[0] > earlier[0]
        await pilot.press("0", "l")
        assert all_charts["loss"].log_y
        await until_shown(pilot, "(log)")
        before = pane.charts.options.smoothing
        await pilot.press("s", "s", "S")
        assert pane.charts.options.smoothing == before + 1
        for axis in ("tokens", "duration", "clock", "number"):
            await pilot.press("t")
            assert pane.charts.options.axis == axis
        await pilot.press("B")
        await until_shown(pilot, "bits/byte, smoothed")
        await pilot.press("m")
        assert not all_charts["gradient"].is_on_screen
        await pilot.press("n")
        await until(
            pilot, lambda: all_charts["gradient"].has_focus and all_charts["gradient"].size.height > 12
        )
        await pilot.press("N", "m", "n")
        await until(pilot, lambda: all_charts["gradient"].has_focus)


@pytest.mark.parametrize("size", [SMALL, (120, 28), LARGE])
@pytest.mark.parametrize("memory", [None, 6 << 30])
async def test_how_busy_the_device_is_has_a_chart_at_every_size(tmp_path, size, memory):
    run = make_run(tmp_path)
    write_events(run, [step_event(405, device_memory=memory, device_utilization=0.25)])
    end_run(run)
    async with console(tmp_path, size, attach="run-001") as (app, pilot):
        await until_shown(pilot, "smoothed over")
        all_charts = charts(app)
        expected = {"loss", "gradient", "speed", "rate"}
        if size != SMALL:
            expected |= {"usage", "memory" if memory else "wait"}
        if size == LARGE:
            expected.add("wait")
        await until(
            pilot, lambda: {name for name, chart in all_charts.items() if chart.is_on_screen} == expected
        )
        seen = []
        for _ in range(len(expected)):
            await pilot.press("n")
            seen.append(app.focused.id)
        assert set(seen) == expected
        assert ("25.0 %" in screen(app)) == (size != SMALL)
        await pilot.press("m")
        alone = set()
        for _ in range(len(all_charts)):
            await pilot.press("n")
            alone.add(app.focused.id)
        assert alone == set(all_charts) - (set() if memory else {"memory"})
        for _ in range(len(alone)):
            if app.focused.id != "usage":
                await pilot.press("n")
        await until_shown(pilot, "25.0 %")
        await until(pilot, lambda: all_charts["usage"].size.height > 12)
        assert not all_charts["gradient"].is_on_screen


async def test_a_history_of_before_has_no_chart_of_it(tmp_path):
    run = make_run(tmp_path, steps=0)
    for step in (5, 10, 15):
        event = step_event(step)
        del event["device_utilization"]
        write_events(run, [event])
    end_run(run)
    async with console(tmp_path, LARGE, attach="run-001") as (app, pilot):
        await until_shown(pilot, "Data wait")
        await until(pilot, lambda: not charts(app)["usage"].is_on_screen)
        assert app.run_client.history.steps.count == 3


async def test_samples_and_log_are_views(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    run.log_path.write_text("=== trainer started now ===\nprinted by the trainer [/x]\n")
    async with console(tmp_path, LARGE, attach="run-001") as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await pilot.press("v")
        await until_shown(pilot, "Once upon a time 400")
        assert "Once upon a time 300" in screen(app), "samples stand side by side"
        await pilot.press("left")
        await until(pilot, lambda: "Once upon a time 400" not in screen(app))
        await pilot.press("v")
        await until_shown(pilot, "printed by the trainer [/x]")
        assert "saved checkpoint_step_400.pt" in screen(app)
        await pilot.press("v")
        await until_shown(pilot, "20 for each of")
        await pilot.press("v")
        await until_shown(pilot, "Gradient norm")


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_another_run_is_chosen_and_others_are_drawn_behind(tmp_path, size):
    for name in ("alpha", "beta", "gamma"):
        end_run(make_run(tmp_path, name))
    async with console(tmp_path, size, attach="alpha") as (app, pilot):
        await until_shown(pilot, "smoothed over")
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.query_one(RunRows).rows)
        rows = app.screen.query_one(RunRows)
        await pilot.press("slash", *"gam", "enter")
        await until(pilot, lambda: [row.name for row in rows.rows] == ["gamma"])
        await until(pilot, lambda: rows.has_focus)
        await pilot.press("space")
        await until(pilot, lambda: rows.overlays == app.screen.overlays == {"gamma"})
        await pilot.press("slash", *["backspace"] * 3, *"bet", "enter")
        await until(pilot, lambda: [row.name for row in rows.rows] == ["beta"] and rows.has_focus)
        await pilot.press("enter")
        await until(pilot, lambda: app.run_client.run.name == "beta")
        await until_shown(pilot, "● gamma")


async def test_the_curves_are_written_to_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end_run(make_run(tmp_path))
    async with console(tmp_path, attach="run-001") as (_, pilot):
        await until_shown(pilot, "smoothed over")
        await pilot.press("W")
        file = tmp_path / "run-001.csv"
        await until(pilot, lambda: file.exists() and file.read_text().count("\n") > 80)
        assert file.read_text().startswith("step,time,tokens,loss")


async def test_losses_that_are_no_numbers_are_shown_as_such(tmp_path):
    run = make_run(tmp_path, steps=200)
    write_events(run, [step_event(step, math.nan) for step in range(205, 260, 5)])
    async with serving(FakeTrainer(run)), console(tmp_path, attach="run-001") as (_, pilot):
        await until_shown(pilot, "step 255/1,000")
        await until_shown(pilot, "NaN")
        await until_shown(pilot, "×")


async def test_a_replaced_history_begins_anew(tmp_path):
    run = make_run(tmp_path)
    async with serving(FakeTrainer(run)), console(tmp_path, attach="run-001") as (_, pilot):
        await until_shown(pilot, "step 400/1,000")
        run.events_path.unlink()
        write_events(run, [run_event(), *(step_event(step) for step in (5, 10)), eval_event(10)])
        await until_shown(pilot, "step 10/1,000")


async def test_without_a_run_the_next_step_is_told(tmp_path):
    async with console(tmp_path) as (_, pilot):
        await pilot.press("f3")
        await until_shown(pilot, "No run yet. Ctrl+R starts one")


async def test_options_are_kept_for_the_next_time(tmp_path):
    from mamba_tui.backend.console_state import ConsoleState

    path = tmp_path / "state.json"
    state = ConsoleState(path=path)
    state.smoothing, state.axis, state.pins, state.theme = 7, "tokens", ["a/1"], "mamba-light"
    state.save()
    again = ConsoleState.load(path)
    assert (again.smoothing, again.axis, again.pins, again.theme) == (7, "tokens", ["a/1"], "mamba-light")
    path.write_text('{"smoothing": "x", "pins": [1, "b/2"], "axis": null, "unknown": 1, "log_y": true}')
    odd = ConsoleState.load(path)
    assert (odd.smoothing, odd.axis, odd.pins, odd.log_y) == (
        ConsoleState().smoothing,
        "number",
        ["b/2"],
        True,
    )
    path.write_text("[[[")
    assert ConsoleState.load(path).smoothing == ConsoleState().smoothing


async def test_why_a_run_failed_is_told_in_full(tmp_path):
    run = make_run(tmp_path, steps=0)
    message = "the training text has 5 tokens, fewer than the 129 that one chunk of block_size 128 needs"
    advice = "add text or lower block_size"
    write_events(run, [{"kind": "error", "message": message, "advice": advice, "traceback": None}])
    end_run(run, "failed", step=0)
    async with console(tmp_path, attach="run-001") as (app, pilot):
        await until_shown(pilot, "lower block_size")
        told = " ".join(screen(app).splitlines()[1:3])
        assert message in " ".join(told.split())
        assert "No step was taken" in screen(app)


async def test_another_theme_redraws_the_charts_of_a_run_that_has_no_news(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE, attach="run-001") as (app, pilot):
        await until_shown(pilot, "stopped at step 400")
        chart = app.query_one("#loss", LineChart)
        for _ in range(2):
            await pilot.press("ctrl+t")
            expected = app.theme_variables["series-0"]
            await until(pilot, lambda color=expected: {color} & {line.color for line in chart._lines})
            drawn = {str(segment.style.color.name) for segment in chart.render_line(5) if segment.style}
            assert expected in drawn | {str(s.style.color.name) for s in chart.render_line(0) if s.style}


async def test_on_a_small_screen_the_loss_is_the_last_thing_to_go(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, (60, 16), attach="run-001") as (app, pilot):
        await until_shown(pilot, "400/1,000")
        assert app.query_one("#loss", LineChart).size.height >= 10
        assert not app.query_one("#small").display
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.query_one("#small").display and app.query_one("#side").display)


async def test_before_the_first_sample_the_plan_is_shown_and_afterwards_in_the_log(tmp_path):
    run = make_run(tmp_path, steps=50)
    plan = {"kind": "plan", "step": 0, "tokens": 3_000_000, "parameters": 20_000_000, "steps": 1000,
            "passes": 12.0, "seconds": 240.0, "seconds_low": 180.0, "seconds_high": 300.0,
            "expected_low": 1.41, "expected_high": 1.43, "hint": "text is short"}  # fmt: skip
    write_events(run, [plan])
    async with serving(FakeTrainer(run)), console(tmp_path, LARGE, attach="run-001") as (app, pilot):
        await until_shown(
            pilot, "3.00 M tokens, 20.0 M parameters, 12 passes, about 4 minutes (3 to 5 minutes)"
        )
        assert "␊" not in screen(app), "lines are lines"
        await until_shown(pilot, "nats/character. text is short.")
        await pilot.press("3")
        await until_shown(pilot, "12 passes, about 4 minutes")
