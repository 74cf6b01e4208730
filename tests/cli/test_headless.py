"""Following a run as plain text: a display that can no longer be written, and what a detached start says."""

from __future__ import annotations

import os
import sys

import pytest

from core.runs import EventWriter
from core.runs.events import StateEvent, WarningEvent
from mamba_tui.cli import headless
from tests.run_tools import new_run, run_event, write_text


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "runs", write_text(tmp_path / "texts", words=50))


class FullDisk:
    """A standard output on a disk without room."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        pass

    def isatty(self):
        return False


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize(("stream", "reason"), [(closed_pipe, "Broken pipe"), (FullDisk, "No space left")])
@pytest.mark.parametrize("ours", [True, False])
def test_a_display_that_ends_is_not_unsaid(run, monkeypatch, capsys, stream, reason, ours):
    monkeypatch.setattr(headless, "_alive", lambda run, pid: True)
    monkeypatch.setattr(headless, "leave_quietly", lambda: None)
    output = stream()
    monkeypatch.setattr(sys, "stdout", output)
    killed = []
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    try:
        code = headless.follow(run, headless.reader_at_end(run), pid=12345 if ours else None)
    finally:
        monkeypatch.undo()
        if not isinstance(output, FullDisk):
            with pytest.raises(BrokenPipeError):
                output.close()
    assert code == headless.EXIT_UNSEEN
    words = f"the display of {run.name} has ended ({reason}"
    said = capsys.readouterr().err
    assert words in said
    assert "its training continues" in said
    assert words in run.log_path.read_text() if ours else not run.log_path.exists()
    assert killed == []


def test_a_detached_start_says_what_the_schedule_will_do(run, monkeypatch, capsys):
    monkeypatch.setattr(headless, "trainer_exit_code", lambda pid: None)
    reader = headless.reader_at_end(run)
    writer = EventWriter(run.events_path)
    writer.write(run_event(parameters=0))
    writer.write(StateEvent(state="preparing", step=0))
    writer.write(run_event(parameters=10))
    writer.write(WarningEvent(message="the learning rate of step 30 was 0; it warms up again"))
    writer.write(StateEvent(state="training", step=30))
    headless.show_schedule(run, reader, 12345)
    assert capsys.readouterr().out == "note: the learning rate of step 30 was 0; it warms up again\n"
