"""Commands to a running trainer: small files that appear whole, are read in order, answered once."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.runs.event_file import EventReader
from core.runs.events import CommandEvent, Event
from core.runs.lock import is_locked

COMMANDS = ("pause", "resume", "stop", "finish", "save", "evaluate", "sample")
LARGEST_COMMAND = 1 << 16
COARSEST_DATE = 3.0
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Command:
    """One command as it was found; `problem` says why it makes no sense, "" when it does."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def post_command(folder: Path, command: str, arguments: dict[str, Any]) -> str:
    """Put a command into a run's `control/` folder and return its id."""
    folder.mkdir(exist_ok=True)
    # The name is the order. A clock set back must not let a command overtake one that still waits.
    waiting = [int(path.name.split("-")[0]) for path in _files(folder) if path.name.split("-")[0].isdecimal()]
    stamp = max([time.time_ns(), *(number + 1 for number in waiting)])
    identity = secrets.token_hex(4)
    path = folder / f"{stamp:020d}-{identity}.json"
    temporary = folder / f".{path.name}.tmp"
    body = {"id": identity, "command": command, "arguments": arguments, "pid": os.getpid()}
    temporary.write_text(json.dumps(body))
    os.replace(temporary, path)
    return identity


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]


def read_command(path: Path) -> Command:
    """A command file, whatever is in it. Never raises for its content."""
    identity = path.stem.rpartition("-")[2][:64] or "?"
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_COMMAND + 1)
        values = json.loads(data) if len(data) <= LARGEST_COMMAND else None
    except (ValueError, RecursionError):
        values = None
    except OSError as error:
        return Command(identity, "?", problem=f"{path.name} cannot be read: {error.strerror}")
    if not isinstance(values, dict) or not isinstance(values.get("command"), str):
        return Command(identity, "?", problem=f"{path.name} is not a command")
    name, arguments = values["command"][:64], values.get("arguments", {})
    if isinstance(values.get("id"), str):
        identity = values["id"][:64]
    if name not in COMMANDS:
        return Command(identity, name, problem=f'"{name}" is no command; known: {", ".join(COMMANDS)}')
    if not isinstance(arguments, dict):
        return Command(identity, name, problem=f"the arguments of {name} are not a mapping")
    return Command(identity, name, arguments)


class CommandInbox:
    """The trainer's side: takes each command once, in the order of sending.

    `poll` costs one `stat` when nothing came. Answer every command that it yields (by an event)
    before asking for the next: the file goes only when the loop comes back, so a command whose
    answer was lost in a crash is found again.
    """

    def __init__(self, folder: Path, answered: frozenset[str] = frozenset()) -> None:
        self.folder = folder
        self._answered = set(answered)
        self._name = os.fspath(folder)
        self._seen, self._seen_at, self._looked_at = -1, 0.0, 0.0
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)

    def poll(self) -> Iterator[Command]:
        """The commands that came since the last call."""
        try:
            changed = os.stat(self._name).st_mtime_ns
        except OSError:
            return
        if changed == self._seen:
            # A folder's date may be too coarse to tell two renames apart: look again for a while.
            now = time.monotonic()
            if now - self._seen_at > COARSEST_DATE or now - self._looked_at < LOOK_SECONDS:
                return
            self._looked_at = now
        else:
            self._seen = changed
            self._seen_at = self._looked_at = time.monotonic()
        for path in _files(self.folder):
            command = read_command(path)
            if command.id not in self._answered:
                self._answered.add(command.id)
                yield command
            with contextlib.suppress(OSError):
                path.unlink()


def answered_ids(events: list[Event]) -> frozenset[str]:
    """The commands that these events acknowledge."""
    return frozenset(event.id for event in events if isinstance(event, CommandEvent))


def wait_for_answer(events_path: Path, lock_path: Path, identity: str, seconds: float = 30.0) -> CommandEvent:
    """The event that acknowledges a command. Give it an `EventReader`'s path and patience.

    Raises UserError when the run ends without an answer, or none comes in time.
    """
    reader = EventReader(events_path)
    # Commands are answered within moments: what is far back in a long history is not the answer.
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
