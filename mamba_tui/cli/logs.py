"""`mamba-tui logs RUN`: the console's log view as text, once or for as long as the run lives."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator

from core.errors import UserError
from core.runs import EventReader, Run, is_alive, log_tail
from core.runs.events import Event, RunEvent
from mamba_tui.widgets.safe_text import visible

# Kinds of events in a log; steps, states and samples have their own views.
TOLD = ("run", "eval", "checkpoint", "command", "warning", "error", "end")
POLL_SECONDS = 0.2
PRINTED_LINES = 200


def show(run: Run, lines: int, *, follow: bool) -> int:
    """Print the last `lines` of a run's log. With `follow`, keep printing until the run has ended."""
    if lines < 1:
        raise UserError(f"--lines is {lines}; accepted: a number of at least 1")
    reader = EventReader(run.events_path)
    told = deque(_sentences(reader.poll()), maxlen=lines)
    printed = log_tail(run.log_path, PRINTED_LINES).splitlines()
    text = [*told, *(["", "printed by the trainer", *printed] if printed else [])]
    for line in text[-lines:]:
        _print(line)
    while follow:
        # Asked before reading, so that a run that ends in between has written everything.
        alive = is_alive(run)
        for line in _sentences(reader.poll()):
            _print(line)
        if not alive:
            if not run.path.is_dir():
                _print(f"the folder of run {run.name} is gone: moved, renamed or deleted")
                return 1
            break
        time.sleep(POLL_SECONDS)
    return 0


def _sentences(events: list[Event]) -> Iterator[str]:
    from mamba_tui.wording import event_sentence

    for event in events:
        if event.kind not in TOLD or (isinstance(event, RunEvent) and not event.parameters):
            continue
        yield f"{time.strftime('%H:%M:%S', time.localtime(event.time))}  {event_sentence(event)}"


def _print(line: str) -> None:
    """Safe on a terminal, exact in a pipe or a file."""
    print(visible(line) if sys.stdout.isatty() else line, flush=True)
