"""Commands: ordered, answered once, and never able to upset the trainer."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.runs import COMMANDS, CommandInbox, EventReader, EventWriter, Run, RunLock, send_command
from core.runs.control import post_command, read_command
from core.runs.events import CommandEvent
from core.system.files import Folder
from core.training.requests import Requests
from tests.run_tools import new_run, write_text


@pytest.fixture
def run(tmp_path) -> Run:
    return new_run(tmp_path / "runs", write_text(tmp_path / "text"))


def answers(run):
    return [event for event in EventReader(run.events_path).poll() if event.kind == "command"]


def test_commands_are_taken_in_the_order_of_sending(run):
    sent = [post_command(run.control_path, COMMANDS[i % len(COMMANDS)], {"n": i}) for i in range(30)]
    inbox = CommandInbox(run.control_path)
    taken = list(inbox.poll())
    assert [command.id for command in taken] == sent
    assert [command.arguments["n"] for command in taken] == list(range(30))
    assert list(inbox.poll()) == []
    assert list(run.control_path.iterdir()) == []


def test_a_clock_set_back_lets_no_command_overtake(run, monkeypatch):
    first = post_command(run.control_path, "pause", {})
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000)
    second = post_command(run.control_path, "stop", {})
    assert [command.id for command in CommandInbox(run.control_path).poll()] == [first, second]


def test_stop_and_pause_from_two_consoles_are_each_answered_once(run):
    with RunLock(run.lock_path):
        writer = EventWriter(run.events_path)
        requests = Requests(run, writer)
        requests.ready()
        ids = [send_command(run, "stop"), send_command(run, "pause"), send_command(run, "stop")]
        for _ in range(3):
            requests.listen(7)
        writer.close()
    assert [(event.id, event.accepted) for event in answers(run)] == [
        (ids[0], True),
        (ids[1], False),
        (ids[2], False),
    ]
    assert requests.stopping
    assert not requests.paused


def test_pause_and_resume_only_make_sense_in_turn(run):
    with RunLock(run.lock_path):
        requests = Requests(run, EventWriter(run.events_path))
        requests.ready()
        for command in ("resume", "pause", "pause", "save", "resume"):
            send_command(run, command)
            requests.listen(1)
    assert [event.accepted for event in answers(run)] == [False, True, False, True, True]
    assert requests.wanted == [("save", {})]


def test_only_stop_is_heard_while_preparing(run):
    with RunLock(run.lock_path):
        requests = Requests(run, EventWriter(run.events_path))
        send_command(run, "pause")
        send_command(run, "stop")
        requests.listen(0)
    assert [event.accepted for event in answers(run)] == [False, True]


def test_an_answer_lost_in_a_crash_is_given_again_and_a_given_one_is_not(run):
    with RunLock(run.lock_path):
        writer = EventWriter(run.events_path)
        answered = send_command(run, "pause")
        writer.write(CommandEvent(id=answered, command="pause", accepted=True, message=""))
        lost = send_command(run, "save")
    # The trainer died here: both files are still there.
    assert len(list(run.control_path.iterdir())) == 2
    with RunLock(run.lock_path):
        requests = Requests(run, EventWriter(run.events_path))
        requests.refuse_stale()
    assert [(event.id, event.accepted) for event in answers(run)] == [(answered, True), (lost, False)]
    assert list(run.control_path.iterdir()) == []


def test_a_command_to_a_run_that_is_not_alive_is_refused(run):
    with pytest.raises(UserError, match="is not running"):
        send_command(run, "pause")
    with pytest.raises(UserError, match="not a command; accepted: pause, resume"):
        send_command(run, "explode")
    with pytest.raises(UserError, match="there is no run"):
        send_command(Run(run.path.with_name("none")), "pause")


@settings(deadline=None, max_examples=150)
@given(
    content=st.one_of(
        st.binary(max_size=100),
        st.dictionaries(
            st.sampled_from(["id", "command", "arguments", "x"]),
            st.none() | st.integers() | st.text(max_size=80) | st.sampled_from(COMMANDS) | st.just({"a": []}),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_control_file_upsets_the_trainer(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("control")
    run = Run(folder)
    run.control_path.mkdir()
    (run.control_path / "00000000000000000001-abcd.json").write_bytes(content)
    with Folder(run.control_path) as control:
        command = read_command(control, "00000000000000000001-abcd.json")
    assert command.problem or command.name in COMMANDS
    requests = Requests(run, EventWriter(run.events_path))
    requests.refuse_stale()
    assert len(answers(run)) == 1
    assert list(run.control_path.iterdir()) == []


def test_what_is_no_file_or_too_large_is_no_command(run):
    (run.control_path / "1-folder.json").mkdir()
    (run.control_path / ".2-hidden.json").write_text("{}")
    (run.control_path / "3-large.json").write_bytes(b" " * 100_000)
    commands = list(CommandInbox(run.control_path).poll())
    assert [(command.id, bool(command.problem)) for command in commands] == [("large", True)]
