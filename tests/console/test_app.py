"""The shell of the console: tabs, help, themes, leaving, read-only mode, and what must never be imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from textual.content import Content
from textual.events import Click
from textual.widgets import Input

from mamba_tui import themes
from mamba_tui.widgets.dialogs import Page, Question
from mamba_tui.widgets.help import HelpScreen
from mamba_tui.widgets.modal import Palette
from tests.console.console_support import (
    LARGE,
    SMALL,
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

ROOT = Path(__file__).parents[2]

HEADLESS_TOUR = """
import asyncio, sys
from pathlib import Path
from mamba_tui.app import LaunchOptions, MambaTUI
async def tour():
    app = MambaTUI(LaunchOptions(checkpoints=Path(sys.argv[1])))
    heavy = [name for name in ("numpy", "torch", "core.runs") if name in sys.modules]
    assert not heavy, f"before the first paint: {heavy}"
    async with app.run_test(size=(80, 24)) as pilot:
        for key in ("f3", "f4", "f5", "f2", "f1"):
            await pilot.press(key)
            await pilot.pause()
asyncio.run(tour())
assert "torch" not in sys.modules
assert "textual_plotext" not in sys.modules
"""


def test_the_process_on_screen_never_imports_torch_and_begins_without_numpy(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", HEADLESS_TOUR, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_every_tab_is_reached_by_its_key(tmp_path, size):
    async with console(tmp_path, size) as (app, pilot):
        for key, tab in (("f3", "train"), ("f4", "checkpoints"), ("f5", "generate"), ("f2", "configure")):
            await pilot.press(key)
            await until(pilot, lambda tab=tab: app.pane is not None and app.pane.id == tab)
        await pilot.press("ctrl+pagedown")
        await until(pilot, lambda: app.tab == "train")
        await pilot.press("ctrl+pageup", "ctrl+pageup")
        await until(pilot, lambda: app.tab == app.tab_bar.tabs[-1][0])


async def test_a_tab_is_reached_by_a_click(tmp_path):
    async with console(tmp_path, LARGE) as (app, pilot):
        start = next(span[0] for span in app.tab_bar._spans if span[2] == "checkpoints")
        await pilot.click(app.tab_bar, offset=(start + 3, 0))
        await until(pilot, lambda: app.tab == "checkpoints")


@pytest.mark.parametrize("key", ["f1", "question_mark"])
async def test_help_opens_at_the_current_tab_filters_and_closes(tmp_path, key):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f4", key)
        await until_shown(pilot, "mark it for comparison")
        assert isinstance(app.screen, HelpScreen)
        assert next(row for row in rows(app) if "Checkpoints" in row and "│" in row)
        assert not any("Everywhere" in row for row in rows(app)[:6]), "this tab's keys come first"
        await pilot.press(*"smoothing")
        await until_shown(pilot, "more smoothing")
        assert "mark it for comparison" not in screen(app)
        await pilot.press(*"xyz")
        await until_shown(pilot, "No key matches")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))


async def test_a_question_mark_can_be_typed_into_a_prompt(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f5", "w", "h", "y", "question_mark")
        await until(pilot, lambda: app.query_one("#prompt").text == "why?")
        assert len(app.screen_stack) == 1


async def test_the_palette_does_what_another_tab_can_do(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (app, pilot):
        await until_shown(pilot, "stopped")
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.is_mounted)
        await pilot.press(*"more smoothing")
        await until_shown(pilot, "Train: more smoothing")
        await until(pilot, lambda: any("s" in row.split() for row in rows(app)))
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.tab == "train" and app.pane.charts.options.smoothing == 3)
        await pilot.press("3", "ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.is_mounted)
        await pilot.press(*"crosshair with values")
        await until_shown(pilot, "Train: crosshair")
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.pane.view == "charts" and app.pane.charts.loss.crosshair is not None)


async def test_the_palette_says_that_it_found_nothing(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.is_mounted)
        await pilot.press(*"qqqq")
        await until_shown(pilot, "No matches found")


async def test_themes_go_round_and_are_kept(tmp_path):
    from mamba_tui.app import LaunchOptions, MambaTUI
    from mamba_tui.backend.console_state import default_path

    app = MambaTUI(LaunchOptions(checkpoints=tmp_path), state_path=default_path(tmp_path))
    async with app.run_test() as pilot:
        for theme in (*themes.NAMES[1:], themes.NAMES[0], themes.NAMES[1]):
            await pilot.press("ctrl+t")
            await until(pilot, lambda theme=theme: app.theme == theme)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app.return_code is not None or not app.is_running)
    again = MambaTUI(LaunchOptions(checkpoints=tmp_path), state_path=default_path(tmp_path))
    assert again.theme == themes.NAMES[1]


async def test_quitting_with_nothing_training_asks_nothing(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        await until_shown(pilot, "■ stopped")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)
        assert app.return_value == 0


async def test_quitting_leaves_a_run_training_by_default(tmp_path):
    async with serving(FakeTrainer(make_run(tmp_path))) as trainer, console(tmp_path) as (app, pilot):
        await until_shown(pilot, "● 40%")
        await pilot.press("ctrl+q")
        await until_shown(pilot, "keeps training when the console closes")
        await pilot.press("enter")
        await until(pilot, lambda: not app.is_running)
        assert trainer.alive
        assert trainer.commands == []


async def test_quitting_can_stop_the_run(tmp_path):
    async with serving(FakeTrainer(make_run(tmp_path))) as trainer, console(tmp_path) as (app, pilot):
        await until_shown(pilot, "● 40%")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("left", "enter")
        await until(pilot, lambda: not app.is_running)
        await until(pilot, lambda: not trainer.alive)
        assert [name for name, _ in trainer.commands] == ["stop"]


async def test_quitting_can_be_thought_better_of(tmp_path):
    async with serving(FakeTrainer(make_run(tmp_path))) as trainer, console(tmp_path) as (app, pilot):
        await until_shown(pilot, "● 40%")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Question))
        assert app.is_running
        assert trainer.alive


async def test_attach_opens_on_the_run(tmp_path):
    make_run(tmp_path, "other")
    end_run(make_run(tmp_path, "wanted"))
    async with console(tmp_path, attach="wanted") as (app, pilot):
        await until_shown(pilot, "wanted")
        assert app.tab == "train"
        assert app.run_client.run.name == "wanted"


async def test_read_only_commands_nothing(tmp_path):
    async with serving(FakeTrainer(make_run(tmp_path))) as trainer:
        async with console(tmp_path, read_only=True) as (app, pilot):
            await until_shown(pilot, "● 40%")
            before = app.query_one("#layers").document.values
            await pilot.press("d", "space", "5", "enter", "ctrl+r")
            assert app.query_one("#layers").document.values == before
            await pilot.press("f3")
            await until_shown(pilot, "Gradient norm")
            await pilot.press("p", "x", "c", "e", "g")
            await pilot.press("f4", "d", "b", "R")
            await pilot.pause()
            assert len(app.screen_stack) == 1, screen(app)
            await pilot.press("ctrl+q")
            await until(pilot, lambda: not app.is_running)
        assert trainer.commands == []
        assert not (tmp_path / "run-002").exists()


async def test_a_picture_of_the_screen_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with console(tmp_path) as (_, pilot):
        await pilot.press("f12")
        picture = tmp_path / "mamba-tui-configure.svg"
        await until(pilot, lambda: picture.exists() and "hourglass" in picture.read_text())


async def test_resizing_to_almost_nothing_and_back(tmp_path):
    make_run(tmp_path)
    async with console(tmp_path) as (_, pilot):
        for key in ("f3", "f4", "f5", "f2"):
            await pilot.press(key)
            for size in ((20, 5), (1, 1), (200, 60), (80, 24)):
                await pilot.resize_terminal(*size)
                await pilot.pause()
        await until_shown(pilot, "hourglass")


async def test_changes_that_nobody_has_are_offered_to_be_saved(tmp_path, monkeypatch):
    from core.config.files import load_file

    monkeypatch.chdir(tmp_path)
    async with console(tmp_path) as (app, pilot):
        await pilot.press("5", "1", "2", "enter", "ctrl+q")
        await until_shown(pilot, "neither in a file")
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert app.is_running
        await pilot.press("ctrl+q")
        await until_shown(pilot, "neither in a file")
        await pilot.press("enter")
        await until(pilot, lambda: not app.is_running)
    assert load_file(tmp_path / "current_configuration.json").model.n_embd[0] == 512


async def test_the_palette_does_what_keys_do(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.focused, Input))
        await pilot.press(*"mirror")
        await until_shown(pilot, "mirror image")
        await pilot.press("enter")
        values = app.query_one("#layers").document
        await until(pilot, lambda: values.values["attention_type"] == values.values["attention_type"][::-1])
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.focused, Input))
        await pilot.press(*"go to checkpoints")
        await until_shown(pilot, "Go to Checkpoints")
        await pilot.press("enter")
        await until(pilot, lambda: app.tab == "checkpoints")


async def test_a_failure_of_ours_is_a_sentence_and_a_file(tmp_path):
    from mamba_tui.quitting import write_crash_report

    path = write_crash_report(ValueError("odd"), tmp_path)
    assert "ValueError: odd" in path.read_text()
    assert write_crash_report(ValueError("odd"), tmp_path / "missing") is None


async def test_asking_twice_to_quit_is_asking_once(tmp_path):
    """The second Ctrl+Q must not take the question's asker away from under it."""
    run = make_run(tmp_path)
    async with serving(FakeTrainer(run)), console(tmp_path, attach=run.name) as (app, pilot):
        await until(pilot, lambda: app.run_client.alive)
        await pilot.press("ctrl+q", "ctrl+q")
        await until_shown(pilot, "Keep it training")
        await pilot.press("enter")
        await until(pilot, lambda: not app.is_running)


async def test_screens_come_and_go_in_any_hurry(tmp_path):
    async with console(tmp_path) as (app, pilot):
        for _ in range(3):
            await pilot.press(
                "f1", "j", "escape", "escape", "ctrl+p", "down", "escape", "escape", "ctrl+p", "escape"
            )
        await until(pilot, lambda: len(app.screen_stack) == 1)
        page = Page("Title", Content("text"))
        answers = []
        await app.push_screen(page, answers.append)
        page.dismiss("first")
        page.dismiss("second")
        await until(pilot, lambda: answers == ["first"])
        assert len(app.screen_stack) == 1


async def test_tab_goes_around_the_parts_of_the_screen_both_ways(tmp_path):
    async with console(tmp_path) as (app, pilot):
        first = app.screen.focused
        await pilot.press("tab")
        second = app.screen.focused
        assert second is not first
        await pilot.press("shift+tab")
        assert app.screen.focused is first


async def test_a_click_where_the_screen_was_larger_closes_the_palette(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.is_mounted)
        palette = app.screen
        click = Click(palette, 300, 90, 0, 0, 1, False, False, False, screen_x=300, screen_y=90)
        palette.post_message(click)
        await until(pilot, lambda: len(app.screen_stack) == 1)
