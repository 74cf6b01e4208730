"""Deleted checkpoints: undeleted, permanently deleted, and those that a killed console left behind."""

import os
import signal
import subprocess
import sys

import pytest

from core.errors import UserError
from core.runs import Run
from mamba_tui.backend import checkpoint_trash as trash_module
from mamba_tui.backend.checkpoint_trash import Trash
from mamba_tui.backend.run_client import CheckpointRow
from mamba_tui.widgets.dialogs import Question
from tests.console.console_support import (
    FakeTrainer,
    add_checkpoint,
    console,
    end_run,
    make_run,
    screen,
    until,
    until_shown,
)


def row_of(run, step=400):
    info = next(info for info in run.checkpoints() if info.step == step)
    return CheckpointRow(run, info, False)


def aside(run):
    return sorted(path.name for path in run.path.glob("*.deleted"))


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path)
    end_run(run)
    return run


@pytest.fixture
def killed(run, tmp_path):
    """A console that deleted step 400 and was killed."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom core.runs import Run\n"
        "from mamba_tui.backend.run_client import CheckpointRow\n"
        "from mamba_tui.backend.checkpoint_trash import Trash\n"
        "run = Run(Path(sys.argv[1]))\nrow = CheckpointRow(run, run.checkpoints()[-1], False)\n"
        "trash = Trash()\ntrash.delete(row)\nprint('deleted', flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "deleted\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_living_console_deleted_is_its_own(run, killed):
    names = aside(run)
    assert len(names) == 2
    other = Trash()
    assert other.take_over([run.path]) == 0
    assert other.restore() == ""
    other.empty()
    assert aside(run) == names
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert other.take_over([run.path]) == 1
    assert Trash().take_over([run.path]) == 0, "only one console looks after it"
    assert other.restore() == "run-001/400"
    assert aside(run) == []
    assert row_of(run).info.problem == ""


async def test_the_next_console_offers_what_a_killed_one_deleted(run, tmp_path, killed):
    killed.kill()
    killed.wait()
    async with console(tmp_path) as (app, pilot):
        await until_shown(pilot, "deleted in a console that was killed")
        await pilot.press("f4")
        await until_shown(pilot, "300")
        await pilot.press("ctrl+z")
        await until_shown(pilot, "Undeleted run-001/400")
        assert aside(run) == []
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)
    assert row_of(run).info.problem == ""


async def test_what_nobody_brings_back_goes_when_the_console_is_closed(run, tmp_path, killed):
    killed.kill()
    killed.wait()
    async with console(tmp_path, read_only=True) as (app, pilot):
        await until(pilot, lambda: app.run_client.status is not None)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)
    assert len(aside(run)) == 2, "a console that only looks deletes nothing"
    async with console(tmp_path) as (app, pilot):
        await until_shown(pilot, "deleted in a console that was killed")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)
    assert aside(run) == []
    assert [info.step for info in run.checkpoints()] == [100, 200, 300]


async def test_a_checkpoint_is_not_brought_back_over_a_newer_one(run, tmp_path):
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f4")
        await until(pilot, lambda: app.pane is not None and app.pane.id == "checkpoints")
        await until(pilot, lambda: len(app.pane.table.rows) == 4)
        await pilot.press("home", "d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(aside(run)) == 2)
        newer = add_checkpoint(run, 400, content=b"newer weights")
        await pilot.press("ctrl+z")
        await until_shown(pilot, "was saved again since")
        assert newer.read_bytes() == b"newer weights"
        newer.unlink()
        newer.with_suffix(".json").unlink()
        await pilot.press("ctrl+z")
        await until_shown(pilot, "Undeleted")
        assert newer.read_bytes() == b"weights"
        assert "Nothing to undelete" not in screen(app)


def test_nothing_is_brought_back_under_a_trainer(run):
    trash = Trash()
    trash.delete(row_of(run))
    with FakeTrainer(run), pytest.raises(UserError, match="is training"):
        trash.restore()
    assert trash.restore() == "run-001/400"


def test_the_newest_comes_back_first_and_a_step_may_be_deleted_twice(run):
    trash = Trash()
    for content in (b"weights", b"second"):
        add_checkpoint(run, 400, content=content)
        trash.delete(row_of(run))
    trash.delete(row_of(run, 300))
    for deleted in trash.deleted:
        trash_module.release(deleted.lock)
    other = Trash()
    assert other.take_over([run.path, run.path / "missing"]) == 3
    assert other.restore() == "run-001/300"
    assert other.restore() == "run-001/400"
    assert (run.path / "checkpoint_step_400.pt").read_bytes() == b"second"
    other.empty()
    assert aside(run) == []


def test_one_whose_run_was_moved_away_does_not_stand_in_the_way(run, tmp_path):
    other = make_run(tmp_path, "other")
    end_run(other)
    trash = Trash()
    trash.delete(row_of(other))
    trash.delete(row_of(run))
    run.path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="run-001/400 is gone"):
        trash.restore()
    assert trash.restore() == "other/400"


def test_what_is_left_of_a_real_deletion_is_deleted_and_other_files_are_not(run):
    left = run.path / "checkpoint_step_7.pt.deleted"
    left.write_bytes(b"weights")
    others = [run.path / "notes.deleted", run.path / "checkpoint_step_x.json.deleted"]
    for path in others:
        path.write_text("mine")
    assert Trash().take_over([run.path]) == 0
    assert not left.exists()
    assert all(path.exists() for path in others)


def test_without_locks_what_others_left_stays(run, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr("core.system.locks.fcntl.flock", refuse)
    mine, other = Trash(), Trash()
    mine.delete(row_of(run))
    names = aside(run)
    assert other.take_over([run.path]) == 0
    other.empty()
    assert aside(run) == names
    monkeypatch.undo()
    assert mine.restore() == "run-001/400"


def test_a_deletion_that_fails_half_way_is_taken_back(run, monkeypatch):
    replace = os.replace

    def fail(source, target, **folders):
        if str(source).endswith(".pt"):
            raise OSError(13, "Permission denied")
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="Permission denied"):
        Trash().delete(row_of(run))
    assert [info.step for info in Run(run.path).checkpoints()] == [100, 200, 300, 400]
    assert aside(run) == []
