"""A run's events folded into what a screen shows: one unbroken curve, whatever happened to its trainers.

This is the only fold; the console, the benchmarks and the tests use it. Memory is bounded for any number of
events. Callers that need no curves use `LatestEvents`, which needs no numpy.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.runs.event_file import EventReader, read_sample
from core.runs.event_index import EventIndex
from core.runs.events import (
    CheckpointEvent,
    CommandEvent,
    EndEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    LayersEvent,
    PlanEvent,
    RunEvent,
    SampleEvent,
    StateEvent,
    StepEvent,
    WarningEvent,
)
from core.runs.latest import LatestEvents
from core.runs.smoothing import Smoother
from core.runs.table import Floats, Table

STEP_COLUMNS = (
    *("step", "time", "tokens", "loss", "loss_min", "loss_max"),
    *("learning_rate", "gradient_norm", "tokens_per_second", "data_wait", "device_memory"),
    *("device_utilization", "epoch"),
)
EVALUATION_COLUMNS = (
    *("step", "time", "train_loss", "validation_loss"),
    *("bits_per_byte", "train_bits_per_byte"),
)
EVALUATIONS_KEPT = 1 << 13
SAMPLES_KEPT = 200
LAYERS_KEPT = 1000
NOTES_KEPT = 500
ANSWERS_KEPT = 100
MARKS_KEPT = 2000
# The pace is computed from this many of the latest rows.
PACE_ROWS = 200


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a checkpoint, a pause, a new start."""

    kind: str
    step: int
    time: float
    label: str


class RunHistory(LatestEvents):
    """One run's events. A full table keeps its extremes; old samples, notes and `run` events are dropped.

    `notes` are the events that a log shows; `answers` the latest `command` events by id.
    """

    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.steps = Table(STEP_COLUMNS, rows)
        self.loss = Smoother(self.steps, "loss")
        self.evaluations = Table(EVALUATION_COLUMNS, EVALUATIONS_KEPT)
        self.layers: list[LayersEvent] = []
        self.plan: PlanEvent | None = None
        """What was ahead before the first step."""
        self.samples: deque[SampleEvent] = deque(maxlen=SAMPLES_KEPT)
        self.notes: deque[Event] = deque(maxlen=NOTES_KEPT)
        self.answers: dict[str, CommandEvent] = {}
        self.marks: list[Mark] = []
        self.started = 0.0
        self.index = EventIndex()
        self.reached = 0  # the last step read so far, for the index

    def take_back(self, step: int) -> None:
        """Forget everything recorded after `step`, and how the previous trainer ended."""
        super().take_back(step)
        self.steps.cut(step)
        self.evaluations.cut(step)
        self.layers = [one for one in self.layers if one.step <= step]
        self.samples = deque((one for one in self.samples if one.step <= step), maxlen=SAMPLES_KEPT)
        self.marks = [mark for mark in self.marks if mark.step <= step]
        self.reached = min(self.reached, step)
        self.index.cut(step)

    def _take_run(self, event: RunEvent) -> None:
        before = self.run
        super()._take_run(event)
        if before is None:
            self.started = event.time
        # A trainer reports itself twice: when it starts, and when its model is built.
        elif before.parameters or before.started != event.started:
            step = event.first_step
            self._mark("start", event, step, f"resumed from step {step:,}")
        if event.parameters:
            self.notes.append(event)

    def _take_state(self, event: StateEvent) -> None:
        was, now = self.state.state if self.state else None, event.state
        super()._take_state(event)
        if now == "paused" and was != "paused":
            self._mark("pause", event, event.step, "paused")
        elif was == "paused" and now != "paused":
            self._mark("go", event, event.step, "continued")

    def _take_plan(self, event: PlanEvent) -> None:
        if event.step == 0:
            self.plan = event
        self.notes.append(event)

    def _take_step(self, event: StepEvent) -> None:
        super()._take_step(event)
        self.steps.add(event)
        self.reached = event.step

    def _take_eval(self, event: EvaluationEvent) -> None:
        super()._take_eval(event)
        self.evaluations.add(event)
        self.notes.append(event)

    def _take_layers(self, event: LayersEvent) -> None:
        self.layers.append(event)
        if len(self.layers) > LAYERS_KEPT:  # of the older half every second one stays
            half = LAYERS_KEPT // 2
            self.layers = self.layers[:half:2] + self.layers[half:]

    def _take_sample(self, event: SampleEvent) -> None:
        super()._take_sample(event)
        self.samples.append(event)

    def _take_checkpoint(self, event: CheckpointEvent) -> None:
        super()._take_checkpoint(event)
        label = "best checkpoint" if event.best else "checkpoint"
        self._mark("best" if event.best else "checkpoint", event, event.step, label)
        self.notes.append(event)

    def _take_command(self, event: CommandEvent) -> None:
        self.notes.append(event)
        self.answers[event.id] = event
        while len(self.answers) > ANSWERS_KEPT:
            del self.answers[next(iter(self.answers))]

    def _take_warning(self, event: WarningEvent) -> None:
        self.notes.append(event)

    def _take_error(self, event: ErrorEvent) -> None:
        super()._take_error(event)
        self.notes.append(event)

    def _take_end(self, event: EndEvent) -> None:
        super()._take_end(event)
        self.notes.append(event)

    def _mark(self, kind: str, event: Event, step: int, label: str) -> None:
        self.marks.append(Mark(kind, step, event.time, f"{label}, step {step:,}"))
        # A day of checkpoints makes thousands of marks; from a certain number on, only every second old one
        # stays.
        if len(self.marks) > MARKS_KEPT:
            half = MARKS_KEPT // 2
            self.marks = self.marks[:half:2] + self.marks[half:]

    # ------------------------------------------------------------- reading

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the last step, from the pace of the last few hundred events."""
        if self.run is None or self.steps.count < 2 or not self.max_iters:
            return None
        steps, times = self.steps.column("step"), self.steps.column("time")
        start = max(0, self.steps.count - PACE_ROWS)
        # Only the pace since this start counts: a night between two starts isn't training.
        start = max(start, bisect.bisect_left(times, self.run.time, 0, self.steps.count))
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
        return steps * float(self.run.tokens_per_step if self.run else 1.0)


class Follower:
    """A reader and the history it feeds; both start over together when the file is replaced."""

    def __init__(self, path: Path) -> None:
        self.reader = EventReader(path)
        self.history = RunHistory()

    def poll(self, limit: int | None = None) -> list[Event]:
        """Read on, fold, and return the new events. Starts over if the file is a different one."""
        generation, offset = self.reader.generation, self.reader.offset
        events = self.reader.poll(limit)
        if self.reader.generation != generation:
            self.history, offset = RunHistory(), 0
        self.history.index.note(offset, self.history.reached)
        self.history.feed(events)
        return events


def preview(path: Path) -> RunHistory:
    """The whole history from evenly spaced events: ready at once for any length."""
    history = RunHistory()
    history.feed(read_sample(path))
    return history
