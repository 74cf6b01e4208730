"""The Layers tab, driven by keys against a process that speaks the inspection's protocol."""

from __future__ import annotations

import pytest

from core.runs import RunHistory
from core.runs.events import LayersEvent
from mamba_tui.panes.layers.pane import LayersPane
from mamba_tui.panes.layers.picture import Picture, heat_lines
from mamba_tui.panes.layers.words import columns
from mamba_tui.panes.train.layer_lines import layer_lines
from mamba_tui.widgets.sparkline import sparkline
from tests.console.console_support import LARGE, SMALL, console, end_run, make_run, screen, until, until_shown
from tests.console.fake_inspector import SHAPE
from tests.run_tools import run_event


def pane_of(app):
    return app.query_one(LayersPane)


def drawn(app):
    return app.query_one(Picture).text


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_every_view_follows_the_cursor_the_layer_and_the_head(tmp_path, size):
    end_run(make_run(tmp_path, "first"))
    async with console(tmp_path, size) as (app, pilot):
        await pilot.press("f8")
        await until_shown(pilot, "decided from layer 1")
        last = pane_of(app).tokens.cursor
        assert last == len(pane_of(app).tokens.tokens) - 1
        assert f"token {last}" in screen(app)
        await pilot.press("left")
        await until(pilot, lambda: f"' word{last - 1}.2'" in drawn(app))
        await pilot.press("2")
        await until_shown(pilot, "layer 0 mamba, mean of 16 channels")
        await pilot.press("n", "n")
        await until_shown(pilot, "layer 0 mamba, channel 1 of 16")
        await pilot.press("m")
        await until_shown(pilot, "layer 1 attention, mean of 2 heads")
        await pilot.press("N")
        await until_shown(pilot, "layer 1 attention, head 1 of 2")
        assert any(token.probability for token in pane_of(app).tokens.tokens)
        await pilot.press("3")
        await until_shown(pilot, "it sees its last 16 tokens")
        await until_shown(pilot, "mean distance")
        await pilot.press("tab", "down")
        await until_shown(pilot, "layer 2 mamba-2: half-life 8.25 tokens")
        await until_shown(pilot, "no document begins in this text")
        await pilot.press("4")
        await until_shown(pilot, "waist, layer 1: 3 of 4 directions")
        assert not any(token.probability for token in pane_of(app).tokens.tokens)
        await pilot.press("v")
        await until_shown(pilot, "decided from layer 1")


async def test_another_text_is_typed_or_read_from_a_file(tmp_path):
    end_run(make_run(tmp_path, "first"))
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f8")
        await until_shown(pilot, "decided from layer 1")
        await pilot.press("t")
        await until_shown(pilot, "Look at a text")
        await pilot.press("o", "n", "e", "space", "t", "w", "o", "enter")
        await until(pilot, lambda: pane_of(app).tokens.text == "⏵one two")
        await until(pilot, lambda: "' word2.2'" in drawn(app))
        await pilot.press("o")
        await until_shown(pilot, "Text file to read")
        await pilot.press("x", "enter")
        await until_shown(pilot, "--text is x, which does not exist")


async def test_without_a_checkpoint_it_says_what_to_do(tmp_path):
    async with console(tmp_path) as (_app, pilot):
        await pilot.press("f8")
        await until_shown(pilot, "Ctrl+L chooses a checkpoint")
        await pilot.press("ctrl+l")
        await until_shown(pilot, "no run has saved a checkpoint yet")
        await pilot.press("d")
        await until_shown(pilot, "no checkpoint is loaded")


async def test_a_process_that_ends_is_told_and_starts_again(tmp_path):
    end_run(make_run(tmp_path, "first"))
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f8")
        await until_shown(pilot, "decided from layer 1")
        pane_of(app).inspection.client._process.kill()
        await until_shown(pilot, "the process that looks into layers ended")
        await pilot.press("ctrl+l")
        await until_shown(pilot, "validation")
        await pilot.press("enter")
        await until_shown(pilot, "decided from layer 1")


async def test_a_cursor_that_runs_never_falls_behind(tmp_path):
    end_run(make_run(tmp_path, "first"))
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f8")
        await until_shown(pilot, "decided from layer 1")
        sent = []
        send = pane_of(app).inspection.client.send

        async def counted(operation, **values):
            sent.append(values)
            return await send(operation, **values)

        pane_of(app).inspection.client.send = counted
        await pilot.press(*["left"] * 8)
        last = pane_of(app).tokens.cursor
        await until(pilot, lambda: f"' word{last}.2'" in drawn(app))
        assert sent[-1]["token"] == last
        assert len(sent) <= 9


def test_bars_and_shades_are_as_high_as_what_they_show():
    assert sparkline([0, 1, 2, 4], 10) == " ▂▄█"
    assert sparkline([1, 5, 2, 4], 2) == "██"[:1] + "▇"
    assert sparkline([], 5) == ""
    assert sparkline(["NaN", 1.0], 5) == " █"
    assert columns([8, 4, 0], 2, 2) == ["█      "[:6], "█ █   "]
    picture = {"rows": [[1.0, 0.0], [0.04, 1.0]], "first_query": 0, "first_key": 0, "token": 1}
    lines = heat_lines(picture, [[0, "a", False], [1, "b", False]], [("head", "")], 9)
    assert [line[1][0] for line in lines[1:3]] == ["█ ", "·█"]


def test_the_process_that_tests_drive_answers_what_the_real_one_does():
    from core.config.schema import build, flat
    from core.inspection.service import InspectionService
    from tests.compression.checkpoints import SHAPE as MODEL
    from tests.compression.checkpoints import model_of
    from tests.console import fake_inspector
    from tests.inspection.test_service import TEXT, TOKENIZER, ask

    fake_inspector.read[:] = ["a", " b", " c"]
    payload = {"step": 7, "config": flat(build(MODEL))}
    loaded, _, layers, lens, picture, memory = ask(
        InspectionService(lambda path, device: (model_of(TOKENIZER), TOKENIZER, payload)),
        ("load", {"checkpoint": "c.pt", "device": "cpu"}),
        ("read", {"text": TEXT}),
        ("layers", {}),
        ("lens", {"token": 1, "top": 2}),
        ("map", {"layer": 0, "group": -1, "token": 1, "queries": 2, "keys": 2}),
        ("memory", {"layer": 0}),
    )

    def keys(value):
        if isinstance(value, dict):
            return {key: keys(item) for key, item in value.items() if key not in ("event", "id")}
        return keys(value[0]) if isinstance(value, list) and value else None

    assert keys({key: loaded[key] for key in SHAPE}) == keys(SHAPE)
    assert keys(layers) == keys(fake_inspector.layers())
    assert keys(lens) == keys(fake_inspector.lens(1))
    map_request = {"token": 1, "group": 0, "layer": 0, "queries": 2, "keys": 2}
    assert keys(picture) == keys(fake_inspector.heat(map_request))
    assert keys(memory) == keys(fake_inspector.memory(0))


def test_a_run_shows_a_curve_for_each_layer():
    history = RunHistory()
    history.feed([run_event(config={"attention_type": ["mamba", "standard"]})])
    assert list(layer_lines(history, 80)) == []
    for step, gradient in ((1, 1.0), (2, 4.0)):
        figures = {"gradient_norm": [gradient, 0.5], "update_ratio": [] if step == 1 else [2e-3, 1e-4]}
        history.feed([LayersEvent(step=step, activation=[1.25, 3.0], **figures)])
    wide = [line.plain for line in layer_lines(history, 80)]
    assert wide[3].split() == ["0", "mamba", "4", "0.002", "1.25", "▂█"]
    assert wide[4].split() == ["1", "attention", "0.500", "0.0001", "3", "██"]
    assert all(len(line) <= 30 for line in (line.plain for line in layer_lines(history, 30)))
    history.feed([LayersEvent(step=3, gradient_norm=[float("nan"), 1.0], update_ratio=[], activation=[])])
    assert "NaN" in [line.plain for line in layer_lines(history, 80)][3]
