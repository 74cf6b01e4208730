"""`mamba-tui stop`, `pause`, `resume`, `finish`, `save` and `logs`: control a run, and read its log."""

from __future__ import annotations

import argparse
import time

from core.errors import UserError
from core.runs import Run, is_alive, send_command
from core.runs.events import CheckpointEvent, CommandEvent
from mamba_tui.cli.headless import reader_at_end
from mamba_tui.cli.launch import find_run
from mamba_tui.cli.logs import show
from mamba_tui.cli.run_options import checkpoints_folder
from mamba_tui.widgets.safe_text import visible

ANSWER_SECONDS = 60.0
DONE = {
    "stop": "is stopping",
    "pause": "is paused",
    "resume": "continues",
    "save": "is saving",
    "finish": "is cooling down, then ends",
}


def run(arguments: argparse.Namespace) -> int:
    """Carry out one of the commands. Returns the exit code."""
    chosen = find_run(checkpoints_folder(arguments), arguments.run)
    if arguments.command == "logs":
        return show(chosen, arguments.lines, follow=arguments.follow)
    return _command(chosen, arguments.command)


def _command(one: Run, command: str) -> int:
    """Send a command and wait for the trainer's answer; for a stop, wait for the end."""
    reader = reader_at_end(one)
    sent = send_command(one, command)
    deadline = time.monotonic() + ANSWER_SECONDS
    answered = False
    while time.monotonic() < deadline:
        alive = is_alive(one)
        for event in reader.poll():
            if isinstance(event, CommandEvent) and event.id == sent:
                answered = True
                said = DONE[command] if event.accepted else f"cannot {command}:"
                print(f"{visible(one.name)} {said} {visible(event.message)}")
                if not event.accepted:
                    return 1
            elif isinstance(event, CheckpointEvent) and command in ("save", "stop"):
                print(f"saved {visible(event.file)}")
                if command == "save" and answered:
                    return 0
        if not alive or (answered and command not in ("save", "stop")):
            break
        time.sleep(0.05)
    if not answered:
        raise UserError(
            f"{one.name} did not answer within {ANSWER_SECONDS:.0f} seconds; mamba-tui logs {one.name}"
        )
    return 0
