"""Checkpoints, by keyboard: list, sort, filter, pin, details, compare, branch, delete, export, many."""

import json
import threading

import pytest

from core.runs import Run
from mamba_tui.panes.checkpoints import work as checkpoint_work
from mamba_tui.panes.checkpoints.table import CheckpointTable
from mamba_tui.panes.generate.pane import GeneratePane
from mamba_tui.widgets.dialogs import Prompt, Question
from tests.console.console_support import (
    LARGE,
    SMALL,
    FakeTrainer,
    add_checkpoint,
    console,
    end_run,
    make_run,
    screen,
    serving,
    until,
    until_shown,
)


async def opened(pilot):
    await pilot.press("f4")
    table = None

    def filled():
        nonlocal table
        found = pilot.app.query(CheckpointTable)
        table = found.first() if found else None
        return table is not None and table.rows

    await until(pilot, filled)
    table.focus()
    await pilot.pause()
    return table


def two_runs(root):
    end_run(make_run(root, "alpha"))
    end_run(make_run(root, "beta", batch_size=7))


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_all_runs_are_listed_with_details(tmp_path, size):
    two_runs(tmp_path)
    async with console(tmp_path, size) as (app, pilot):
        table = await opened(pilot)
        assert len(table.rows) == 8
        await until_shown(pilot, "h verifies")
        shown = screen(app)
        assert "★" in shown
        assert "»" in shown
        assert "auto, 1,024 tokens" in shown.replace("\n", " ") or "1,024 tokens" in shown


async def test_details_are_shown_though_the_list_was_read_again_meanwhile(tmp_path, monkeypatch):
    end_run(make_run(tmp_path))
    go_on, read = threading.Event(), checkpoint_work.read_details
    monkeypatch.setattr(checkpoint_work, "read_details", lambda row: go_on.wait(120) and read(row))
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        before = table.current
        app.pane._refresh_soon()
        await until(pilot, lambda: table.current is not before)
        go_on.set()
        await until_shown(pilot, "Once upon a time 400")


async def test_sorting_and_reversing(tmp_path):
    two_runs(tmp_path)
    async with console(tmp_path) as (_, pilot):
        table = await opened(pilot)
        while table.sort != "validation":
            await pilot.press("s")
        losses = [row.info.validation_loss for row in table.rows]
        assert losses == sorted(losses)
        await pilot.press("S")
        assert [row.info.validation_loss for row in table.rows] == sorted(losses, reverse=True)
        await pilot.click(table, offset=(10, 0))
        await until(pilot, lambda: table.sort == "run")
        assert [row.run.name for row in table.rows] == ["alpha"] * 4 + ["beta"] * 4


async def test_filtering_and_pinning(tmp_path):
    two_runs(tmp_path)
    async with console(tmp_path) as (app, pilot):
        table = await opened(pilot)
        await pilot.press("end", "P")
        pinned = table.rows[0].key
        assert pinned in table.pins
        await pilot.press("slash", *"beta", "enter")
        await until(pilot, lambda: {row.run.name for row in table.rows} == {"beta"})
        await pilot.press("escape")
        await until(pilot, lambda: len(table.rows) == 8)
        app.pane.remember()
        assert app.state.pins == [pinned]


async def test_verifying_tells_whole_from_damaged(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    async with console(tmp_path, LARGE) as (_, pilot):
        await opened(pilot)
        await pilot.press("h")
        await until_shown(pilot, "is intact")
        await until_shown(pilot, "hash verified")
        (run.path / "checkpoint_step_400.pt").write_bytes(b"WEIGHTS")
        await pilot.press("h")
        await until_shown(pilot, "is damaged")


async def test_two_are_compared_and_written_with(tmp_path):
    two_runs(tmp_path)
    async with console(tmp_path, LARGE) as (app, pilot):
        table = await opened(pilot)
        while table.sort != "run":
            await pilot.press("s")
        await pilot.press("home", "space", "end", "space", "ctrl+d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        assert "batch_size" in screen(app)
        await pilot.press("enter")
        await until(pilot, lambda: app.tab == "generate")
        pane = app.query_one(GeneratePane)
        assert pane.two
        await until(pilot, lambda: all(side.about for side in pane.sides))
        assert [side.name.partition("  ")[0] for side in pane.sides] == ["alpha step 400", "beta step 100"]
        app.query_one("#knobs").values["max_new_tokens"] = 10
        await pilot.press("a", "enter")
        await until(pilot, lambda: all(side.speed for side in pane.sides))
        texts = [app.query_one(f"#text-{slot}") for slot in (0, 1)]
        await until(pilot, lambda: [len(text.tokens) for text in texts] == [11, 11])


async def test_comparing_one_says_what_to_do(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (_, pilot):
        await opened(pilot)
        await pilot.press("ctrl+d")
        await until_shown(pilot, "mark a checkpoint with Space first")


async def test_branching_begins_a_new_run_there(tmp_path, monkeypatch):
    end_run(run := make_run(tmp_path))
    run.split_path.write_text('{"book.txt": ["hash", "tail"]}')
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run.name) or 1)
    async with console(tmp_path) as (app, pilot):
        await opened(pilot)
        await pilot.press("down", "b")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        await pilot.press("enter")
        await until(pilot, lambda: started == ["run-002"])
        branch = Run(tmp_path / "run-002")
        assert [info.step for info in branch.checkpoints()] == [300]
        assert branch.checkpoints()[0].problem == ""
        assert branch.tokenizer_path.exists()
        assert branch.split_path.read_text() == run.split_path.read_text()
        assert branch.config() == Run(tmp_path / "run-001").config()
        assert [info.step for info in Run(tmp_path / "run-001").checkpoints()] == [100, 200, 300, 400]


async def test_a_taken_name_is_refused(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        await opened(pilot)
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        app.screen.query_one("Input").value = "run-001"
        await pilot.press("enter")
        await until_shown(pilot, "already")


async def test_resuming_from_the_newest_and_from_an_older_one(tmp_path, monkeypatch):
    end_run(make_run(tmp_path))
    started = []
    monkeypatch.setattr("core.runs.start_trainer", lambda run: started.append(run.name) or 1)
    async with console(tmp_path) as (app, pilot):
        await opened(pilot)
        await pilot.press("down", "R")
        await until_shown(pilot, "start a new run there")
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.press("up", "R")
        await until(pilot, lambda: started == ["run-001"])
        await until(pilot, lambda: app.tab == "train")


async def test_deleting_asks_and_can_be_taken_back(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    path = run.path / "checkpoint_step_400.pt"
    async with console(tmp_path) as (app, pilot):
        table = await opened(pilot)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert path.exists(), "the first answer keeps it"
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(table.rows) == 3 and app.trash.deleted)
        assert not path.exists()
        await pilot.press("ctrl+z")
        await until(pilot, lambda: len(table.rows) == 4)
        assert path.read_bytes() == b"weights"
        await pilot.press("home", "d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(table.rows) == 3 and app.trash.deleted)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)
    assert sorted(entry.name for entry in run.path.glob("checkpoint_step_400*")) == []


async def test_a_living_run_keeps_its_checkpoints(tmp_path):
    run = make_run(tmp_path)
    async with serving(FakeTrainer(run)), console(tmp_path) as (app, pilot):
        await opened(pilot)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until_shown(pilot, "looks after its checkpoints itself")
        assert (run.path / "checkpoint_step_400.pt").exists()


async def test_what_cannot_be_used_says_why(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    (run.path / "checkpoint_step_400.pt").write_bytes(b"cut")
    async with console(tmp_path) as (app, pilot):
        table = await opened(pilot)
        await until(pilot, lambda: table.current is not None)
        assert table.current.info.step == 300, "the cursor starts at the best that can be used"
        await pilot.press("home", "g")
        await until_shown(pilot, "cannot be used")
        assert app.tab == "checkpoints"


async def test_a_failing_export_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        await opened(pilot)
        await pilot.press("W")
        await until(pilot, lambda: isinstance(app.screen, Prompt))
        await pilot.press("enter")
        await until_shown(pilot, "checkpoint_step_400.pt")
        assert not list(tmp_path.glob("*.safetensors"))


async def test_new_checkpoints_appear_by_themselves(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    async with console(tmp_path) as (_, pilot):
        table = await opened(pilot)
        await pilot.press("down")
        current = table.current.key
        add_checkpoint(run, 500, validation=2.2)
        await until(pilot, lambda: len(table.rows) == 5)
        assert table.current.key == current, "the cursor stays on its checkpoint"


async def test_without_any_the_next_step_is_told(tmp_path):
    async with console(tmp_path) as (_, pilot):
        await pilot.press("f4")
        await until_shown(pilot, "No checkpoints yet")


async def test_thousands_stay_quick(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path, LARGE) as (_, pilot):
        table = await opened(pilot)
        import dataclasses

        row = table.rows[0]
        many = [
            dataclasses.replace(
                row, info=dataclasses.replace(row.info, step=step, validation_loss=step % 997)
            )
            for step in range(20_000)
        ]
        lines_drawn = []
        draw = table.row_segments
        table.row_segments = lambda index, width: lines_drawn.append(index) or draw(index, width)
        table.show(many)
        for key in ("end", "pageup", "s", "home"):
            await pilot.press(key)
        await pilot.pause()
        assert len(set(lines_drawn)) < 400, "only what is on screen is drawn"


def test_the_manifest_written_by_the_tests_is_one(tmp_path):
    run = make_run(tmp_path)
    infos = run.checkpoints()
    assert [info.step for info in infos] == [100, 200, 300, 400]
    assert all(not info.problem for info in infos)
    assert json.loads((run.path / "checkpoint_step_400.json").read_text())["step"] == 400
