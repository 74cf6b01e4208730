"""`mamba-tui runs`, `stop`, `pause`, `resume`, `save` and `logs`: look at runs and command them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.errors import UserError
from core.runs import Run, is_alive, list_runs, send_command, status
from core.runs.event_fields import plain
from core.runs.events import CheckpointEvent, CommandEvent
from mamba_tui.cli.headless import reader_at_end
from mamba_tui.cli.launch import find_run
from mamba_tui.cli.logs import show
from mamba_tui.cli.run_options import checkpoints_folder
from mamba_tui.widgets.numbers import bytes_size, duration, loss
from mamba_tui.widgets.safe_text import visible

ANSWER_SECONDS = 60.0
DONE = {
    "stop": "is stopping",
    "pause": "is paused",
    "resume": "goes on",
    "save": "is saving",
    "finish": "is cooling down to its end",
}
STYLES = {"training": "green", "finished": "cyan", "failed": "red", "died": "red", "paused": "yellow"}


def run(arguments: argparse.Namespace) -> int:
    """Carry out one of the commands. Returns the exit code."""
    root = checkpoints_folder(arguments)
    if arguments.command == "runs":
        return _json(list_runs(root)) if arguments.json else _table(list_runs(root), root.name)
    found = find_run(root, arguments.run)
    if arguments.command == "logs":
        return show(found, arguments.lines, follow=arguments.follow)
    return _command(found, arguments.command)


def _table(runs: list[Run], folder: str) -> int:
    console = Console(highlight=False)
    if not runs:
        console.print(f"No runs in {visible(folder)} yet. Start one: mamba-tui launch", markup=False)
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "state"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title in ("step", "loss", "bits/byte", "age", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in runs:
        found = status(one)
        table.add_row(
            Text(visible(one.name)),
            Text(found.state, style=STYLES.get(found.state, "")),
            f"{found.step:,}/{found.max_iters:,}" if found.max_iters else "-",
            loss(found.validation_loss if found.validation_loss is not None else found.train_loss),
            loss(found.bits_per_byte),
            duration(found.age),
            bytes_size(found.bytes),
        )
    console.print(table)
    return 0


def _json(runs: list[Run]) -> int:
    """One JSON object a line and run; numbers that are not finite are strings, as in events.jsonl."""
    for one in runs:
        values = {"name": one.name, "path": str(one.path)} | dataclasses.asdict(status(one))
        print(json.dumps(plain(values)))
    return 0


def _command(one: Run, command: str) -> int:
    """Send a command and wait for the trainer's answer; a stop waits for the end."""
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
