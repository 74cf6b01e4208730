"""A run's folder is renamed, moved or removed during training: the trainer follows, or stops and says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import pytest

from core.errors import UserError
from core.runs import Run, is_alive, send_command, signal_trainer, start_trainer, status
from core.runs.launching import trainer_exit_code
from tests.run_tools import EVERY_STEP, ended, history, new_run, wait_for, write_text

pytestmark = pytest.mark.faults

LONG = {"max_iters": 1_000_000, "eval_interval": 1_000_000, "sample_tokens": 0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def training(tmp_path, dataset):
    """(run, pid) of a trainer that has taken a step; it is ended afterwards wherever its folder is."""
    (tmp_path / "runs").mkdir()
    run = new_run(tmp_path / "runs", dataset, **LONG)
    pid = start_trainer(run, environment=EVERY_STEP)
    wait_for(lambda: history(run).history.step >= 1 or ended(run), "the first step")
    assert is_alive(run), status(run).message
    yield run, pid
    with contextlib.suppress(StopIteration):  # it has ended, and a later trainer was started
        if trainer_exit_code(pid) is None:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: trainer_exit_code(pid) is not None, "the trainer's end")


@pytest.mark.parametrize("new", ["runs/renamed", "elsewhere/run"])
def test_a_trainer_follows_its_folder(tmp_path, training, new):
    run, pid = training
    moved = Run(tmp_path / new)
    moved.path.parent.mkdir(exist_ok=True)
    run.path.rename(moved.path)
    before = history(moved).history.step
    wait_for(lambda: history(moved).history.step > before, "a step after the move")
    assert is_alive(moved)
    send_command(moved, "stop")
    wait_for(lambda: trainer_exit_code(pid) is not None, "the end of the run")
    assert trainer_exit_code(pid) == 130
    last = moved.checkpoints()[-1]
    assert not last.problem
    assert last.step == history(moved).history.step
    assert status(moved).state == "stopped"
    assert not run.path.exists()

    start_trainer(moved, environment=EVERY_STEP)
    wait_for(lambda: history(moved).history.step > last.step or ended(moved), "a step of the resumed run")
    assert is_alive(moved), status(moved).message
    signal_trainer(moved, signal.SIGKILL)
    wait_for(lambda: ended(moved), "the end of the resumed run")


def test_a_trainer_whose_folder_is_removed_stops(training):
    run, pid = training
    shutil.rmtree(run.path)
    wait_for(lambda: trainer_exit_code(pid) is not None, "the trainer's end")
    assert trainer_exit_code(pid) == 1
    assert not run.path.exists()


def test_a_trainer_whose_history_is_removed_saves_and_says_so(training):
    run, pid = training
    run.events_path.unlink()
    wait_for(lambda: trainer_exit_code(pid) is not None, "the trainer's end")
    assert trainer_exit_code(pid) == 1
    assert run.checkpoints()
    found = status(run)
    assert found.state == "failed"
    assert "removed" in found.message
    assert "removed" in run.log_path.read_text()


def test_another_folder_in_the_old_place_is_not_written_to(tmp_path, training):
    run, pid = training
    moved = Run(tmp_path / "moved")
    run.path.rename(moved.path)
    run.path.mkdir()
    send_command(moved, "save")
    wait_for(lambda: moved.checkpoints(), "the checkpoint")
    assert list(run.path.iterdir()) == []
    with pytest.raises(UserError):
        signal_trainer(run, signal.SIGTERM)
    assert trainer_exit_code(pid) is None
