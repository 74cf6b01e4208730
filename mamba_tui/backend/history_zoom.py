"""A part of a long run in full resolution: its events read again where the folded history is too coarse.

`Zoom` holds the rows of a range of steps; new events are added if it reaches the end of the run. `spliced`
puts them into the history in place of the coarse rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from core.runs.event_file import parse
from core.runs.events import Event, RunEvent, StepEvent
from core.runs.history import RunHistory
from core.runs.smoothing import Smoother
from core.runs.table import Table
from core.system.files import open_to_read

# With this many coarse rows in the window, a chart can't show more detail.
ENOUGH_ROWS = 1024
# Coarse rows kept on both sides, where smoothing begins.
ROWS_AROUND = 500
FINE_ROWS = 1 << 15
BLOCK_BYTES = 1 << 16
MOST_BYTES = 128 << 20


class Zoom:
    """The rows of the steps from `low` to `high`, or to the end of the run; None until they are read.

    It is `outdated` once a trainer starts that undoes steps: rows that were read may no longer count.
    """

    def __init__(self, low: float, high: float, *, to_end: bool) -> None:
        self.low = low
        self.high = high
        self.to_end = to_end
        self.table: Table | None = None
        self.outdated = False
        self.given_up = False
        self._waiting: list[StepEvent] = []

    def feed(self, events: Iterable[Event]) -> None:
        """Add new events of the run; while older ones are being read, new steps wait."""
        for event in events:
            if isinstance(event, RunEvent):
                self.outdated = True
            elif isinstance(event, StepEvent) and self.to_end and not self.given_up:
                if self.table is None:
                    self._waiting.append(event)
                else:
                    self.table.add(event)

    def arrive(self, table: Table) -> None:
        """Add the rows that were read.

        A step that was both read and received is one row, the received one.
        """
        for event in self._waiting:
            table.add(event)
        self._waiting.clear()
        self.table = table

    def give_up(self) -> None:
        """Give up: there are too many rows, or they can't be read. The coarse rows will do."""
        self.given_up = True
        self._waiting.clear()

    def covers(self, low: float, high: float) -> bool:
        """Whether it contains all of a window."""
        return self.low <= low and (self.to_end or high <= self.high)


def wanted(
    history: RunHistory, zoom: Zoom | None, view: tuple[float, float] | None, axis: str
) -> Zoom | None:
    """The zoom that a window needs: the existing one, or one with as much again on both sides.

    None if none is needed.
    """
    steps = history.steps
    if view is None or steps.stride == 1 or steps.count < 2:
        return None
    xs = history.x_values(steps, axis)
    first = max(0, int(np.searchsorted(xs, view[0])) - 1)
    last = min(steps.count - 1, int(np.searchsorted(xs, view[1])))
    if last - first > ENOUGH_ROWS:
        return None
    column = steps.column("step")
    low = column[first] if first else 0.0
    to_end = last == steps.count - 1
    high = column[last]
    useful = zoom is not None and (zoom.table is None or zoom.table.stride < steps.stride)
    if zoom is not None and useful and zoom.covers(low, high) and (zoom.to_end or not to_end):
        return zoom
    span = last - first
    first, last = max(0, first - span), min(steps.count - 1, last + span)
    low = float(column[first]) if first else 0.0
    return Zoom(low, float(column[last]), to_end=last == steps.count - 1)


def read(path: Path, start: int, end: int) -> Table:
    """The step events of a part of the file, which begins and ends between lines. Raises OSError."""
    history = RunHistory(FINE_ROWS)
    rest = b""
    with open_to_read(path) as file:
        file.seek(start)
        # In small blocks, so that the screen's thread gets its turn in between.
        while start < end and (data := file.read(min(BLOCK_BYTES, end - start))):
            start += len(data)
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                history.feed(parse(lines)[0])
    return history.steps


def part_of_file(history: RunHistory, zoom: Zoom, end: int) -> tuple[int, int] | None:
    """Where the steps of a zoom are in the file (read up to `end`); None if there are too many."""
    start, stop = history.index.around(zoom.low, zoom.high)
    stop = end if zoom.to_end or stop is None else stop
    return (start, stop) if stop - start <= MOST_BYTES else None


def spliced(history: RunHistory, zoom: Zoom) -> RunHistory:
    """The history with the zoom's rows in place of its own, for a chart.

    Only the ends of what is far away are left, so that the whole keeps its width.
    """
    fine, coarse = zoom.table, history.steps
    if fine is None or not fine.count or not coarse.count:
        return history
    column, inner = coarse.column("step"), fine.column("step")
    before = int(np.searchsorted(column, max(zoom.low, inner[0] - 1), side="right"))
    after = int(np.searchsorted(column, inner[-1], side="right"))
    left = sorted({0, *range(max(0, before - ROWS_AROUND), before)}) if before else []
    beyond = range(after, min(coarse.count, after + ROWS_AROUND))
    right = sorted({*beyond, coarse.count - 1}) if beyond else []
    whole = copy.copy(history)
    whole.steps = coarse.joined(left, fine, right, above=zoom.low if before else -1.0)
    whole.loss = Smoother(whole.steps, "loss")
    return whole
