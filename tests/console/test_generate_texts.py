"""Generate: several texts, prompts, commands in the prompt, and what a run has saved meanwhile."""

from mamba_tui.panes.generate import library
from mamba_tui.widgets.dialogs import Choice
from mamba_tui.widgets.knobs import Knobs
from mamba_tui.widgets.prompt_editor import PromptEditor
from tests.console.console_support import (
    LARGE,
    add_checkpoint,
    console,
    end_run,
    make_run,
    until,
    until_shown,
    write_events,
)
from tests.console.test_generate import opened, view, written


def save_better(run):
    """A better checkpoint than that of step 400, as a trainer saves it."""
    path = add_checkpoint(run, 500, validation=1.5)
    saved = {
        "kind": "checkpoint",
        "step": 500,
        "file": path.name,
        "bytes": 7,
        "best": True,
        "seconds": 0.1,
    }
    write_events(run, [{**saved, "train_loss": 1.4, "validation_loss": 1.5, "bits_per_byte": 0.9}])


async def test_the_tab_loads_what_enter_would_use_and_tells_of_a_better_one(tmp_path):
    run = make_run(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        pane = await opened(pilot)
        await until(pilot, lambda: pane.sides[0].about)
        assert pane.sides[0].name.startswith("run-001 step 400  ★ best")
        await pilot.press("a", "enter")
        await written(pilot, pane)
        save_better(run)
        await until_shown(pilot, "better: step 500, validation 1.5000 (Ctrl+L)")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("enter")
        await until(pilot, lambda: pane.sides[0].name.startswith("run-001 step 500"))
        await until(pilot, lambda: not pane._news)


async def test_news_end_when_the_first_text_loads_the_better_checkpoint(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    async with console(tmp_path, LARGE) as (_, pilot):
        pane = await opened(pilot, length=7)
        save_better(run)
        await until_shown(pilot, "better: step 500")
        await pilot.press("a", "enter")
        await written(pilot, pane)
        assert pane.sides[0].name.startswith("run-001 step 500")
        assert not pane._news


async def test_texts_are_kept_paged_and_continued(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (app, pilot):
        pane = await opened(pilot, length=8)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        first = view(app).text
        await pilot.press("ctrl+b")
        await until(pilot, lambda: "word7s2" in view(app).text)
        await written(pilot, pane)
        await until_shown(pilot, "text 2 of 2")
        await pilot.press("alt+left")
        await until(pilot, lambda: view(app).text == first)
        await until_shown(pilot, "text 1 of 2")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "word15s2" in view(app).text)
        assert view(app).text.startswith(first)
        await pilot.press("alt+right")
        await until(pilot, lambda: view(app).text.startswith("a word0s2"))


async def test_settings_are_set_by_name_in_the_prompt(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (app, pilot):
        pane = await opened(pilot, length=5)
        editor = app.query_one(PromptEditor)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        editor.text = "/temperature 0.7"
        await pilot.press("enter")
        await until(pilot, lambda: app.query_one(Knobs).values["temperature"] == 0.7)
        assert editor.text == "a", "the prompt comes back"
        for typed, words in (
            ("/temprature 1", "did you mean /temperature?"),
            ("/top-k many", 'top-k is "many"; accepted: a whole number from 0'),
            ("/seed", "seed is 1"),
        ):
            editor.text = typed
            await pilot.press("enter")
            await until_shown(pilot, words)
        assert app.state.prompts == ["a"]


async def test_a_prompt_is_kept_and_taken_from_the_library(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (app, pilot):
        await opened(pilot)
        editor = app.query_one(PromptEditor)
        editor.text = "My own beginning"
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("enter")
        await until(pilot, lambda: app.state.library == ["My own beginning"])
        editor.text = ""
        await pilot.press("ctrl+o")
        await until_shown(pilot, "★ kept")
        await pilot.press("enter")
        await until(pilot, lambda: editor.text == "My own beginning")
    rows = library.choices("", ["kept"], ["late", "kept"])
    assert [row[0] for row in rows[:2]] == ["take kept", "take late"]
    assert len(rows) == 2 + len(library.BUILT_IN)


async def test_the_surprise_view_says_what_its_shades_mean(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (app, pilot):
        pane = await opened(pilot, length=7)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        await pilot.press("f10")
        # log2 of 2, 4, ..., 14 in the mean.
        await until_shown(pilot, "mean 2.76 bits/token")
        await until_shown(pilot, "<1")
        view(app).focus()
        await pilot.press("left")
        background = view(app).component("tokens--cursor").bgcolor
        assert any(
            segment.style.bgcolor == background for y in range(3) for segment in view(app).render_line(y)
        )
