"""Configure, by keyboard: layers, settings, files, presets, undo, and the way to a running trainer."""

import json
from pathlib import Path

import pytest

from core.config.files import load_file
from core.errors import UserError
from mamba_tui.panes.configure.layer_table import LayerTable
from mamba_tui.panes.configure.pane import ConfigPane
from mamba_tui.panes.configure.settings_list import SettingsList
from mamba_tui.widgets.dialogs import Choice, Page, Prompt, Question
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


def document(app):
    return app.query_one(ConfigPane).document


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_layers_are_edited_in_place(tmp_path, size):
    async with console(tmp_path, size) as (app, pilot):
        doc = document(app)
        await pilot.press("down", "1", "6")
        assert doc.values["n_embd"][1] == 16, "the value counts while it is typed"
        await pilot.press("0", "enter")
        assert doc.values["n_embd"] == (256, 160, 128, 128, 192, 256)
        await pilot.press("right", "plus")
        assert doc.values["n_head"][1] == 5
        await pilot.press("minus", "left", "left", "space")
        assert doc.values["attention_type"][1] == "mamba"
        assert doc.values["n_head"][1] == 4
        await pilot.press("a", "c", "d")
        assert doc.layer_count == 7
        await pilot.press("m")
        assert doc.values["n_embd"] == doc.values["n_embd"][::-1]
        for _ in range(20):
            await pilot.press("ctrl+z")
        assert doc.values["n_embd"] == (256, 192, 128, 128, 192, 256)
        await pilot.press("ctrl+y")
        assert doc.values["n_embd"][1] == 160


async def test_escape_takes_the_typed_value_back(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("9", "9", "escape")
        assert document(app).values["n_embd"][0] == 256
        await pilot.press("ctrl+z")
        await until_shown(pilot, "Nothing to undo")


async def test_layers_move(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("J")
        assert document(app).values["n_embd"][:2] == (192, 256)
        assert app.query_one(LayerTable).cursor == 1
        await pilot.press("K")
        assert document(app).values["n_embd"][:2] == (256, 192)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_problem_stands_beside_its_row_and_start_says_why_not(tmp_path, size):
    async with console(tmp_path, size) as (app, pilot):
        await pilot.press("down", "right", "7", "enter")
        await until_shown(pilot, "a divisor of the layer")
        assert "1 invalid value, marked above" in screen(app)
        assert app.query_one("#start").disabled
        await pilot.press("ctrl+r")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert app.tab == "configure"


async def test_a_ramp_and_a_list(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        app.screen.query_one("Input").value = "256 64 256 geometric"
        await pilot.press("enter")
        await until(pilot, lambda: document(app).values["n_embd"] == (256, 128, 64, 64, 128, 256))
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        app.screen.query_one("Input").value = "mamba, a, m2"
        await pilot.press("enter")
        await until(pilot, lambda: document(app).values["attention_type"] == ("mamba", "standard", "mamba2"))


async def test_a_list_is_pasted_from_the_clipboard(tmp_path):
    from textual.events import Paste

    async with console(tmp_path) as (app, pilot):
        app.query_one(LayerTable).post_message(Paste("64, 48,\n48 64"))
        await until(pilot, lambda: document(app).values["n_embd"] == (64, 48, 48, 64))


async def test_settings_are_edited_in_place(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("slash", *"max_iters", "enter")
        settings = app.query_one(SettingsList)
        await until(pilot, lambda: settings.has_focus and settings.setting.key == "max_iters")
        await pilot.press("4", "2", "enter")
        assert document(app).values["max_iters"] == 42
        await pilot.press("backspace")
        assert document(app).values["max_iters"] == 5000
        await pilot.press("escape", "slash", *"compile", "enter", "space")
        assert document(app).values["compile"] == "true"
        await pilot.press("escape", "slash", *"position", "enter", "right")
        assert document(app).values["position"] == "learned"
        await pilot.press("left")
        assert document(app).values["position"] == "rope"


async def test_a_wrong_setting_says_what_is_accepted(tmp_path):
    async with console(tmp_path, LARGE) as (_, pilot):
        await pilot.press("slash", *"dropout", "enter", "5", "enter")
        await until_shown(pilot, "from 0 to 0.9")


async def test_saving_and_loading_both_formats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with console(tmp_path) as (app, pilot):
        for name in ("one.json", "two.toml"):
            await pilot.press("5", "1", "2", "enter", "ctrl+s")
            await until(pilot, lambda: isinstance(app.screen, Prompt))
            app.screen.query_one("Input").value = name
            await pilot.press("enter")
            await until(pilot, lambda name=name: Path(name).exists() and len(app.screen_stack) == 1)
            await until(pilot, lambda: not document(app).changed)
            assert load_file(Path(name)).model.n_embd[0] == 512
            await pilot.press("6", "4", "enter", "ctrl+o")
            await until(pilot, lambda: isinstance(app.screen, Prompt))
            app.screen.query_one("Input").value = name
            await pilot.press("enter")
            await until(pilot, lambda: document(app).values["n_embd"][0] == 512)


async def test_a_broken_file_is_refused_in_words(tmp_path):
    (tmp_path / "bad.json").write_text('{"batch_size": [/x]}')
    async with console(tmp_path, LARGE) as (app, pilot):
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        app.screen.query_one("Input").value = str(tmp_path / "bad.json")
        await pilot.press("enter")
        await until_shown(pilot, "is not valid JSON")


async def test_presets_and_differences(tmp_path):
    async with console(tmp_path, LARGE) as (app, pilot):
        await pilot.press("ctrl+e")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "enter")
        await until(pilot, lambda: document(app).changed)
        await pilot.press("ctrl+d")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, Page))
        await until_shown(pilot, "learning_rate")


async def test_differences_to_a_run(tmp_path):
    end_run(make_run(tmp_path, batch_size=7))
    async with console(tmp_path, LARGE) as (app, pilot):
        await pilot.press("ctrl+d")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("end", "enter")
        await until(pilot, lambda: isinstance(app.screen, Page))
        await until_shown(pilot, "batch_size")


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_start_begins_a_run_and_shows_it(tmp_path, size, monkeypatch):
    texts_folder(tmp_path)
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run) or 1)
    async with console(tmp_path, size) as (app, pilot):
        await pilot.press("ctrl+r")
        await until(pilot, lambda: started)
        await until(pilot, lambda: app.tab == "train")
        assert started[0].name == "run-001"
        assert started[0].config().training.max_iters == 1000
        assert app.run_client.run.name == "run-001"


async def test_an_empty_dataset_offers_the_sample(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run) or 1)
    async with console(tmp_path) as (app, pilot):
        await until_shown(pilot, "There is no text in")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await until_shown(pilot, "downloaded")
        await pilot.press("enter")
        await until(pilot, lambda: started)
        assert list((tmp_path / "texts").rglob("*.txt"))


async def test_the_sample_can_be_declined(tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("ctrl+r")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert not (tmp_path / "texts").exists()
        assert app.tab == "configure"


async def test_a_run_can_be_named(tmp_path, monkeypatch):
    texts_folder(tmp_path)
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run) or 1)
    async with console(tmp_path) as (app, pilot):
        await pilot.press("ctrl+n")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        app.screen.query_one("Input").value = "my run"
        await pilot.press("enter")
        await until_shown(pilot, "run my run")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: started)
        assert started[0].name == "my run"


async def test_a_trainer_that_cannot_start_is_explained(tmp_path, monkeypatch):
    texts_folder(tmp_path)

    def fail(_run):
        raise UserError("the trainer could not start: [@click=app.quit]no[/] memory")

    monkeypatch.setattr("core.runs.start_trainer", fail)
    async with console(tmp_path) as (app, pilot):
        await pilot.press("ctrl+r")
        await until_shown(pilot, "[@click=app.quit]no[/] memory")
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert not app.query_one("#start").disabled


async def test_a_second_run_is_asked_about(tmp_path, monkeypatch):
    texts_folder(tmp_path)
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run) or 1)
    async with serving(FakeTrainer(make_run(tmp_path))), console(tmp_path) as (app, pilot):
        await until_shown(pilot, "● 40%")
        await pilot.press("ctrl+r")
        await until_shown(pilot, "Two runs share the machine")
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert not started
        await pilot.press("ctrl+r")
        await until_shown(pilot, "Two runs share the machine")
        await pilot.press("right", "right", "enter")
        await until(pilot, lambda: started)


async def test_totals_follow_what_is_typed(tmp_path):
    async with console(tmp_path, LARGE) as (app, pilot):
        before = screen(app)
        line = next(row for row in before.splitlines() if "parameters" in row)
        await pilot.press("5", "1", "2")
        await until(pilot, lambda: line not in screen(app))


async def test_the_seeds_own_file_is_loaded(tmp_path):
    seed = {
        "configuration_version": 1,
        "config": {"batch_size": 64, "block_size": 128, "n_embd": [256, 128], "n_head": 8, "n_layer": 2,
                   "dropout": 0.1, "attention_type": ["mamba", "standard"], "learning_rate": 3e-4},
        "device": "auto", "compile": False, "dataset_dir": "dataset",
    }  # fmt: skip
    (tmp_path / "seed.json").write_text(json.dumps(seed))
    async with console(tmp_path, config=configuration(), config_path=tmp_path / "seed.json") as (app, pilot):
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        await pilot.press("enter")
        await until(pilot, lambda: document(app).values["n_embd"] == (256, 128))


async def test_the_mouse_edits_too(tmp_path):
    async with console(tmp_path) as (app, pilot):
        table = app.query_one(LayerTable)
        await pilot.click(table, offset=(8, 3))
        await until(pilot, lambda: table.cursor == 2 and table.column == 0)
        await pilot.click(table, offset=(25, 5), times=2)
        await until(pilot, lambda: table.edit is not None)
        await pilot.press("escape")


async def test_tab_goes_from_layers_to_settings_to_start(tmp_path):
    async with console(tmp_path, LARGE) as (app, pilot):
        parts = []
        for _ in range(3):
            parts.append(app.screen.focused.id)
            await pilot.press("tab")
        assert parts == ["layers", "settings", "start"]
        places = [app.query_one(f"#{part}").region for part in parts]
        assert places[2].y > max(places[0].y, places[1].y), "Start is where the eye arrives last"
