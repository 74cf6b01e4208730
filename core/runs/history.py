"""Events folded into what a reader shows: one unbroken curve, whatever happened to the trainer."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.runs.events import EventReader, read_sample
from core.runs.schema import Event

STEP_COLUMNS = (
    "step",
    "time",
    "steps",
    "loss",
    "loss_min",
    "loss_max",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "tokens",
    "data_wait",
    "epoch",
)
EVAL_COLUMNS = ("step", "time", "train_loss", "validation_loss", "bits_per_byte", "train_bits_per_byte")


class Series:
    """Columns of numbers, one row an event, steps strictly rising."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.columns = {name: array("d") for name in names}
        self._appends = [(name, self.columns[name].append) for name in names]

    def __len__(self) -> int:
        return len(self.columns["step"])

    def add(self, event: Event) -> None:
        """Append one event; rows that it takes back (the trainer went back in steps) go first."""
        steps = self.columns["step"]
        if steps and event["step"] <= steps[-1]:
            self.cut(event["step"] - 1)
        for name, append in self._appends:
            append(event[name])

    def cut(self, step: int) -> None:
        """Forget the rows after `step`."""
        keep = bisect.bisect_right(self.columns["step"], step)
        for column in self.columns.values():
            del column[keep:]

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """A copy of one column."""
        return np.array(self.columns[name], dtype=np.float64)


class History:
    """A run so far. Feed it every event in order; a resumed trainer's events replace the lost ones.

    A `run` event says from which checkpoint its trainer went on (`resumed_from`, null = from the
    start). What was recorded after that step was not kept by the checkpoint and happens again, so
    it is dropped here, and every reader that uses this class shows the same curve.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything (the file was replaced)."""
        self.steps = Series(STEP_COLUMNS)
        self.evaluations = Series(EVAL_COLUMNS)
        self.samples: list[Event] = []
        self.checkpoints: list[Event] = []
        self.warnings: list[Event] = []
        self.commands: list[Event] = []
        self.starts: list[Event] = []
        self.state: Event | None = None
        self.error: Event | None = None
        self.end: Event | None = None
        self.last: Event | None = None
        self.version = 0

    @property
    def step(self) -> int:
        """The newest step known."""
        return int(self.steps.columns["step"][-1]) if len(self.steps) else self._resumed

    @property
    def _resumed(self) -> int:
        return (self.starts[-1]["resumed_from"] or 0) if self.starts else 0

    @property
    def run(self) -> Event | None:
        """The newest `run` event."""
        return self.starts[-1] if self.starts else None

    def feed(self, events: Iterable[Event]) -> None:
        """Take new events in the order of the file."""
        for event in events:
            self.last = event
            self.version += 1
            kind = event["kind"]
            if kind == "step":
                self.steps.add(event)
            elif kind == "state":
                self.state = event
            elif kind == "eval":
                self.evaluations.add(event)
            elif kind == "sample":
                self.samples.append(event)
            elif kind == "checkpoint":
                self.checkpoints.append(event)
            elif kind == "run":
                self._start(event)
            elif kind == "command":
                self.commands.append(event)
            elif kind == "warning":
                self.warnings.append(event)
            elif kind == "error":
                self.error = event
            elif kind == "end":
                self.end = event

    def _start(self, event: Event) -> None:
        step = event["resumed_from"] or 0
        if self.starts and (self.starts[-1]["pid"], self.starts[-1]["started"]) == (
            event["pid"],
            event["started"],
        ):
            self.starts.pop()  # the same trainer, which now knows its model too
        self.starts.append(event)
        self.steps.cut(step)
        self.evaluations.cut(step)
        self.samples = [sample for sample in self.samples if sample["step"] <= step]
        self.checkpoints = [item for item in self.checkpoints if item["step"] <= step]
        self.state = self.error = self.end = None


class Follower:
    """A reader and the history it feeds, kept in step when the file is replaced."""

    def __init__(self, path: Path) -> None:
        self.reader = EventReader(path)
        self.history = History()

    def poll(self, limit: int | None = None) -> list[Event]:
        """Read on, fold, and return the new events. Start over when the file is another one."""
        generation = self.reader.generation
        events = self.reader.poll(limit)
        if self.reader.generation != generation:
            self.history.clear()
        self.history.feed(events)
        return events


def preview(path: Path) -> History:
    """The whole history from a spread sample of its events: ready in a blink for any length."""
    history = History()
    history.feed(read_sample(path))
    return history
