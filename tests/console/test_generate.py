"""Generate, by keyboard, with a generator process that needs no torch."""

import pytest

from mamba_tui.panes.generate.pane import GeneratePane
from mamba_tui.widgets.dialogs import Choice, Prompt
from mamba_tui.widgets.knobs import Knobs
from mamba_tui.widgets.prompt_editor import PromptEditor
from mamba_tui.widgets.token_view import TokenView
from tests.console.console_support import (
    LARGE,
    SMALL,
    FakeTrainer,
    add_checkpoint,
    console,
    end_run,
    make_run,
    serving,
    until,
    until_shown,
)


async def opened(pilot, length=30):
    await pilot.press("f5")
    await until(pilot, lambda: pilot.app.query(GeneratePane) and pilot.app.query(PromptEditor))
    pane = pilot.app.query_one(GeneratePane)
    await until(pilot, lambda: pilot.app.query_one(PromptEditor).has_focus)
    pilot.app.query_one(Knobs).values["max_new_tokens"] = length
    return pane


async def written(pilot, pane):
    await until(pilot, lambda: pane.sides[0].speed and not any(side.writing for side in pane.sides))
    await until(pilot, lambda: not pane._events)


def view(app, slot=0):
    return app.query_one(f"#text-{slot}", TokenView)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_enter_loads_the_best_checkpoint_and_streams(tmp_path, size):
    run = make_run(tmp_path)
    add_checkpoint(run, 500, validation=9.0)
    end_run(run)
    async with console(tmp_path, size) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press(*"She", "enter")
        await written(pilot, pane)
        assert pane.sides[0].name == "run-001 step 400  ★ best"
        assert view(app).text.startswith("She word0s1 word1s1")
        assert len(view(app).tokens) == 31
        for words in ("30 tokens", "100/s", "length reached"):
            await until_shown(pilot, words)


async def test_escape_stops_at_once_and_the_prompt_stays(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot, length=100_000)
        await pilot.press(*"slow", "enter")
        await until(pilot, lambda: len(view(app).tokens) > 3)
        await pilot.press("escape")
        await written(pilot, pane)
        assert len(view(app).tokens) < 1000
        assert app.query_one(PromptEditor).text == "slow"
        await until_shown(pilot, "stopped")


async def test_again_takes_the_next_seed_and_going_on_appends(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        await pilot.press("ctrl+b")
        await until(pilot, lambda: "word29s2" in view(app).text)
        await written(pilot, pane)
        assert "s1" not in view(app).text
        before = view(app).text
        await pilot.press("ctrl+n")
        await until(pilot, lambda: len(view(app).tokens) == 61)
        assert view(app).text.startswith(before)


async def test_the_cursor_shows_alternatives_and_branches(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        view(app).focus()
        await pilot.press("left", "left", "left")
        await until_shown(pilot, "' other' 30%")
        assert view(app).current.index == 27
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "enter")
        await until(pilot, lambda: "chosen901" in view(app).text)
        await until(pilot, lambda: len(view(app).tokens) == 1 + 27 + 30)
        assert " word26s1 chosen901 word28s1" in view(app).text
        view(app).focus()
        await pilot.press("home", *["right"] * 5, "b")
        await until(pilot, lambda: "word10s2" in view(app).text)
        assert " word3s1 word4s2" in view(app).text


async def test_surprise_shades_what_was_unlikely(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("a", "enter")
        await written(pilot, pane)

        def backgrounds():
            return {
                segment.style.bgcolor
                for y in range(4)
                for segment in view(app).render_line(y)
                if segment.style
            }

        assert len(backgrounds()) <= 2
        await pilot.press("f10")
        assert len(backgrounds()) >= 4
        likely, unlikely = view(app).shade(0.9), view(app).shade(0.0001)
        assert likely != unlikely


async def test_knobs_are_turned_and_sent(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        await opened(pilot)
        knobs = app.query_one(Knobs)
        knobs.focus()
        await pilot.press("up", "right", "4", "0", "enter")
        assert knobs.values["temperature"] == 0.9
        assert knobs.values["top_k"] == 40
        await pilot.press("right", "7", "enter")
        assert knobs.values["top_p"] == 1.0, "what is out of bounds is not taken"
        await pilot.press("left", "backspace")
        assert knobs.values["top_k"] == 0
        await pilot.press(*["right"] * 7, "enter", *"stop", "enter")
        assert knobs.values["stop"] == "stop"
        app.pane.remember()
        assert app.state.sampling["temperature"] == 0.9


async def test_two_checkpoints_write_side_by_side(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "enter")
        await until(pilot, lambda: pane.two)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        await until(pilot, lambda: len(view(app, 1).tokens) == 31)
        assert view(app, 0).text == view(app, 1).text, "the same prompt and seed"
        assert [side.name for side in pane.sides] == ["run-001 step 400  ★ best, newest", "run-001 step 300"]
        await pilot.press("f9")
        await until(pilot, lambda: not pane.two)


async def test_prompts_have_several_lines_and_a_history(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        editor = app.query_one(PromptEditor)
        await pilot.press("a", "ctrl+j", "b", "enter")
        await written(pilot, pane)
        assert view(app).tokens[0].text == "a\nb"
        editor.text = ""
        await pilot.press("c", "enter")
        await written(pilot, pane)
        editor.text = "draft"
        await pilot.press("up")
        assert editor.text == "c"
        await pilot.press("up")
        assert editor.text == "a\nb"
        await pilot.press("down", "down")
        assert editor.text == "draft"
        # On any line of a longer prompt, too.
        editor.text = "one\ntwo"
        editor.move_cursor((1, 0))
        await pilot.press("alt+up")
        assert editor.text == "c"
        await pilot.press("ctrl+up")
        assert editor.text == "a\nb"
        await pilot.press("alt+down", "ctrl+down")
        assert editor.text == "one\ntwo"
        assert app.state.prompts == ["a\nb", "c"]


async def test_the_text_is_copied_and_written_to_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        view(app).focus()
        await pilot.press("y")
        assert app.clipboard == view(app).text
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        await pilot.press("enter")
        file = tmp_path / "text.txt"
        await until(pilot, lambda: file.exists() and file.read_text() == view(app).text)


async def test_another_checkpoint_is_chosen(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: pane.sides[0].about != "")
        assert pane.sides[0].name == "run-001 step 200"


async def test_a_generator_that_dies_is_started_again(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        dead = pane.client._process
        dead.kill()
        await until_shown(pilot, "the generator ended")
        before = view(app).tokens[-1]
        await pilot.press("enter")
        await until(pilot, lambda: pane.client._process not in (None, dead))
        await until(pilot, lambda: len(view(app).tokens) == 31 and view(app).tokens[-1] is not before)
        await written(pilot, pane)
        assert pane.sides[0].name == "run-001 step 400  ★ best, newest"
        assert len(view(app).tokens) == 31


async def test_a_damaged_checkpoint_is_refused_in_words(tmp_path):
    end_run(make_run(tmp_path, "broken"))
    async with console(tmp_path, LARGE) as (_, pilot):
        pane = await opened(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(pilot.app.screen, Choice))
        await pilot.press("enter")
        await until_shown(pilot, "is damaged [/x]")
        assert pane.sides[0].name == ""


async def test_without_any_checkpoint_the_next_step_is_told(tmp_path):
    async with console(tmp_path) as (_, pilot):
        await opened(pilot)
        await pilot.press("a", "enter")
        await until_shown(pilot, "no run has saved a checkpoint yet")


async def test_writing_goes_on_while_a_run_trains(tmp_path):
    async with serving(FakeTrainer(make_run(tmp_path))) as trainer, console(tmp_path) as (app, pilot):
        await until_shown(pilot, "● 40%")
        pane = await opened(pilot, length=40)
        await pilot.press(*"slow", "enter")
        await until(pilot, lambda: len(view(app).tokens) > 2)
        trainer.writer.state("paused", 400)
        await until_shown(pilot, "‖")
        await written(pilot, pane)
        assert len(view(app).tokens) == 41


async def test_the_generator_ends_with_the_console(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        pane = await opened(pilot)
        await pilot.press("a", "enter")
        await written(pilot, pane)
        process = pane.client._process
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)
    assert process.returncode is not None


async def test_the_prompt_has_the_keys_at_every_start_and_every_f5(tmp_path):
    from mamba_tui.app import LaunchOptions, MambaTUI
    from mamba_tui.backend.console_state import ConsoleState, default_path

    ConsoleState(tab="generate", path=default_path(tmp_path)).save()
    app = MambaTUI(LaunchOptions(checkpoints=tmp_path), state_path=default_path(tmp_path))
    async with app.run_test() as pilot:
        await pilot.press("y")
        prompt = app.query_one(PromptEditor)
        await until(pilot, lambda: prompt.text == "y")
        await pilot.press("shift+tab", "shift+tab")
        assert app.screen.focused is not prompt
        await pilot.press("f5", "e")
        await until(pilot, lambda: prompt.text == "ye")
        await pilot.press("shift+tab", "f3", "f5", "s")
        await until(pilot, lambda: prompt.text == "yes")
