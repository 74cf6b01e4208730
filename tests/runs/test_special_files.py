"""A run's folder from elsewhere: named pipes, links and endless files neither hang nor lead anywhere."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading

import pytest

from core.errors import UserError
from core.runs import (
    CommandInbox,
    EventReader,
    EventWriter,
    RunLock,
    discard,
    is_alive,
    list_runs,
    prune,
    read_holder,
    status,
)
from core.runs.control import post_command
from core.runs.launching import start_trainer
from tests.run_tools import new_run, step_event, write_text


@pytest.fixture
def run(tmp_path):
    run = new_run(tmp_path / "runs", write_text(tmp_path / "text"))
    writer = EventWriter(run.events_path)
    writer.write(step_event(7))
    writer.close()
    return run


@pytest.fixture
def victim(tmp_path):
    """A file of the user's that nothing may touch."""
    path = tmp_path / "home" / "letters.json"
    path.parent.mkdir()
    path.write_text("dear")
    return path


def pipe(path):
    os.mkfifo(path)


def link_to_zeros(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def long(path):
    path.write_bytes(b"[" * (8 << 20))


NAMES = ("events.jsonl", "run.lock", "trainer.log", "checkpoint_step_5.json", "checkpoint_step_5.pt")


@pytest.mark.parametrize("make", [pipe, link_to_zeros, folder, long])
@pytest.mark.parametrize("name", NAMES)
def test_one_bad_file_is_one_bad_row(run, name, make):
    other = new_run(run.path.parent, run.path.parent.parent / "text", "other")
    (run.path / name).unlink(missing_ok=True)
    make(run.path / name)
    if name.endswith(".pt"):
        manifest = {"step": 5, "bytes": 0, "sha256": "x", "time": 1.0}
        (run.path / "checkpoint_step_5.json").write_text(json.dumps(manifest))
    looked = {}

    def look():
        looked.update({one.name: status(one) for one in list_runs(run.path.parent)})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for the other end of a pipe, or for the end of an endless file"
    assert looked.keys() == {"run", "other"}
    assert looked["other"].state == "new"
    assert not looked["run"].alive
    if name.endswith(".pt"):
        assert all(info.problem for info in run.checkpoints())
    assert not is_alive(other)


def test_a_pipe_as_configuration_is_not_a_run(run):
    run.config_path.unlink()
    pipe(run.config_path)
    assert list_runs(run.path.parent) == []
    with pytest.raises(UserError):
        run.config()


@pytest.mark.parametrize("name", ["events.jsonl", "run.lock", "trainer.log"])
def test_nothing_is_written_through_a_link(run, victim, name):
    path = run.path / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    opened = {
        "events.jsonl": lambda: EventWriter(path),
        "run.lock": lambda: RunLock(path).__enter__(),
        "trainer.log": lambda: start_trainer(run),
    }[name]
    with pytest.raises((OSError, UserError), match="is a link"):
        opened()
    assert victim.read_text() == "dear"
    assert EventReader(path).poll() == []
    assert read_holder(path) is None


def test_a_control_folder_that_is_a_link_leads_nowhere(run, victim):
    os.rmdir(run.control_path)
    run.control_path.symlink_to(victim.parent)
    inbox = CommandInbox(run.control_path)
    assert list(inbox.poll()) == []
    with pytest.raises(OSError, match="is a link"):
        post_command(run.control_path, "stop", {})
    discard(run)
    assert [path.name for path in victim.parent.iterdir()] == [victim.name]


def test_pruning_takes_a_link_away_and_not_what_it_leads_to(run, victim):
    (run.path / "checkpoint_step_3.pt").symlink_to(victim)
    prune(run.path, run.config().training)
    assert not (run.path / "checkpoint_step_3.pt").is_symlink()
    assert victim.read_text() == "dear"


def test_what_a_trainer_writes_is_for_its_user_alone(run):
    with RunLock(run.lock_path):
        for path in (run.lock_path, run.events_path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_a_lock_that_others_could_open_is_closed_to_them(run):
    run.lock_path.touch(0o666)
    run.lock_path.chmod(0o666)
    with RunLock(run.lock_path):
        assert stat.S_IMODE(run.lock_path.stat().st_mode) == 0o600


def test_who_is_refused_is_told_what_is_known_of_the_holder(run):
    code = "import sys, pathlib, core.runs; core.runs.RunLock(pathlib.Path(sys.argv[1])).__enter__()"
    subprocess.run([sys.executable, "-c", code, str(run.lock_path)], check=True)
    with open(run.lock_path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="has ended, but another program holds the file"):
            RunLock(run.lock_path).__enter__()
    with RunLock(run.lock_path):
        with pytest.raises(UserError, match="already being trained by process"):
            RunLock(run.lock_path).__enter__()


@pytest.mark.parametrize("changes", [{"since": 1e300}, {"pid": int("9" * 401)}, {"pid": -5}, {"since": None}])
def test_a_lock_with_values_out_of_range_tells_nothing(run, changes):
    with RunLock(run.lock_path):
        values = json.loads(run.lock_path.read_bytes())
    run.lock_path.write_text(json.dumps(values | changes))
    assert read_holder(run.lock_path) is None
    assert not status(run).alive
