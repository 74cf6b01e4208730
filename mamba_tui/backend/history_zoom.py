"""A part of a long run in full: its events read again where the folded history is too coarse.

`CloseUp` holds the rows of one stretch of steps; the newest events are added to one that reaches the
end of the run. `spliced` puts them into the history in place of the coarse rows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from mamba_tui.backend.run_client import Session, off_thread
from mamba_tui.backend.run_history import STEP_COLUMNS, Event, RunHistory, Smoother, Table

# Coarse rows in the window from which on a chart cannot show more.
ENOUGH_ROWS = 1024
# Coarse rows kept on both sides: smoothing begins there.
ROWS_AROUND = 500
FINE_ROWS = 1 << 15
BLOCK_BYTES = 1 << 16
MOST_BYTES = 128 << 20


class CloseUp:
    """The rows of the steps from `low` to `high`, or to the end of the run; None until they are read."""

    def __init__(self, low: float, high: float, *, to_end: bool) -> None:
        self.low = low
        self.high = high
        self.to_end = to_end
        self.table: Table | None = None
        self.given_up = False
        self._waiting: list[Event] = []

    def add(self, event: Event) -> None:
        """A new step of the run; while older ones are being read it waits for them."""
        if not self.to_end or self.given_up:
            return
        if self.table is None:
            self._waiting.append(event)
        else:
            self.table.add(event)

    def arrive(self, table: Table) -> None:
        """The rows are read. A step that was read and told too is one row: the second replaces the first."""
        for event in self._waiting:
            table.add(event)
        self._waiting.clear()
        self.table = table

    def give_up(self) -> None:
        """It is too much, or cannot be read: the coarse rows have to do."""
        self.given_up = True
        self._waiting.clear()

    def covers(self, low: float, high: float) -> bool:
        """Whether all of a window is in it."""
        return self.low <= low and (self.to_end or high <= self.high)


def wanted(history: RunHistory, view: tuple[float, float] | None, axis: str) -> CloseUp | None:
    """The close-up that a window asks for, with as much again on both sides; None where there is no need."""
    steps = history.steps
    if view is None or steps.stride == 1 or steps.count < 2:
        return None
    places = history.x_values(steps, axis)
    first = max(0, int(np.searchsorted(places, view[0])) - 1)
    last = min(steps.count - 1, int(np.searchsorted(places, view[1])))
    if last - first > ENOUGH_ROWS:
        return None
    column = steps.column("step")
    low = column[first] if first else 0.0
    found = history.close_up
    to_end = last == steps.count - 1
    high = column[last]
    useful = found is not None and (found.table is None or found.table.stride < steps.stride)
    if found is not None and useful and found.covers(low, high) and (found.to_end or not to_end):
        return found
    span = last - first
    first, last = max(0, first - span), min(steps.count - 1, last + span)
    low = float(column[first]) if first else 0.0
    return CloseUp(low, float(column[last]), to_end=last == steps.count - 1)


def read(path: Path, start: int, end: int) -> Table:
    """The step events of a part of the file, which begins and ends between lines. Raises OSError."""
    from core.runs.events import parse

    table = Table(STEP_COLUMNS, FINE_ROWS)
    rest = b""
    with open(path, "rb") as file:
        file.seek(start)
        # In small blocks: the screen's thread must get its turn in between.
        while start < end and (data := file.read(min(BLOCK_BYTES, end - start))):
            start += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for event in parse(lines)[0] if lines else ():
                take(table, event)
    return table


def take(table: Table, event: Event) -> None:
    """Fold one event: a trainer that begins takes back what its checkpoint did not have."""
    if event.get("kind") == "step":
        table.add(event)
    elif event.get("kind") == "run":
        resumed: Any = event.get("resumed_from")
        table.cut(resumed if isinstance(resumed, int) else 0)


async def fill(close_up: CloseUp, history: RunHistory, session: Session) -> bool:
    """Read a close-up's rows in a thread; whether they came, and still are of the same history."""
    reader = session.reader
    assert reader is not None
    generation, part = reader.generation, part_of_file(history, close_up, reader.offset)
    if part is None:
        close_up.give_up()
        return False
    try:
        table = await off_thread(read, reader.path, *part)
    except OSError:
        close_up.give_up()
        return False
    # A trainer that began meanwhile took steps back; a file put in its place has others.
    if history.close_up is not close_up or reader.generation != generation:
        return False
    close_up.arrive(table)
    return True


def part_of_file(history: RunHistory, close_up: CloseUp, end: int) -> tuple[int, int] | None:
    """Where in the file (read up to `end`) the steps of a close-up are; None where that is too much."""
    start, stop = history.places.around(close_up.low, close_up.high)
    stop = end if close_up.to_end or stop is None else stop
    return (start, stop) if stop - start <= MOST_BYTES else None


def spliced(history: RunHistory, close_up: CloseUp) -> RunHistory:
    """The history with the close-up's rows in place of its own, for drawing.

    Of what is far away only the ends are left, so that the whole keeps its width.
    """
    fine, coarse = close_up.table, history.steps
    if fine is None or not fine.count or not coarse.count:
        return history
    column, inner = coarse.column("step"), fine.column("step")
    before = int(np.searchsorted(column, max(close_up.low, inner[0] - 1), side="right"))
    after = int(np.searchsorted(column, inner[-1], side="right"))
    left = sorted({0, *range(max(0, before - ROWS_AROUND), before)}) if before else []
    beyond = range(after, min(coarse.count, after + ROWS_AROUND))
    right = sorted({*beyond, coarse.count - 1}) if beyond else []
    whole = copy.copy(history)
    whole.steps = coarse.joined(left, fine, right, above=close_up.low if before else -1.0)
    whole.loss = Smoother(whole.steps, "loss")
    return whole
