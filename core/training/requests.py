"""What a trainer is asked to do, by commands and signals. No torch: it listens from the first moment."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from core.runs import Command, CommandInbox, EventWriter, Run
from core.runs.control import answered_ids
from core.runs.event_file import read_tail
from core.runs.events import CommandEvent
from core.runs.meter import EVENT_SECONDS

LOOK_SECONDS = 1.0
EVENT_SECONDS_VARIABLE = "MAMBA_TUI_EVENT_SECONDS"


class StopRequestedError(Exception):
    """Work was interrupted because the run was asked to stop."""


class Requests:
    """Answers every command once and keeps requests until the trainer acts on them."""

    def __init__(self, run: Run, writer: EventWriter) -> None:
        self.stopping = False
        self.paused = False
        self.signalled = 0
        self.folder_gone = False
        self.wanted: list[tuple[str, dict[str, Any]]] = []
        self.event_seconds = _event_seconds()
        self._ready = False
        self._looked = -math.inf
        self._writer = writer
        self._inbox = CommandInbox(run.control_path, answered_ids(read_tail(run.events_path)))
        # Read before anybody can know that this trainer is running: these were meant for another one.
        self._stale = list(self._inbox.poll())

    def refuse_stale(self) -> None:
        """Answer commands that were sent to an earlier trainer."""
        for command in self._stale:
            self._answer(command, "it was sent before this trainer started")
        self._stale = []

    def ready(self) -> None:
        """Training has begun: commands other than stop make sense from now on."""
        self._ready = True

    def listen(self, step: int) -> None:
        """Take new commands, in order, and request a stop if the run's files were removed."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if self._writer.removed:
                # Nothing can be saved there any more, and nobody can see or command this trainer.
                self.folder_gone = self.stopping = True
        for command in self._inbox.poll():
            problem = command.problem or self._problem(command)
            self._answer(command, problem, step)
            if not problem:
                self._take(command)

    def listen_or_leave(self) -> None:
        """Like `listen`, while there is nothing to save yet: raises StopRequestedError if asked to stop."""
        self.listen(0)
        if self.stopping:
            raise StopRequestedError

    def refuse_the_rest(self, reason: str) -> None:
        """Answer commands that are still waiting when the run has ended."""
        for command in self._inbox.poll():
            self._answer(command, reason)

    def _problem(self, command: Command) -> str:
        if self.stopping:
            return "the run is stopping already"
        if command.name == "stop":
            return ""
        if not self._ready:
            return "the run is still preparing"
        if command.name == "pause" and self.paused:
            return "the run is paused already"
        if command.name == "resume" and not self.paused:
            return "the run is not paused"
        return ""

    def _take(self, command: Command) -> None:
        if command.name == "stop":
            self.stopping = True
        elif command.name in ("pause", "resume"):
            self.paused = command.name == "pause"
        else:
            self.wanted.append((command.name, command.arguments))

    def _answer(self, command: Command, problem: str, step: int = 0) -> None:
        message = problem or (f"at step {step}" if self._ready else "")
        self._writer.write(
            CommandEvent(id=command.id, command=command.name, accepted=not problem, message=message)
        )

    def catch_signals(self, at_once: Callable[[], None]) -> None:
        """Make SIGINT and SIGTERM request a stop; a second one calls `at_once`, which ends the process."""

        def caught(number: int, frame: FrameType | None) -> None:
            self.signalled += 1
            self.stopping = True
            if self.signalled > 1:
                at_once()

        signal.signal(signal.SIGINT, caught)
        signal.signal(signal.SIGTERM, caught)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _event_seconds() -> float:
    """Seconds between step events. The environment can shorten them, to compare runs exactly."""
    try:
        return float(os.environ.get(EVENT_SECONDS_VARIABLE, EVENT_SECONDS))
    except ValueError:
        return EVENT_SECONDS


def say(message: str) -> None:
    """A line for trainer.log."""
    print(message, file=sys.stderr, flush=True)


def run_folder(arguments: list[str]) -> Path | None:
    """The run directory named on the command line."""
    return Path(arguments[0]) if len(arguments) == 1 and not arguments[0].startswith("-") else None
