"""What the console remembers of a run: its events folded into a bounded amount of memory.

A run may write a million events. `Table` keeps at most `capacity` rows, and with each the smallest and
largest loss, so that a spike stays visible for ever.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mamba_tui.backend.event_index import Places

if TYPE_CHECKING:
    from mamba_tui.backend.history_zoom import CloseUp

Event = Mapping[str, Any]
Floats = NDArray[np.float64]

STEP_COLUMNS = (
    *("step", "time", "tokens", "loss", "loss_min", "loss_max"),
    *("learning_rate", "gradient_norm", "tokens_per_second", "data_wait", "device_memory"),
    *("device_utilization", "epoch"),
)
EVAL_COLUMNS = ("step", "time", "train_loss", "validation_loss", "bits_per_byte", "train_bits_per_byte")
ROWS_KEPT = 1 << 15
SAMPLES_KEPT = 200
NOTES_KEPT = 500


def number(event: Event, key: str) -> float:
    """A number of an event; NaN where there is none."""
    value = event.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


class Table:
    """Rows of numbers with rising `step`, in at most `capacity` rows of `stride` events each.

    A full table merges its rows two by two and doubles the stride, so that all of the history keeps
    the same resolution. The newest row may be of fewer events and still change.
    """

    LAST_OF = ("step", "time", "tokens", "epoch")

    def __init__(self, columns: tuple[str, ...], capacity: int = 0) -> None:
        self.columns = columns
        self.capacity = capacity = capacity or ROWS_KEPT
        self.count = 0
        self.stride = 1
        self.changes = 0
        self._filled = 0
        self._data = np.empty((len(columns), min(256, capacity)))
        self._last = np.array([name in self.LAST_OF for name in columns])
        self._low = columns.index("loss_min") if "loss_min" in columns else -1
        self._high = columns.index("loss_max") if "loss_max" in columns else -1

    def add(self, event: Event) -> None:
        """Append an event; rows that it takes back (the trainer went back in steps) go first."""
        row = [number(event, name) for name in self.columns]
        if not math.isfinite(row[0]):
            return
        if self.count and row[0] <= self._data[0, self.count - 1]:
            self.cut(row[0] - 1)
        if self.count and self._filled < self.stride:
            place = self._data[:, self.count - 1]
            place[:] = self._merged(place, np.array(row), self._filled, 1)
            self._filled += 1
            return
        if self.count == self._data.shape[1]:
            self._make_room()
        self._data[:, self.count] = row
        self.count += 1
        self._filled = 1

    def _merged(self, first: Floats, second: Floats, weight: int, other: int) -> Floats:
        """Two neighbours as one: means, but the last of what only grows, and the extremes of the loss.

        A mean with a number that is none is none: a gap stays a gap.
        """
        mean = (first * weight + second * other) / (weight + other)
        mean[self._last] = second[self._last]
        if self._low >= 0:
            mean[self._low] = np.fmin(first[self._low], second[self._low])
            mean[self._high] = np.fmax(first[self._high], second[self._high])
        return mean

    def _make_room(self) -> None:
        if self.count < self.capacity:
            wider = np.empty((len(self.columns), min(2 * self.count, self.capacity)))
            wider[:, : self.count] = self._data
            self._data = wider
            return
        half = self.count // 2
        first, second = self._data[:, 0 : 2 * half : 2], self._data[:, 1 : 2 * half : 2]
        self._data[:, :half] = self._merged(first, second, 1, 1)
        self.count = half
        self.stride *= 2
        self._filled = self.stride
        self.changes += 1

    def cut(self, step: float) -> None:
        """Forget the rows after `step`."""
        self.count = int(np.searchsorted(self._data[0, : self.count], step, side="right"))
        self._filled = self.stride
        self.changes += 1

    def column(self, name: str) -> Floats:
        """A view on one column; do not keep it over the next `add`."""
        return self._data[self.columns.index(name), : self.count]

    def joined(self, left: list[int], middle: Table, right: list[int], above: float) -> Table:
        """Some rows of this table, then those of `middle` whose step is above `above`, then some more."""
        inner = middle._data[:, : middle.count]
        parts = [self._data[:, left], inner[:, inner[0] > above], self._data[:, right]]
        table = Table(self.columns, self.capacity)
        table._data = np.concatenate(parts, axis=1)
        table.count = table._data.shape[1]
        return table


class Smoother:
    """An exponential average over steps (`width` of them), corrected for its start, gaps left as gaps."""

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name
        self.width = 0.0
        self._done = 0
        self._changes = -1
        self._sum = self._weight = 0.0
        self._values = np.empty(256)

    def values(self, width: float) -> Floats:
        """The smoothed column; only rows that are new since the last call are computed."""
        raw = self.table.column(self.name)
        if width <= 0 or not len(raw):
            return raw
        if width != self.width or self.table.changes != self._changes or self._done > len(raw):
            self.width, self._changes = width, self.table.changes
            self._done, self._sum, self._weight = 0, 0.0, 0.0
        if len(raw) > len(self._values):
            wider = np.empty(max(len(raw), 2 * len(self._values)))
            wider[: self._done] = self._values[: self._done]
            self._values = wider
        # The newest row may still change: it is computed each time, but not built upon.
        last = len(raw) - 1
        self._sum, self._weight = self._extend(raw, self._done, last)
        self._done = last
        self._extend(raw, last, last + 1)
        return self._values[: len(raw)]

    def _extend(self, raw: Floats, start: int, end: int) -> tuple[float, float]:
        """Compute rows [start, end) from the state before them; the state after them."""
        total, weight = self._sum, self._weight
        if start >= end:
            return total, weight
        steps = self.table.column("step")
        before = steps[start - 1] if start else steps[0] - 1
        kept = np.exp(-np.diff(steps[start:end], prepend=before) / self.width).tolist()
        result = []
        for value, keep in zip(raw[start:end].tolist(), kept):
            if math.isfinite(value):
                total = keep * total + (1 - keep) * value
                weight = keep * weight + (1 - keep)
                result.append(total / weight if weight else value)
            else:
                result.append(math.nan)
        self._values[start:end] = result
        return total, weight


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a checkpoint, a pause, a new start."""

    kind: str
    step: float
    time: float
    label: str


@dataclass
class RunHistory:
    """One run's events, folded. `version` changes whenever something did."""

    steps: Table = field(default_factory=lambda: Table(STEP_COLUMNS))
    evaluations: Table = field(default_factory=lambda: Table(EVAL_COLUMNS, 1 << 13))
    samples: deque[Event] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    notes: deque[Event] = field(default_factory=lambda: deque(maxlen=NOTES_KEPT))
    marks: list[Mark] = field(default_factory=list)
    run: Event | None = None
    state: Event | None = None
    last_step: Event | None = None
    last_eval: Event | None = None
    end: Event | None = None
    error: Event | None = None
    answers: dict[str, Event] = field(default_factory=dict)
    started: float = 0.0
    version: int = 0
    reached: float = 0.0
    places: Places = field(default_factory=Places)
    close_up: CloseUp | None = None

    def __post_init__(self) -> None:
        self.loss = Smoother(self.steps, "loss")

    def feed(self, events: Iterable[Event]) -> None:
        """Take new events in the order of the file."""
        for event in events:
            self.version += 1
            kind = event.get("kind")
            if kind == "step":
                self.steps.add(event)
                self.last_step = event
                reached = number(event, "step")
                self.reached = reached if math.isfinite(reached) else self.reached
                if self.close_up is not None:
                    self.close_up.add(event)
            elif isinstance(kind, str) and (take := getattr(self, f"_take_{kind}", None)):
                take(event)

    def _take_run(self, event: Event) -> None:
        resumed = event.get("resumed_from")
        if self.run is None:
            self.started = number(event, "time")
        step = resumed if isinstance(resumed, int) else 0
        self.steps.cut(step)
        self.reached = min(self.reached, step)
        self.places.cut(step)
        self.close_up = None
        self.evaluations.cut(step)
        self.samples = deque((s for s in self.samples if s.get("step", 0) <= step), maxlen=SAMPLES_KEPT)
        self.marks = [mark for mark in self.marks if mark.step <= step]
        # A trainer says twice who it is: when it comes up, and when its model is built.
        first = self.run or {}
        same = first.get("parameters") == 0 and first.get("started") == event.get("started")
        if self.run is not None and not same:
            self._mark("start", event, f"resumed from step {step:,}", step)
        self.run, self.state, self.end, self.error = event, None, None, None
        if event.get("parameters") != 0:
            self.notes.append(event)

    def _take_state(self, event: Event) -> None:
        was = self.state.get("state") if self.state else None
        now = event.get("state")
        if now == "paused" and was != "paused":
            self._mark("pause", event, "paused")
        elif was == "paused" and now != "paused":
            self._mark("go", event, "went on")
        self.state = event

    def _take_eval(self, event: Event) -> None:
        self.evaluations.add(event)
        self.last_eval = event
        self.notes.append(event)

    def _take_sample(self, event: Event) -> None:
        self.samples.append(event)

    def _take_checkpoint(self, event: Event) -> None:
        best = event.get("best") is True
        self._mark("best" if best else "checkpoint", event, "best checkpoint" if best else "checkpoint")
        self.notes.append(event)

    def _take_command(self, event: Event) -> None:
        self.notes.append(event)
        self.answers[str(event.get("id"))] = event
        while len(self.answers) > 100:
            del self.answers[next(iter(self.answers))]

    def _take_warning(self, event: Event) -> None:
        self.notes.append(event)

    def _take_error(self, event: Event) -> None:
        self.error = event
        self.notes.append(event)

    def _take_end(self, event: Event) -> None:
        self.end = event
        self.notes.append(event)

    def _mark(self, kind: str, event: Event, label: str, step: float | None = None) -> None:
        at = number(event, "step") if step is None else float(step)
        self.marks.append(Mark(kind, at, number(event, "time"), f"{label}, step {at:,.0f}"))
        # A day of checkpoints is thousands of marks; past a point only every second old one stays.
        if len(self.marks) > 2000:
            self.marks = self.marks[:1000:2] + self.marks[1000:]

    # ------------------------------------------------------------- reading

    @property
    def step(self) -> int:
        """The newest step known."""
        candidates = [number(event, "step") for event in (self.last_step, self.state) if event]
        finite = [value for value in candidates if math.isfinite(value)]
        return int(max(finite, default=0.0))

    @property
    def max_iters(self) -> int:
        """How many steps the run is to take; 0 when not known."""
        value = number(self.run, "max_iters") if self.run else math.nan
        return int(value) if math.isfinite(value) else 0

    @property
    def progress(self) -> float | None:
        """Share of the steps done."""
        return min(1.0, self.step / self.max_iters) if self.max_iters else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the last step, from the pace of the last few hundred events."""
        if self.run is None or self.steps.count < 2 or not self.max_iters:
            return None
        steps, times = self.steps.column("step"), self.steps.column("time")
        start = max(0, self.steps.count - 200)
        # The pace of this start only: a night between two starts is not training.
        begun = number(self.run, "time")
        start = max(start, bisect.bisect_left(times, begun, 0, self.steps.count))
        if start >= self.steps.count - 1:
            return None
        pace = (times[-1] - times[start]) / max(1.0, steps[-1] - steps[start])
        left = (self.max_iters - self.step) * pace
        return float(left) if math.isfinite(left) and left >= 0 else None

    def x_values(self, table: Table, axis: str) -> Floats:
        """The x column of a table: step, tokens, time since the start, or time of day."""
        if axis == "clock":
            return np.maximum.accumulate(table.column("time")) if table.count else table.column("time")
        if axis == "duration":
            moments = table.column("time")
            return np.maximum.accumulate(moments) - self.started if table.count else moments
        if axis == "tokens":
            return self.tokens_at(table.column("step"))
        return table.column("step")

    def tokens_at(self, steps: Floats) -> Floats:
        """Tokens read by the given steps."""
        per_step = number(self.run, "tokens_per_step") if self.run else math.nan
        return steps * (per_step if math.isfinite(per_step) else 1.0)
