"""The Runs tab, by keyboard: columns, sorting, filtering, marks, differences, and every action on runs."""

import pytest
from textual.widgets import Input

from core.runs import Run, list_runs
from core.runs.listing.notes import Notes, read_notes, write_notes
from mamba_tui.panes.runs.table import RunTable
from mamba_tui.widgets.dialogs import Page, Prompt, Question
from tests.console.console_support import (
    LARGE,
    FakeTrainer,
    console,
    end_run,
    make_run,
    rows,
    screen,
    serving,
    until,
    until_shown,
)


def three(root):
    end_run(make_run(root, "alpha", steps=100), step=100)
    end_run(make_run(root, "beta", learning_rate=3e-3, dropout=0.1))
    make_run(root, "gamma", learning_rate=3e-3, steps=200)
    write_notes(Run(root / "beta"), Notes("the one to beat", ("keep",)))


async def opened(pilot, count=3):
    await pilot.press("f7")
    await until(pilot, lambda: pilot.app.query(RunTable) and len(pilot.app.query_one(RunTable).rows) == count)
    table = pilot.app.query_one(RunTable)
    table.focus()
    await pilot.pause()
    return table


def names(table):
    return [run.name for run in table.rows]


async def answer(pilot, text, *, rejected=False):
    """Replace what stands in the prompt, and accept."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Prompt))
    await pilot.press("home", "ctrl+k", *["space" if letter == " " else letter for letter in text], "enter")
    await until(pilot, lambda: rejected or not isinstance(pilot.app.screen, Prompt))


@pytest.mark.parametrize("size", [(60, 16), LARGE])
async def test_all_runs_are_listed_with_their_figures(tmp_path, size):
    three(tmp_path)
    async with console(tmp_path, size) as (app, pilot):
        table = await opened(pilot)
        await until_shown(pilot, "400/1,000")
        assert sorted(names(table)) == ["alpha", "beta", "gamma"]
        if size == LARGE:
            table.cursor = names(table).index("beta")
            await until_shown(pilot, "learning_rate 0.001 → 0.003")
            assert "the one to beat" in screen(app)


async def test_columns_are_scrolled_and_chosen(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        assert "state" in rows(app)[1]
        await pilot.press("right", "right")
        await until(pilot, lambda: "state" not in rows(app)[1])
        assert "‹" in rows(app)[1]
        await pilot.press("v")
        await answer(pilot, "name best dropout tags")
        await until(pilot, lambda: table.columns == ("name", "best", "dropout", "tags"))
        await until(pilot, lambda: "dropout" in rows(app)[1])
        assert "keep" in screen(app)
        await pilot.press("v")
        await answer(pilot, "name nonsense", rejected=True)
        await until_shown(pilot, "is not a column or a setting")
        assert app.screen.query_one(Input).selected_text == "nonsense"
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert table.columns == ("name", "best", "dropout", "tags")
        await pilot.press("f2")
        app.pane.remember()
        app.query_one("#runs").remember()
        assert app.state.run_columns == ["name", "best", "dropout", "tags"]


async def test_sorting_by_key_and_by_the_header(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (_, pilot):
        table = await opened(pilot)
        while table.sort != "best":
            await pilot.press("s")
        assert names(table) == ["beta", "gamma", "alpha"]
        await pilot.press("S")
        assert names(table) == ["alpha", "gamma", "beta"]
        await pilot.click(table, offset=(5, 0))
        await until(pilot, lambda: table.sort == "name")
        assert names(table) == ["alpha", "beta", "gamma"]


async def test_filtering_while_typing_and_a_wrong_filter_is_explained(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (_, pilot):
        table = await opened(pilot)
        await pilot.press("slash", *"lr>1e-3")
        await until(pilot, lambda: sorted(names(table)) == ["beta", "gamma"])
        await pilot.press("space", *"-died")
        await until(pilot, lambda: names(table) == ["beta"])
        await pilot.press("space", *"lrr>1")
        await until_shown(pilot, "did you mean lr?")
        await pilot.press("escape")
        await until(pilot, lambda: len(table.rows) == 3)
        assert table.has_focus


async def test_marked_runs_show_only_what_differs_and_their_curves_together(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        await pilot.click(table, offset=(5, 0))
        await until(pilot, lambda: names(table) == ["alpha", "beta", "gamma"])
        table.cursor = 0
        await pilot.press("space", "space")
        assert table.marked == ["alpha", "beta"]
        await until_shown(pilot, "2 runs, only what differs")
        await pilot.press("ctrl+d")
        await until(
            pilot, lambda: table.shown_columns == ("state", "best", "dropout", "learning_rate", "step")
        )
        assert names(table) == ["alpha", "beta"]
        await pilot.press("ctrl+d")
        assert len(table.rows) == 3
        await pilot.press("c")
        await until(pilot, lambda: app.tab == "train")
        assert app.run_client.run.name == "alpha"
        assert app.state.overlays == ["beta"]
        await until(pilot, lambda: "beta" in app.pane.charts.overlays.histories)


async def test_details_alone_where_there_is_no_room_beside_the_table(tmp_path):
    three(tmp_path)
    async with console(tmp_path, (60, 16)) as (app, pilot):
        table = await opened(pilot)
        table.cursor = names(table).index("beta")
        await pilot.pause()
        assert "differs from the default" not in screen(app)
        await pilot.press("m")
        await until_shown(pilot, "differs from the default")
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_which_setting_mattered(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        await opened(pilot)
        await pilot.press("I")
        await until(pilot, lambda: isinstance(app.screen, Page))
        await until_shown(pilot, "learning_rate")
        assert "best to worst" in screen(app)


async def test_enter_follows_and_the_configuration_is_taken_over(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        table.cursor = names(table).index("beta")
        await pilot.press("ctrl+e")
        await until(pilot, lambda: app.tab == "configure")
        assert app.document.values["dropout"] == 0.1
        await until_shown(pilot, "settings of beta")
        await pilot.press("f7", "enter")
        await until(pilot, lambda: app.tab == "train")
        assert app.run_client.run.name == "beta"


async def test_notes_and_tags(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (_, pilot):
        table = await opened(pilot)
        table.cursor = names(table).index("alpha")
        await pilot.press("E")
        await answer(pilot, "good start")
        await until(pilot, lambda: read_notes(Run(tmp_path / "alpha")).note == "good start")
        await until_shown(pilot, "good start")
        table.marked = ["alpha", "beta"]
        await pilot.press("T")
        await answer(pilot, "draft -keep")
        await until(pilot, lambda: read_notes(Run(tmp_path / "beta")).tags == ("draft",))
        assert read_notes(Run(tmp_path / "alpha")) == Notes("good start", ("draft",))
        await pilot.press("T")
        await answer(pilot, "a=b", rejected=True)
        await until_shown(pilot, "is not a tag")


async def test_renaming_the_followed_run_goes_on_following_it(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        table.cursor = names(table).index("alpha")
        await pilot.press("enter")
        await until(pilot, lambda: app.run_client.run.name == "alpha")
        await pilot.press("f7", "ctrl+n")
        await answer(pilot, "omega")
        await until(pilot, lambda: app.run_client.run.name == "omega")
        await until(pilot, lambda: table.current.name == "omega")
        assert "alpha" not in [run.name for run in list_runs(tmp_path)]
        await pilot.press("ctrl+n")
        await answer(pilot, "beta")
        await until_shown(pilot, "accepted: a name that is not taken")


async def test_deleted_runs_come_back_until_the_console_is_closed(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        table.marked = ["alpha", "beta"]
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")  # the safe answer
        await until(pilot, lambda: not isinstance(app.screen, Question))
        assert len(list_runs(tmp_path)) == 3
        assert table.marked == ["alpha", "beta"]
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until(pilot, lambda: names(table) == ["gamma"])
        await pilot.press("ctrl+z")
        await until(pilot, lambda: sorted(names(table)) == ["beta", "gamma"])
        app._close_console()
    assert [run.name for run in list_runs(tmp_path)] == ["beta", "gamma"]
    assert list((tmp_path / ".deleted").iterdir()) == []


async def test_a_run_that_trains_is_neither_deleted_nor_renamed(tmp_path):
    run = make_run(tmp_path, "alpha")
    async with serving(FakeTrainer(run)), console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot, 1)
        await until(pilot, lambda: table.rows[0].alive)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until_shown(pilot, "alpha is training; stop it first")
        await pilot.press("E")
        await answer(pilot, "fine")
        await until(pilot, lambda: read_notes(run).note == "fine")
    assert run.exists


async def test_its_folder_and_its_best_checkpoint(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        await pilot.press("y")
        assert app.clipboard == str((tmp_path / table.current.name).absolute())
        table.cursor = names(table).index("beta")
        await pilot.press("g")
        await until(pilot, lambda: app.tab == "generate")
        await until_shown(pilot, "beta")


async def test_read_only_changes_nothing(tmp_path):
    three(tmp_path)
    async with console(tmp_path, LARGE, read_only=True) as (app, pilot):
        await opened(pilot)
        await pilot.press("d", "E", "T", "ctrl+n", "u", "R")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert not list(tmp_path.glob(".deleted"))
