"""Sweeps and runs that wait, asked for in Configure and looked after in Runs. No queue is started."""

import pytest
from textual.widgets import Button, Input

from core.runs import list_runs
from core.runs.listing.notes import read_notes
from core.sweeps import process
from core.sweeps.axes import parse_axis
from core.sweeps.plan import load_plan
from core.sweeps.preparing import SweepOptions, expand, prepare
from mamba_tui.backend.run_estimate import Survey
from mamba_tui.panes.configure import sweep_size
from mamba_tui.panes.configure.sweep_dialog import SweepDialog
from mamba_tui.panes.runs.table import RunTable
from mamba_tui.widgets.dialogs import Choice, Question
from tests.console.console_support import (
    LARGE,
    SMALL,
    FakeTrainer,
    configuration,
    console,
    end_run,
    make_run,
    screen,
    serving,
    texts_folder,
    until,
    until_shown,
)


@pytest.fixture
def queued(monkeypatch):
    """The names of the plans that would be carried out."""
    tags = []
    monkeypatch.setattr(process, "start_in_background", lambda plan: tags.append(plan.tag))
    return tags


async def type_text(pilot, text):
    await pilot.press(*["space" if letter == " " else letter for letter in text])


async def opened(app, pilot, key, dialog):
    await pilot.press("f2")
    await until(pilot, lambda: app.tab == "configure")
    await pilot.press(key)
    await until(pilot, lambda: isinstance(app.screen, dialog) and app.screen.is_mounted)


@pytest.mark.parametrize("size", [(60, 16), SMALL])
async def test_the_dialog_says_what_a_sweep_amounts_to_and_starts_it(tmp_path, size, queued):
    texts_folder(tmp_path)
    root = tmp_path / "ck"
    config = configuration(dataset_dir=str(tmp_path / "texts"))
    async with console(root, size, config=config) as (app, pilot):
        await opened(app, pilot, "ctrl+w", SweepDialog)
        await until(pilot, lambda: app.screen.query(Button).last().disabled)
        await type_text(pilot, "dropout=0,0.1 learning_rate=1e-3..1e-2")
        await until_shown(pilot, "is a range")
        await pilot.press("enter", "5", "enter", "2", "enter")
        await until_shown(pilot, "5 variants, 2 at once")
        await type_text(pilot, "mine")
        await pilot.press("enter", "enter")
        await until(pilot, lambda: not app.screen.query(Button).last().disabled)
        assert app.screen.focused is app.screen.query(Button).last(), "Enter alone starts nothing by accident"
        await pilot.press("enter")
        await until(pilot, lambda: app.tab == "runs")
        table = app.query_one(RunTable)
        await until(pilot, lambda: len(table.rows) == 5)
        assert table.shown_columns == ("state", "best", "dropout", "learning_rate", "step")
    assert queued == ["mine"]
    assert [read_notes(run).tags for run in list_runs(root)] == [("mine",)] * 5
    assert load_plan(root, "mine").at_once == 2


async def test_what_cannot_start_says_why_and_keeps_what_was_typed(tmp_path, queued):
    texts_folder(tmp_path)
    root = tmp_path / "ck"
    config = configuration(dataset_dir=str(tmp_path / "texts"))
    async with console(root, SMALL, config=config) as (app, pilot):
        await opened(app, pilot, "ctrl+w", SweepDialog)
        await type_text(pilot, "dropout=0,0.1")
        await pilot.press("enter", "enter", "enter", "enter")
        await type_text(pilot, "nobody")
        await until_shown(pilot, "2 variants")
        await pilot.press("enter", "enter")
        await until_shown(pilot, 'no run "nobody"')
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, SweepDialog) and app.screen.is_mounted)
        values = [field.value for field in app.screen.query(Input)]
        assert values == ["dropout=0,0.1", "", "", "", "nobody"]
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
    assert not queued
    assert not list_runs(root)


async def test_the_next_run_waits_for_one_that_trains(tmp_path, queued):
    texts_folder(tmp_path)
    root = tmp_path / "ck"
    config = configuration(dataset_dir=str(tmp_path / "texts"))
    async with serving(FakeTrainer(make_run(root, "first"))), console(root, config=config) as (app, pilot):
        await until(pilot, lambda: app.run_client.alive)
        await opened(app, pilot, "ctrl+k", Choice)
        assert "first" in screen(app)
        await pilot.press("enter")
        await until_shown(pilot, "run-001 starts when first ends.")
        await until(pilot, lambda: app.tab == "runs")
        await opened(app, pilot, "ctrl+r", Question)
        await pilot.press("right", "enter")
        await until_shown(pilot, "run-002 starts when first ends.")
    assert queued == ["run-001", "run-002"]
    assert load_plan(root, "run-002").after == "first"


async def test_there_must_be_a_run_to_wait_for(tmp_path, queued):
    texts_folder(tmp_path)
    config = configuration(dataset_dir=str(tmp_path / "texts"))
    async with console(tmp_path / "ck", config=config) as (_, pilot):
        await pilot.press("f2", "ctrl+k")
        await until_shown(pilot, "no run is training or waiting")
    assert not queued


async def test_a_sweep_is_shown_and_resumed(tmp_path, queued):
    base = configuration(dataset_dir=str(texts_folder(tmp_path)))
    plan = prepare(tmp_path / "ck", base, SweepOptions([parse_axis("dropout=0,0.1,0.2")], tag="s"))
    make_run(tmp_path / "ck", "other")
    plan.pruned["s-2"] = 3
    plan.save()
    async with console(tmp_path / "ck", LARGE, config=base) as (app, pilot):
        await pilot.press("f7")
        await until(pilot, lambda: app.query(RunTable) and len(app.query_one(RunTable).rows) == 4)
        table = app.query_one(RunTable)
        await pilot.press("Q")
        await until_shown(pilot, "3 runs: 2 new, 1 pruned")
        await pilot.press("enter")
        await until_shown(pilot, "Show its runs")
        await pilot.press("enter")
        await until(pilot, lambda: len(table.rows) == 3)
        await pilot.press("Q")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("left", "enter")
        await until_shown(pilot, "s continues in the background")
    assert queued == ["s"]


def test_the_time_of_a_sweep_is_between_side_by_side_and_one_after_the_other(monkeypatch):
    class Cost:
        def __init__(self, seconds):
            self.low, self.high = seconds, 2 * seconds

    def estimated(config, known):
        return type("Estimate", (), {"duration": Cost(config.training.max_iters) if known.files else None})

    monkeypatch.setattr(sweep_size, "estimate", estimated)
    options = SweepOptions([parse_axis("max_iters=10,20,30,40"), parse_axis("seed=1,2,3,4,5")], at_once=4)
    changes, at_once = expand(configuration(), options)
    low, high = sweep_size.sweep_seconds(configuration(), changes, at_once, Survey(files=1))
    assert high == pytest.approx(2 * 5 * 100, rel=0.15), "from some variants, for all of them"
    assert low == pytest.approx(high / 2 / 4)
    assert "20 variants, 4 at once, about" in sweep_size.sweep_size(
        configuration(), options, known=Survey(files=1)
    )
    assert sweep_size.sweep_size(configuration(), options, known=Survey(files=0)) == "20 variants, 4 at once."


async def test_read_only_starts_nothing(tmp_path, queued):
    end_run(make_run(tmp_path, "first"))
    async with console(tmp_path, SMALL, read_only=True) as (app, pilot):
        await pilot.press("f2", "ctrl+w", "ctrl+k")
        await pilot.pause()
        assert len(app.screen_stack) == 1
    assert not queued
