"""Commands to a running trainer: small files that appear atomically, are read in order and answered once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.runs.event_file import EventReader
from core.runs.events import CommandEvent, Event
from core.runs.lock import is_locked
from core.system.files import Folder, make_folder

COMMANDS = ("pause", "resume", "stop", "finish", "save", "evaluate", "sample")
COMMAND_FILE = re.compile(r"(\d{1,30})-[^/]*\.json")
LARGEST_COMMAND = 1 << 16
COARSEST_DATE = 3.0
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Command:
    """One command; `problem` says why it is invalid, "" if it is valid."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def post_command(folder: Path, command: str, arguments: dict[str, Any]) -> str:
    """Put a command into a run's `control/` folder. Returns its id."""
    make_folder(folder)
    identity = secrets.token_hex(4)
    body = {"id": identity, "command": command, "arguments": arguments, "pid": os.getpid()}
    with Folder(folder) as control:
        # The name determines the order. If the clock is set back, a command must not overtake a waiting one.
        waiting = [int(match[1]) for name in control.names() if (match := COMMAND_FILE.fullmatch(name))]
        stamp = max([time.time_ns(), *(number + 1 for number in waiting)])
        control.write_atomic(f"{stamp:020d}-{identity}.json", json.dumps(body).encode())
    return identity


def read_command(folder: Folder, file_name: str) -> Command:
    """Read a command file. Never raises because of its content."""
    identity = file_name.removesuffix(".json").rpartition("-")[2][:64] or "?"
    try:
        values = json.loads(folder.read_limited(file_name, LARGEST_COMMAND))
    except (ValueError, RecursionError):
        values = None
    except OSError as error:
        return Command(identity, "?", problem=f"{file_name} cannot be read: {error.strerror}")
    if not isinstance(values, dict) or not isinstance(values.get("command"), str):
        return Command(identity, "?", problem=f"{file_name} is not a command")
    name, arguments = values["command"][:64], values.get("arguments", {})
    if isinstance(values.get("id"), str):
        identity = values["id"][:64]
    if name not in COMMANDS:
        return Command(identity, name, problem=f'"{name}" is not a command; known: {", ".join(COMMANDS)}')
    if not isinstance(arguments, dict):
        return Command(identity, name, problem=f"the arguments of {name} are not a mapping")
    return Command(identity, name, arguments)


def _command_files(folder: Folder) -> list[str]:
    """The names of the waiting commands, in the order they were sent."""
    names = filter(COMMAND_FILE.fullmatch, folder.names())
    return [name for name in names if (info := folder.status(name)) and stat.S_ISREG(info.st_mode)]


class CommandInbox:
    """The trainer's side: takes each command once, in the order they were sent.

    `poll` costs one `stat` if nothing is new. Answer every command that it yields (by an event) before asking
    for the next: the file is deleted only when the loop comes back, so a command whose answer was lost in a
    crash is read again.
    """

    def __init__(self, folder: Path, answered: frozenset[str] = frozenset()) -> None:
        self.folder = folder
        self._answered = set(answered)
        self._name = os.fspath(folder)
        self._seen, self._seen_at, self._looked_at = -1, 0.0, 0.0
        with contextlib.suppress(OSError):
            make_folder(folder)

    def poll(self) -> Iterator[Command]:
        """The commands that have arrived since the last call."""
        try:
            changed = os.lstat(self._name).st_mtime_ns
        except OSError:
            return
        if changed == self._seen:
            # A folder's modification time may be too coarse to separate two renames, so look again.
            now = time.monotonic()
            if now - self._seen_at > COARSEST_DATE or now - self._looked_at < LOOK_SECONDS:
                return
            self._looked_at = now
        else:
            self._seen = changed
            self._seen_at = self._looked_at = time.monotonic()
        try:
            folder = Folder(self.folder)
        except OSError:  # gone, or a link to somewhere else, which nobody sent to this run
            return
        with folder:
            for name in _command_files(folder):
                command = read_command(folder, name)
                if command.id not in self._answered:
                    self._answered.add(command.id)
                    yield command
                with contextlib.suppress(OSError):
                    folder.delete(name)


def answered_ids(events: list[Event]) -> frozenset[str]:
    """The commands that these events answer."""
    return frozenset(event.id for event in events if isinstance(event, CommandEvent))


def wait_for_answer(events_path: Path, lock_path: Path, identity: str, seconds: float = 30.0) -> CommandEvent:
    """Wait for the event that answers a command.

    Raises UserError if the run ends without an answer, or none comes in time.
    """
    reader = EventReader(events_path)
    # Commands are answered within moments, so the answer isn't far back in a long history.
    with contextlib.suppress(OSError):
        reader.skip_to_tail()
    deadline = time.monotonic() + seconds
    while True:
        alive = is_locked(lock_path)
        for event in reader.poll():
            if isinstance(event, CommandEvent) and event.id == identity:
                return event
        if not alive:
            raise UserError(f'run "{lock_path.parent.name}" ended before it took the command')
        if time.monotonic() > deadline:
            raise UserError(f'run "{lock_path.parent.name}" gave no answer in {seconds:g} s; it may be busy')
        time.sleep(0.02)
